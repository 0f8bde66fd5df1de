"""A context network of masked convolutions: no row of a map sees what lies below it."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.precision import Precision, at_least_float32, compute_dtype


class PixelCNN(nn.Module):
    """Residual blocks of masked convolutions: c_ij is made of row i and the rows above it.

    A block is 1x1 to `hidden`, 1x3 along the row, 2x1 over the row and the one above, 1x1 back,
    ReLU in between, added to its input; a ReLU behind the last. With b blocks a context reaches b
    rows up and b columns to either side. Unlike a PixelCNN of pixels it sees its whole own row,
    right of itself too: what is predicted lies below.

    Attributes:
        blocks: number of blocks.
        hidden: channels inside a block. 256 with features of 1,024 and more.
        dtype: `float32` or `bfloat16` computation.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv 1601.06759 (masked
        convolutions); the block is that of Henaff et al. 2019, arXiv 1905.09272, but for a ReLU
        between 1x3 and 2x1, which theirs has not.
    """

    blocks: int = 5
    hidden: int = 256
    dtype: Precision = 'float32'

    def __post_init__(self):
        compute_dtype(self.dtype)
        if self.blocks < 1 or self.hidden < 1:
            raise ValueError(
                f'blocks is {self.blocks} and hidden {self.hidden}; both must be at least 1'
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Float[Array, 'n i j d'], train: bool) -> Float[Array, 'n i j d']:
        """The contexts, as wide as `z`, in at least float32; `train` changes nothing."""
        width = z.shape[-1]
        for b in range(self.blocks):
            conv = lambda channels, kernel, padding, place, b=b: nn.Conv(
                channels,
                kernel,
                padding=padding,
                dtype=compute_dtype(self.dtype),
                param_dtype=jnp.float32,
                name=f'block{b}_conv{place}',
            )
            y = nn.relu(conv(self.hidden, (1, 1), 'VALID', 1)(z))
            y = nn.relu(conv(self.hidden, (1, 3), ((0, 0), (1, 1)), 2)(y))
            # The mask: one row of zeros above and none below.
            y = nn.relu(conv(self.hidden, (2, 1), ((1, 0), (0, 0)), 3)(y))
            z = z + conv(width, (1, 1), 'VALID', 4)(y)
        return at_least_float32(nn.relu(z))

    @nn.nowrap
    def smoke(self) -> 'PixelCNN':
        """The same network with one narrow block."""
        return self.clone(blocks=1, hidden=min(self.hidden, 16))
