"""The transformer block of vision: attention and perceptron, each behind a LayerNorm."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

EPSILON = 1e-6
"""Of LayerNorm, as in the published vision transformers."""

Initial = Literal['normal', 'xavier', 'xavier_apart']
"""How weight matrices start. `normal`: standard deviation 0.02, that of the patches as PyTorch
starts a convolution (DINO). `xavier`: uniform with variance 2 / (inputs + outputs), queries, keys
and values being one matrix (MAE).
`xavier_apart`: the same, with queries, keys and values three matrices, and a class token of
standard deviation 1e-6 in place of 0.02 (MoCo v3)."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)).

    Attributes:
        heads: of the attention; must divide the features.
        mlp_ratio: hidden units of the perceptron, as a multiple of the features.
        initial: how weight matrices start.
        dtype: compute precision; the sum x itself stays in at least float32.

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, equations 2 and 3.
    """

    heads: int
    mlp_ratio: float = 4.0
    initial: Initial = 'normal'
    dtype: Precision = 'float32'

    @nn.compact
    def __call__(
        self, x: Float[Array, 'n t d'], factors: Float[Array, 'n 2'] | None = None
    ) -> Float[Array, 'n t d']:
        """The tokens behind the block.

        Args:
            x: tokens.
            factors: what each example's two branches are multiplied by (stochastic depth); None
                leaves them as they are.
        """
        width = x.shape[-1]
        attention = Attention(self.heads, self.initial, self.dtype, name='attention')
        hidden = dense(int(width * self.mlp_ratio), self.initial, self.dtype, name='linear1')
        output = dense(width, self.initial, self.dtype, name='linear2')
        branches = (
            lambda y: attention(layer_norm(self.dtype, name='norm1')(y)),
            lambda y: output(
                nn.gelu(hidden(layer_norm(self.dtype, name='norm2')(y)), approximate=False)
            ),
        )
        for i, branch in enumerate(branches):
            y = at_least_float32(branch(x))
            x = x + (y if factors is None else y * factors[:, i, None, None].astype(y.dtype))
        return x


class Attention(nn.Module):
    """Every token takes a weighted mean over all tokens, in several heads.

    Attributes:
        heads: must divide the features.
        initial: how weight matrices start.
        dtype: compute precision; the softmax is in at least float32.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.
    """

    heads: int
    initial: Initial = 'normal'
    dtype: Precision = 'float32'

    @nn.compact
    def __call__(self, x: Float[Array, 'n t d']) -> Float[Array, 'n t d']:
        """The tokens' means, projected."""
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f'{self.heads} heads do not divide {width} features')
        apart = 3 if self.initial == 'xavier_apart' else 1
        # The columns are queries, then keys, then values, each of them head by head.
        qkv = dense(3 * width, self.initial, self.dtype, apart, name='qkv')(x)
        q, k, v = rearrange(qkv, 'n t (s h d) -> s n t h d', s=3, h=self.heads)
        y = attend(q, k, v)
        return dense(width, self.initial, self.dtype, name='out')(
            rearrange(y, 'n t h d -> n t (h d)')
        )


def attend(
    q: Float[Array, 'n t h d'], k: Float[Array, 'n s h d'], v: Float[Array, 'n s h d']
) -> Float[Array, 'n t h d']:
    """softmax(q k^T / sqrt(d)) v for every head: equation 1 of the paper.

    The products have the inputs' type, what they add up to and the softmax at least float32.
    (`jax.nn.dot_product_attention` has float32 in the middle of a float64 computation.)
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum('nthd,nshd->nhts', q, k, preferred_element_type=wide)
    weights = nn.softmax(scores / q.shape[-1] ** 0.5).astype(v.dtype)
    return jnp.einsum('nhts,nshd->nthd', weights, v)


def layer_norm(dtype: Precision, **fields: str) -> nn.LayerNorm:
    """LayerNorm over the features, statistics in at least float32."""
    return nn.LayerNorm(
        EPSILON, dtype=compute_dtype(dtype), param_dtype=jnp.float32, use_fast_variance=False,
        **fields,
    )  # fmt: skip


def dense(
    width: int, initial: Initial, dtype: Precision, apart: int = 1, **fields: str
) -> nn.Dense:
    """A linear layer with bias 0 at first; its outputs are `apart` matrices side by side."""
    return nn.Dense(
        width, kernel_init=matrix(initial, apart), dtype=compute_dtype(dtype),
        param_dtype=jnp.float32, **fields,
    )  # fmt: skip


def matrix(initial: Initial, apart: int = 1) -> nn.initializers.Initializer:
    """The initialiser of a weight matrix [inputs, outputs] of `apart` matrices side by side."""
    if initial == 'normal':
        return nn.initializers.normal(0.02)

    def xavier(key, shape, dtype=jnp.float32):
        bound = (6 / (shape[0] + shape[1] / apart)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return xavier
