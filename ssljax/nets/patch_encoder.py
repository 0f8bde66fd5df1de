"""An encoder that looks at overlapping patches of an image, each by itself."""

import dataclasses

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.preact_resnet import PreActResNet


class PatchEncoder(nn.Module):
    """An encoder applied to each patch of a grid; an image's features are the mean over the grid.

    What is at one place of the grid knows nothing of the pixels outside of its patch, unless the
    encoder normalises by the batch.

    Attributes:
        encoder: images to features, applied to patches.
        patch: side of a patch in pixels. CPC: 64 of 256.
        stride: step from one patch to the next in pixels; less than `patch` makes them overlap.
            CPC: 32, a grid of 7 x 7.
    """

    encoder: nn.Module = dataclasses.field(default_factory=PreActResNet)
    patch: int = 64
    stride: int = 32

    def __post_init__(self):
        if self.patch < 1 or self.stride < 1:
            raise ValueError(
                f'patch is {self.patch} and stride {self.stride} pixels; both must be at least 1'
            )
        super().__post_init__()

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """The mean over the patches' features, in at least float32.

        Args:
            x: normalised images of at least one patch; pixels right and below that do not fill a
                step of the stride are not looked at.
            train: passed to the encoder.
        """
        return self.features(x, train)['pool']

    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """`grid` [n, i, j, d], the features of patches, and `pool` [n, d], their mean."""
        grid = self.of_patches(grid_patches(x, self.patch, self.stride), train)
        return {'grid': grid, 'pool': jnp.mean(grid, axis=(1, 2))}

    def of_patches(
        self, patches: Float[Array, 'n i j p p c'], train: bool
    ) -> Float[Array, 'n i j d']:
        """The features of patches that are already cut."""
        n, rows = patches.shape[:2]
        z = self.encoder(rearrange(patches, 'n i j p q c -> (n i j) p q c'), train)
        return rearrange(z, '(n i j) d -> n i j d', n=n, i=rows)

    @nn.nowrap
    def smoke(self) -> 'PatchEncoder':
        """The same with small patches, for views of 32 pixels, and a small encoder."""
        encoder = self.encoder.smoke() if hasattr(self.encoder, 'smoke') else self.encoder
        small = {'patch': min(self.patch, 8), 'stride': min(self.stride, 4)}
        return self.clone(encoder=encoder, **small)


def grid_size(height: int, width: int, patch: int, stride: int) -> tuple[int, int]:
    """Rows and columns of the grid of patches.

    Raises:
        ValueError: if the image is smaller than one patch.
    """
    if min(height, width) < patch:
        raise ValueError(
            f'images of {height} x {width} pixels are smaller than one patch of {patch}; use '
            f'images of at least {patch} pixels a side, or a smaller patch'
        )
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def grid_patches(
    x: Float[Array, 'n h w c'], patch: int, stride: int
) -> Float[Array, 'n i j p p c']:
    """Squares of `patch` pixels, every `stride` pixels down (i) and to the right (j).

    Raises:
        ValueError: if the image is smaller than one patch.
    """
    rows, columns = grid_size(x.shape[1], x.shape[2], patch, stride)
    place = lambda count: jnp.arange(count)[:, None] * stride + jnp.arange(patch)
    x = x[:, place(rows)]
    x = x[:, :, :, place(columns)]
    return rearrange(x, 'n i p j q c -> n i j p q c')
