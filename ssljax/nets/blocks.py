"""The residual blocks, with the stride in the 3x3 convolution (version 1.5, as torchvision's)."""

from typing import Any, Literal

from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.conv import Conv
from ssljax.nets.norm import batch_norm
from ssljax.nets.precision import Precision, compute_dtype

Shortcut = Literal['conv', 'pool']
"""How a shortcut is brought to another shape: a strided 1x1 convolution, or a mean over 2x2 pixels
and then a 1x1 convolution, which looks at every pixel (ResNet-D, arXiv 1812.01187)."""


class Block(nn.Module):
    """A residual block: relu(shortcut(x) + branch(x)); subclasses give the branch.

    Attributes:
        width: channels of the 3x3 convolutions.
        inner_width: further factor on the 3x3 of a bottleneck (2 in torchvision's wide ResNets).
        stride: step of the block in pixels.
        zero_init: starts the last BatchNorm of the branch at scale 0, so that the block begins as
            its shortcut (arXiv 1706.02677, section 5.1).
        shortcut: how the shortcut changes shape, where it must.
        dtype: compute precision.
        norm_groups: parts of the batch that BatchNorm normalises each by itself.
    """

    width: int
    inner_width: int = 1
    stride: int = 1
    zero_init: bool = False
    shortcut: Shortcut = 'conv'
    dtype: Precision = 'float32'
    norm_groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n h_out w_out d']:
        """The maps behind the block."""
        y = self.branch(x, train)
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            stride = self.stride
            if self.shortcut == 'pool' and stride > 1:
                x, stride = mean_pool(x, stride), 1
            x = Conv(y.shape[-1], 1, stride, dtype=self.linen_dtype, name='shortcut_conv')(x)
            x = self.norm(train, name='shortcut_norm')(x)
        return nn.relu(x + y)

    def branch(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n h_out w_out d']:
        """The learned part of the block."""
        raise NotImplementedError

    def norm(self, train: bool, **fields: Any) -> nn.Module:
        """A BatchNorm of this block."""
        return batch_norm(train, self.linen_dtype, self.norm_groups, **fields)

    @property
    def linen_dtype(self):
        """The dtype that Linen modules are given."""
        return compute_dtype(self.dtype)

    @property
    def last_scale(self):
        """The initialiser of the last scale of the branch."""
        return nn.initializers.zeros if self.zero_init else nn.initializers.ones


class BasicBlock(Block):
    """Two 3x3 convolutions (ResNet-18 and 34)."""

    def branch(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n h_out w_out d']:
        """3x3, 3x3."""
        dtype = self.linen_dtype
        x = Conv(self.width, 3, self.stride, 1, dtype, name='conv1')(x)
        x = nn.relu(self.norm(train, name='norm1')(x))
        x = Conv(self.width, 3, 1, 1, dtype, name='conv2')(x)
        return self.norm(train, name='norm2', scale_init=self.last_scale)(x)


class Bottleneck(Block):
    """1x1 to the width, 3x3, 1x1 to four times the width (ResNet-50 and deeper)."""

    def branch(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n h_out w_out d']:
        """1x1, 3x3, 1x1."""
        dtype, inner = self.linen_dtype, self.width * self.inner_width
        x = Conv(inner, 1, dtype=dtype, name='conv1')(x)
        x = nn.relu(self.norm(train, name='norm1')(x))
        x = Conv(inner, 3, self.stride, 1, dtype, name='conv2')(x)
        x = nn.relu(self.norm(train, name='norm2')(x))
        x = Conv(4 * self.width, 1, dtype=dtype, name='conv3')(x)
        return self.norm(train, name='norm3', scale_init=self.last_scale)(x)


def mean_pool(x: Float[Array, 'n h w c'], size: int) -> Float[Array, 'n h_out w_out c']:
    """The mean of each `size` x `size` square; squares over the edge count only what is there."""
    edges = ((0, -x.shape[1] % size), (0, -x.shape[2] % size))
    window = (size, size)
    return nn.avg_pool(x, window, window, edges, count_include_pad=False).astype(x.dtype)


def max_pool(x: Float[Array, 'n h w c']) -> Float[Array, 'n h_out w_out c']:
    """The maximum over 3x3 pixels every 2, padded by 1 on each side, as torchvision's stem."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def block_of(kind: Literal['basic', 'bottleneck']) -> type[Block]:
    """The block of that name.

    Raises:
        ValueError: for another name.
    """
    kinds = {'basic': BasicBlock, 'bottleneck': Bottleneck}
    if kind not in kinds:
        raise ValueError(f'block is {kind!r}; use one of {", ".join(map(repr, kinds))}')
    return kinds[kind]


def forgetful(block: type[Block]) -> type[Block]:
    """The same block, computed again in the backward pass instead of keeping what is inside.

    Its running statistics are updated once: those of the second pass are dropped.
    """
    # Argument 2 is `train`, behind the module and its input.
    return nn.remat(block, static_argnums=(2,))
