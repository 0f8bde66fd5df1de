"""DINO's head: a perceptron to a bottleneck, and cosines with prototypes."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.norm import batch_norm
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype


class DINOHead(nn.Module):
    """Linear layers with GELU between them, a bottleneck at unit length, and prototypes.

    The last layer, `last`, has no bias and is weight-normalised: only the directions of its
    prototypes count, so that with a gain of 1 every score is a cosine, in [-1, 1]. Sizes of the
    paper: (2048, 2048), 256 and 65,536; one of a ViT-S has 22,286,592 parameters.

    Attributes:
        widths: features of the hidden layers, with biases; none for a linear bottleneck.
        bottleneck: features of what is brought to unit length.
        prototypes: scores that come out, K.
        batch_norm: whether a BatchNorm follows each hidden layer. Paper: no.
        learned_gain: whether each prototype has a gain, 1 at first, that is trained (with weight
            decay, as in the authors' code). They advise it for ViT-S alone.
        dtype: `float32` or `bfloat16` computation; lengths are taken in float32 in either case.

    Reference: Caron et al. 2021, arXiv 2104.14294, section 3.1 and appendix C; Salimans, Kingma
        2016, arXiv 1602.07868.
    """

    widths: tuple[int, ...] = (2048, 2048)
    bottleneck: int = 256
    prototypes: int = 65_536
    batch_norm: bool = False
    learned_gain: bool = False
    dtype: Precision = 'float32'

    def __post_init__(self):
        compute_dtype(self.dtype)
        if min(*self.widths, self.bottleneck, 1) < 1 or self.prototypes < 2:
            raise ValueError(
                f'widths {self.widths}, bottleneck {self.bottleneck} and prototypes '
                f'{self.prototypes} must be at least 1, 1 and 2'
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, 'n c'], train: bool) -> Float[Array, 'n k']:
        """The scores of the prototypes, in at least float32.

        Args:
            x: features.
            train: batch statistics (and their update) instead of running ones, if there are any.
        """
        dtype = compute_dtype(self.dtype)
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.normal(0.02), dtype=dtype, param_dtype=jnp.float32
        )
        for i, width in enumerate(self.widths, 1):
            x = dense(width, name=f'linear{i}')(x)
            if self.batch_norm:
                x = batch_norm(train, dtype, name=f'norm{i}')(x)
            x = nn.gelu(x, approximate=False)
        x = dense(self.bottleneck, name=f'linear{len(self.widths) + 1}')(x)
        x = _unit(at_least_float32(x), axis=-1)
        return Prototypes(self.prototypes, self.learned_gain, self.dtype, name='last')(x)

    @nn.nowrap
    def smoke(self) -> 'DINOHead':
        """The same head with narrow layers and few prototypes."""
        return self.clone(
            widths=tuple(min(width, 32) for width in self.widths),
            bottleneck=min(self.bottleneck, 16),
            prototypes=min(self.prototypes, 64),
        )


class Prototypes(nn.Module):
    """Products with weight-normalised rows: gain * x . w / |w|."""

    count: int
    learned_gain: bool = False
    dtype: Precision = 'float32'

    @nn.compact
    def __call__(self, x: Float[Array, 'n d']) -> Float[Array, 'n k']:
        """The scores, in at least float32."""
        # Uniform in +-1/sqrt(d), as the authors' layer: how far a step turns w depends on |w|.
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        kernel = self.param('kernel', init, (x.shape[-1], self.count), jnp.float32)
        kernel = _unit(kernel, axis=0)
        dtype = compute_dtype(self.dtype) or jnp.result_type(x, kernel)
        scores = jnp.dot(
            x.astype(dtype),
            kernel.astype(dtype),
            precision=jax.lax.Precision.HIGHEST,  # of float32; they are divided by a temperature
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        if self.learned_gain:
            gain = self.param('gain', nn.initializers.ones, (self.count,), jnp.float32)
            scores = scores * gain
        return scores


def _unit(x: Float[Array, '...'], axis: int) -> Float[Array, '...']:
    """Vectors along an axis divided by their lengths; zero vectors stay, and get no gradient."""
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    nonzero = squares > 0
    return jnp.where(nonzero, x / jnp.sqrt(jnp.where(nonzero, squares, 1)), 0)
