"""Images as rows of patches, and back."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from ssljax.nets.precision import Precision, compute_dtype


def grid_of(height: int, width: int, patch: int) -> tuple[int, int]:
    """Patches along height and width.

    Raises:
        ValueError: if the patch does not divide the image.
    """
    if height < patch or width < patch or height % patch or width % patch:
        low, high = height // patch * patch, -(-height // patch) * patch
        raise ValueError(
            f'images of {height} x {width} pixels cannot be cut into patches of {patch}; use a '
            f'patch that divides both sides, or images of '
            f'{" or ".join(str(side) for side in (low, high) if side)} pixels'
        )
    return height // patch, width // patch


def patchify(x: Float[Array, 'n h w c'], patch: int) -> Float[Array, 'n t d']:
    """The patches of images, row by row.

    Args:
        x: images whose sides `patch` divides.
        patch: side of a patch in pixels.

    Returns:
        [n, patches, patch * patch * c]: patches from left to right, then down, and the values of
        each in the order (row, column, channel).

    Raises:
        ValueError: if the patch does not divide the image.
    """
    grid_of(x.shape[1], x.shape[2], patch)
    return rearrange(x, 'n (i p) (j q) c -> n (i j) (p q c)', p=patch, q=patch)


def unpatchify(
    patches: Float[Array, 'n t d'], grid: tuple[int, int], patch: int
) -> Float[Array, 'n h w c']:
    """The inverse of `patchify`: images from all their patches.

    Args:
        patches: all patches of a grid, in the order of `patchify`.
        grid: patches along height and width.
        patch: side of a patch in pixels.
    """
    rows, _ = grid
    return rearrange(patches, 'n (i j) (p q c) -> n (i p) (j q) c', i=rows, p=patch, q=patch)


class PatchProjection(nn.Module):
    """A linear map of flattened patches: a convolution whose stride is its kernel's side.

    Attributes:
        width: features of a patch.
        patch: side of a patch in pixels.
        start: how it starts. `xavier`: Xavier's bound of the matrix, bias 0 (MAE, MoCo v3).
            `torch`: kernel and bias uniform within 1 / sqrt(inputs), as PyTorch starts the
            convolution that it is elsewhere (DINO).
        dtype: compute precision.
    """

    width: int
    patch: int
    start: Literal['xavier', 'torch'] = 'xavier'
    dtype: Precision = 'float32'

    @nn.compact
    def __call__(self, patches: Float[Array, 'n t v']) -> Float[Array, 'n t d']:
        """The features of patches in the order of `patchify`."""
        channels = patches.shape[-1] // self.patch**2
        # Kept as a convolution's kernel, [p, p, c, width]; it starts as the matrix that it is.
        shape = (self.patch, self.patch, channels, self.width)
        of_kernel, of_bias = _starts(self.start, patches.shape[-1])
        kernel = self.param('kernel', _of_the_matrix(of_kernel), shape, jnp.float32)
        bias = self.param('bias', of_bias, (self.width,), jnp.float32)
        patches, kernel, bias = nn.dtypes.promote_dtype(
            patches, kernel, bias, dtype=compute_dtype(self.dtype)
        )
        return patches @ kernel.reshape(-1, self.width) + bias


def _starts(start: str, inputs: int) -> tuple[Initializer, Initializer]:
    """Initialisers of kernel and bias."""
    if start == 'xavier':
        return nn.initializers.xavier_uniform(), nn.initializers.zeros

    def within(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -(inputs**-0.5), inputs**-0.5)

    return within, within


def _of_the_matrix(initial: Initializer) -> Initializer:
    """As a convolution's kernel what `initial` makes of a matrix."""

    def kernel(key, shape, dtype):
        return initial(key, (shape[0] * shape[1] * shape[2], shape[3]), dtype).reshape(shape)

    return kernel
