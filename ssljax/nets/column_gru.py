"""A recurrent context network: it reads every column of a map from top to bottom."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.precision import at_least_float32


class ColumnGRU(nn.Module):
    """A gated recurrent unit down every column by itself: c_ij is made of z_1j to z_ij.

    Attributes:
        width: of the contexts. Paper: 256 for speech.

    Reference: van den Oord, Li, Vinyals 2018, arXiv 1807.03748, section 3.1.
    """

    width: int = 256

    @nn.compact
    def __call__(self, z: Float[Array, 'n i j d'], train: bool) -> Float[Array, 'n i j c']:
        """The contexts, in at least float32; `train` changes nothing."""
        z = at_least_float32(z)
        cell = nn.GRUCell(self.width, param_dtype=jnp.float32, name='cell')
        start = jnp.zeros((z.shape[0], z.shape[2], self.width), z.dtype)
        return nn.RNN(cell, time_major=False)(z.swapaxes(1, 2), initial_carry=start).swapaxes(1, 2)

    @nn.nowrap
    def smoke(self) -> 'ColumnGRU':
        """The same network with a narrow state."""
        return self.clone(width=min(self.width, 16))
