"""The decoder of masked autoencoders: a small transformer over seen and hidden patches."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ssljax.nets.positions import sincos
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype
from ssljax.nets.transformer import Block, dense, layer_norm


class MAEDecoder(nn.Module):
    """Predicts the pixels of all patches from the features of those that were seen.

    Every hidden patch enters as one and the same learned token; fixed sines and cosines say where
    each patch is. Used in pre-training only.

    Attributes:
        width: features of a token, a multiple of 4 and of the heads.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: hidden units of the perceptrons, as a multiple of the width.
        remat: computes a block again in the backward pass instead of keeping what is inside.
        dtype: `float32` or `bfloat16` computation.

    Reference: He, Chen, Xie, Li, Dollar, Girshick 2021, arXiv 2111.06377, section 3; table 1 for
        the sizes.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    remat: bool = False
    dtype: Precision = 'float32'

    def __post_init__(self):
        compute_dtype(self.dtype)
        if min(self.width, self.depth, self.heads) < 1 or self.width % 4 or self.width % self.heads:
            raise ValueError(
                f'width {self.width}, depth {self.depth} and heads {self.heads} must be at least '
                '1, and width a multiple of 4 and of heads'
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        seen: dict[str, Float[Array, '...']],
        rank: Int[Array, 'n t'],
        grid: tuple[int, int],
        values: int,
    ) -> Float[Array, 'n t v']:
        """The predicted values of all patches, in the order of the image.

        Args:
            seen: what the encoder gives: `tokens` [n, k, d] of the k patches seen, in the order in
                which they were given to it, and `cls` [n, d] if it has a class token.
            rank: where each patch of the image stands in an order of all of which the first k were
                seen.
            grid: patches along height and width, t of them.
            values: of a patch.
        """
        embed = dense(self.width, 'xavier', self.dtype, name='embed')
        tokens = at_least_float32(embed(seen['tokens']))
        n, k, _ = tokens.shape
        hidden = self.param('mask', nn.initializers.normal(0.02), (self.width,), jnp.float32)
        # A slot for each hidden patch, so that no two gradients meet at one place: a GPU adds those
        # in any order, or one by one where it has to repeat itself to the bit.
        hidden = jnp.broadcast_to(hidden.astype(tokens.dtype), (n, rank.shape[1] - k, self.width))
        slots = jnp.concatenate([tokens, hidden], axis=1)
        x = slots.at[jnp.arange(n)[:, None], rank].get(unique_indices=True, mode='clip')
        x = x + jnp.asarray(sincos(grid, self.width), x.dtype)
        ahead = int('cls' in seen)
        if ahead:  # at no position
            x = jnp.concatenate([at_least_float32(embed(seen['cls']))[:, None], x], axis=1)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(self.heads, self.mlp_ratio, 'xavier', self.dtype, name=f'block{i}')(x)
        x = layer_norm(self.dtype, name='norm')(x[:, ahead:])
        return at_least_float32(dense(values, 'xavier', self.dtype, name='pixels')(x))

    @nn.nowrap
    def smoke(self) -> 'MAEDecoder':
        """The same decoder of one narrow block."""
        return self.clone(width=32, depth=1, heads=2)
