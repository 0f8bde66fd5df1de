"""A residual network for tiny images on few cores: a patchify stem, then a handful of blocks."""

from typing import Literal, get_args

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.blocks import Shortcut, block_of, forgetful
from ssljax.nets.conv import Conv
from ssljax.nets.norm import batch_norm, check_groups
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

Pool = Literal['mean', 'max', 'mean_max']


class SmallResNet(nn.Module):
    """A residual network whose stem already works on patches of the image.

    Most of a small ResNet's time goes into its first, largest maps; a stem of stride k leaves
    k^2 times fewer pixels. Collections: `params` (float32) and `batch_stats`.

    Attributes:
        stem_patch: stride of the stem in pixels; 1 keeps every pixel.
        stem_kernel: side of the stem's kernel, at least `stem_patch`; larger ones overlap and pad
            symmetrically. None: the patch (no overlap, no padding).
        widths: channels of the stages; of a bottleneck, a quarter of what it gives out.
        blocks: residual blocks per stage, as many numbers as `widths`.
        stride: step between one stage and the next, in pixels.
        block: `basic` (two 3x3) or `bottleneck` (1x1, 3x3, 1x1).
        shortcut: how shortcuts change shape: `conv` or `pool`.
        pool: what is taken of the maps: `mean`, `max`, or both, one behind the other.
        grid: pools over grid x grid regions instead of the whole map, one behind the other.
        stages: of how many last stages the pooled maps are put together.
        zero_init: starts the last BatchNorm of each block at scale 0.
        dtype: `float32` or `bfloat16` computation.
        norm_groups: consecutive parts of the batch that BatchNorm normalises each by itself, as
            so many unsynchronised devices do; 1 is the whole batch.
        remat: computes a block again in the backward pass instead of keeping what is inside.
    """

    stem_patch: int = 4
    stem_kernel: int | None = None
    widths: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (2, 2)
    stride: int = 2
    block: Literal['basic', 'bottleneck'] = 'basic'
    shortcut: Shortcut = 'conv'
    pool: Pool = 'mean'
    grid: int = 1
    stages: int = 1
    zero_init: bool = False
    dtype: Precision = 'float32'
    norm_groups: int = 1
    remat: bool = False

    def __post_init__(self):
        compute_dtype(self.dtype)
        check_groups(self.norm_groups)
        block_of(self.block)
        for field, kinds in (('pool', get_args(Pool)), ('shortcut', get_args(Shortcut))):
            if getattr(self, field) not in kinds:
                raise ValueError(f'{field} is {getattr(self, field)!r}; use one of {kinds}')
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(
                f'widths {self.widths} and blocks {self.blocks} describe different stages; give as '
                'many numbers in one as in the other, and at least one'
            )
        sizes = (self.stem_patch, self.stride, self.grid, *self.widths, *self.blocks)
        if min(sizes) < 1 or not 1 <= self.stages <= len(self.widths):
            raise ValueError(
                f'stem_patch {self.stem_patch}, stride {self.stride}, grid {self.grid}, widths '
                f'{self.widths} and blocks {self.blocks} must be at least 1, and stages '
                f'{self.stages} between 1 and {len(self.widths)}'
            )
        if self.stem_kernel is not None and self.stem_kernel < self.stem_patch:
            raise ValueError(
                f'stem_kernel {self.stem_kernel} is smaller than stem_patch {self.stem_patch}, so '
                'pixels between the patches would be lost; use at least the patch'
            )
        super().__post_init__()

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """Pooled features, in at least float32.

        Args:
            x: normalised images, any size from a patch up, any number of channels.
            train: batch statistics (and their update) instead of running ones.
        """
        return self.features(x, train)['pool']

    @nn.compact
    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """The maps `stem`, `stage1`, `stage2`, ... [n, h, w, c] and `pool` [n, d]."""
        dtype = compute_dtype(self.dtype)
        kernel = self.stem_kernel or self.stem_patch
        padding = (kernel - self.stem_patch + 1) // 2
        x = Conv(self.widths[0], kernel, self.stem_patch, padding, dtype, name='stem_conv')(x)
        x = nn.relu(batch_norm(train, dtype, self.norm_groups, name='stem_norm')(x))
        maps = {'stem': at_least_float32(x)}
        block = forgetful(block_of(self.block)) if self.remat else block_of(self.block)
        for i, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for j in range(count):
                x = block(
                    width=width,
                    stride=self.stride if i > 0 and j == 0 else 1,
                    zero_init=self.zero_init,
                    shortcut=self.shortcut,
                    dtype=self.dtype,
                    norm_groups=self.norm_groups,
                    name=f'stage{i + 1}_block{j}',
                )(x, train)
            maps[f'stage{i + 1}'] = at_least_float32(x)
        last = list(maps.values())[-self.stages :]
        return {**maps, 'pool': jnp.concatenate([pooled(x, self.pool, self.grid) for x in last], 1)}


def pooled(x: Float[Array, 'n h w c'], pool: Pool, grid: int) -> Float[Array, 'n d']:
    """Means, maxima or both of the regions of a grid over the map, row by row.

    Args:
        x: maps.
        pool: what is taken of a region.
        grid: regions a side, at most the map's; where sides do not divide, regions overlap.
    """
    height, width = x.shape[1:3]
    if grid > min(height, width):
        raise ValueError(f'grid {grid} is finer than the map of {height} x {width} pixels')
    take = {'mean': (jnp.mean,), 'max': (jnp.max,), 'mean_max': (jnp.mean, jnp.max)}
    regions = [
        x[:, top:bottom, left:right]
        for top, bottom in _spans(height, grid)
        for left, right in _spans(width, grid)
    ]
    return jnp.concatenate([f(r, axis=(1, 2)) for r in regions for f in take[pool]], axis=1)


def _spans(size: int, parts: int) -> list[tuple[int, int]]:
    """`parts` equal spans that cover `size` pixels, rounded outwards."""
    return [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
