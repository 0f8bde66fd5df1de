"""Network in Network, as RotNet uses it on CIFAR-10: 1x1 convolutions behind each larger one."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.blocks import max_pool
from ssljax.nets.conv import Conv
from ssljax.nets.norm import batch_norm
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

WIDTHS = ((192, 160, 96), (192, 192, 192))
"""Channels of the three convolutions of the first block, and of every later one."""


class NIN(nn.Module):
    """Blocks of three convolutions without bias, each with BatchNorm and ReLU, then the mean map.

    The first convolution of a block is 5x5 in blocks 1 and 2 and 3x3 later, the others are 1x1.
    Block 1 ends in a max-pool, block 2 in a mean-pool, both over 3x3 pixels every 2. Four blocks
    are those of RotNet, whose best features are those of block 2. Collections: `params` (float32)
    and `batch_stats`.

    Attributes:
        blocks: number of blocks, at least 2.
        dtype: `float32` or `bfloat16` computation.

    Reference: Lin, Chen, Yan 2013, arXiv 1312.4400; Gidaris, Singh, Komodakis 2018, arXiv
    1803.07728, section 3.1.
    """

    blocks: int = 4
    dtype: Precision = 'float32'

    def __post_init__(self):
        if self.blocks < 2:
            raise ValueError(f'blocks is {self.blocks}; use 2 or more, as RotNet 3 to 5')
        compute_dtype(self.dtype)
        super().__post_init__()

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """Pooled features of the last block, in at least float32.

        Args:
            x: normalised images, any size and number of channels.
            train: batch statistics (and their update) instead of running ones.
        """
        return self.features(x, train)['pool']

    @nn.nowrap
    def smoke(self) -> 'NIN':
        """The same network with two blocks."""
        return self.clone(blocks=2)

    @nn.compact
    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """The maps `block1`, `block2`, ... [n, h, w, c] and `pool` [n, d]."""
        dtype, maps = compute_dtype(self.dtype), {}
        for i in range(self.blocks):
            side = 5 if i < 2 else 3
            for j, width in enumerate(WIDTHS[min(i, 1)]):
                kernel = side if j == 0 else 1
                name = f'block{i + 1}_conv{j + 1}'
                x = Conv(width, kernel, 1, kernel // 2, dtype, name=name)(x)
                x = nn.relu(batch_norm(train, dtype, name=f'block{i + 1}_norm{j + 1}')(x))
            if i == 0:
                x = max_pool(x)
            elif i == 1:
                # Zeros beyond the edge count, as in the authors' framework.
                x = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            maps[f'block{i + 1}'] = at_least_float32(x)
        return {**maps, 'pool': jnp.mean(at_least_float32(x), axis=(1, 2))}
