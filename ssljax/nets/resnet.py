"""ResNets, as torchvision builds them, so that weights move both ways."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.blocks import block_of, forgetful, max_pool
from ssljax.nets.conv import Conv
from ssljax.nets.norm import batch_norm, check_groups
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

LAYOUTS = {
    10: ('basic', (1, 1, 1, 1)),
    18: ('basic', (2, 2, 2, 2)),
    34: ('basic', (3, 4, 6, 3)),
    50: ('bottleneck', (3, 4, 6, 3)),
    101: ('bottleneck', (3, 4, 23, 3)),
    152: ('bottleneck', (3, 8, 36, 3)),
    200: ('bottleneck', (3, 24, 36, 3)),
}
"""Kind of block and blocks per stage, by depth: He et al. 2015, arXiv 1512.03385, table 1; 200 from
arXiv 1603.05027; 10, with one block a stage, is for trying things out."""


class ResNet(nn.Module):
    """A residual network without its classifier; global average pooled features.

    Version 1.5 (the stride sits in the 3x3 convolution), explicit symmetric padding, BatchNorm with
    momentum 0.9 and epsilon 1e-5. Collections: `params` (float32) and `batch_stats`.

    Attributes:
        depth: 10, 18, 34, 50, 101, 152 or 200.
        width: factor on every channel count, the stem's included (SimCLR's 1x, 2x, 4x).
        stem: `imagenet` is 7x7 of stride 2 and a 3x3 max-pool of stride 2; `cifar` is 3x3 of
            stride 1 and no pool.
        inner_width: factor on the 3x3 convolutions of the bottlenecks only; 2 with depth 50 or 101
            is torchvision's `wide_resnet50_2` or `wide_resnet101_2`.
        zero_init: starts the last BatchNorm of each block at scale 0. A network that is to be
            measured untrained wants False.
        dtype: `float32` or `bfloat16` computation.
        norm_groups: consecutive parts of the batch that BatchNorm normalises each by itself, as
            so many unsynchronised devices do; 1 is the whole batch.
        remat: computes a block again in the backward pass instead of keeping what is inside.

    Reference: He, Zhang, Ren, Sun 2015, arXiv 1512.03385.
    """

    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 50
    width: int = 1
    stem: Literal['imagenet', 'cifar'] = 'imagenet'
    inner_width: int = 1
    zero_init: bool = True
    dtype: Precision = 'float32'
    norm_groups: int = 1
    remat: bool = False

    def __post_init__(self):
        if self.depth not in LAYOUTS:
            raise ValueError(f'depth is {self.depth}; use one of {", ".join(map(str, LAYOUTS))}')
        if self.width < 1 or self.inner_width < 1:
            raise ValueError(
                f'width is {self.width} and inner_width {self.inner_width}; both are factors from 1'
            )
        if self.inner_width != 1 and LAYOUTS[self.depth][0] == 'basic':
            raise ValueError(
                f'inner_width is {self.inner_width}, but a ResNet-{self.depth} has no bottlenecks; '
                'leave it at 1, or use width'
            )
        if self.stem not in ('imagenet', 'cifar'):
            raise ValueError(f"stem is {self.stem!r}; use 'imagenet' or 'cifar'")
        compute_dtype(self.dtype)
        check_groups(self.norm_groups)
        super().__post_init__()

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """Pooled features, in at least float32.

        Args:
            x: normalised images, any size and number of channels.
            train: batch statistics (and their update) instead of running ones.
        """
        return self.features(x, train)['pool']

    @nn.nowrap
    def smoke(self) -> 'ResNet':
        """The same network at its smallest: depth 10, width 1."""
        return self.clone(depth=10, width=1, inner_width=1)

    @nn.compact
    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """The maps `stem`, `stage1` to `stage4` [n, h, w, c] and `pool` [n, d]."""
        dtype, width = compute_dtype(self.dtype), 64 * self.width
        if self.stem == 'imagenet':
            x = Conv(width, 7, 2, 3, dtype, name='stem_conv')(x)
        else:
            x = Conv(width, 3, 1, 1, dtype, name='stem_conv')(x)
        x = nn.relu(batch_norm(train, dtype, self.norm_groups, name='stem_norm')(x))
        if self.stem == 'imagenet':
            x = max_pool(x)
        maps = {'stem': x}
        kind, counts = LAYOUTS[self.depth]
        block = forgetful(block_of(kind)) if self.remat else block_of(kind)
        for i, count in enumerate(counts):
            for j in range(count):
                x = block(
                    width=width * 2**i,
                    inner_width=self.inner_width,
                    stride=2 if i > 0 and j == 0 else 1,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    norm_groups=self.norm_groups,
                    name=f'stage{i + 1}_block{j}',
                )(x, train)
            maps[f'stage{i + 1}'] = x
        maps = {name: at_least_float32(x) for name, x in maps.items()}
        return {**maps, 'pool': jnp.mean(maps['stage4'], axis=(1, 2))}
