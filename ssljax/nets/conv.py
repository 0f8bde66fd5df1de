"""Convolution with explicit symmetric padding; pointwise ones are matrix products.

Explicit padding, because SAME pads strided convolutions asymmetrically (a 3x3 of stride 2 on an
even map: nothing before, one after), and weights trained with one do not fit the other.

XLA computes the weight gradient of a 1x1 convolution on a CPU as a convolution whose window is the
whole map, 2 to 5 times slower than the matrix product it is; as a product, forward and backward are
products by themselves, on every platform.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
"""Normal with variance 2 / (kernel area x output channels): He et al. 2015, arXiv 1502.01852."""


def convolve(
    x: Float[Array, 'n h w c'], kernel: Float[Array, 'k k c d'], stride: int, padding: int
) -> Float[Array, 'n h_out w_out d']:
    """Cross-correlation of NHWC images with an HWIO kernel.

    Args:
        x: images.
        kernel: square kernel.
        stride: step in pixels, in both directions.
        padding: zeros put before and after each row and column.

    Returns:
        Maps of `(size + 2 padding - k) // stride + 1` pixels a side.
    """
    if kernel.shape[0] == 1 and padding == 0:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


class Conv(nn.Module):
    """A convolution without bias (a BatchNorm follows), its kernel `[k, k, c, width]` in float32.

    Attributes:
        width: output channels.
        kernel: side of the kernel in pixels.
        stride: step in pixels.
        padding: zeros on each side.
        dtype: as in Linen; None promotes.
    """

    width: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h_out w_out d']:
        """The maps of `x`."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.width)
        kernel = self.param('kernel', he_fan_out, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, self.stride, self.padding)
