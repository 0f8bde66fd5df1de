"""Pre-activation residual networks (ResNet v2) of bottlenecks that may do without BatchNorm."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.blocks import max_pool
from ssljax.nets.conv import convolve, he_fan_out
from ssljax.nets.norm import batch_norm
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

Norm = Literal['none', 'layer', 'batch']
"""What stands before each ReLU: nothing; LayerNorm over a whole map, image by image; BatchNorm."""


class PreActResNet(nn.Module):
    """A residual network of bottlenecks, x + branch(x), norm and ReLU ahead of every convolution.

    The defaults are the first three stacks of a ResNet-101 v2 without normalisation, as CPC has it:
    1,024 features. Without normalisation the convolutions have biases, and branches start at zero,
    or the maps would grow with every block. Collections: `params` (float32) and, with BatchNorm,
    `batch_stats`.

    Attributes:
        widths: channels of the 3x3 convolutions of a stack, a quarter of what it gives out.
        blocks: bottlenecks per stack, as many numbers as `widths`.
        stem: `imagenet` is 7x7 of stride 2 and a 3x3 max-pool of stride 2; `cifar` is 3x3 of
            stride 1 and no pool. It has as many channels as the first width.
        norm: ahead of each ReLU. `batch` couples what is in a batch: where patches of one image are
            told from each other (CPC), it gives the answer away.
        zero_init: starts the last convolution of each branch at zero.
        dtype: `float32` or `bfloat16` computation.

    Reference: He, Zhang, Ren, Sun 2016, arXiv 1603.05027; van den Oord, Li, Vinyals 2018, arXiv
        1807.03748, section 3.2.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    blocks: tuple[int, ...] = (3, 4, 23)
    stem: Literal['imagenet', 'cifar'] = 'imagenet'
    norm: Norm = 'none'
    zero_init: bool = True
    dtype: Precision = 'float32'

    def __post_init__(self):
        compute_dtype(self.dtype)
        sizes = (*self.widths, *self.blocks)
        if len(self.widths) != len(self.blocks) or not sizes or min(sizes) < 1:
            raise ValueError(
                f'widths {self.widths} and blocks {self.blocks} describe different stacks; give as '
                'many numbers in one as in the other, each at least 1'
            )
        super().__post_init__()

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """Pooled features, in at least float32.

        Args:
            x: normalised images, any size and number of channels.
            train: batch statistics (and their update) instead of running ones, if there are any.
        """
        return self.features(x, train)['pool']

    @nn.nowrap
    def smoke(self) -> 'PreActResNet':
        """The same kind of network with two narrow stacks of one block."""
        widths = tuple(min(width, 8) for width in self.widths[:2])
        return self.clone(widths=widths, blocks=(1,) * len(widths))

    @nn.compact
    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """The maps `stem`, `stack1`, `stack2`, ... [n, h, w, c] and `pool` [n, d]."""
        dtype, bias = compute_dtype(self.dtype), self.norm == 'none'
        if self.stem == 'imagenet':
            x = max_pool(BiasedConv(self.widths[0], 7, 2, bias=bias, dtype=dtype, name='stem')(x))
        else:
            x = BiasedConv(self.widths[0], 3, bias=bias, dtype=dtype, name='stem')(x)
        maps = {'stem': at_least_float32(x)}
        for i, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for j in range(count):
                x = PreActBottleneck(
                    width=width,
                    stride=2 if i > 0 and j == 0 else 1,
                    norm=self.norm,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    name=f'stack{i + 1}_block{j}',
                )(x, train)
            maps[f'stack{i + 1}'] = at_least_float32(x)
        return {**maps, 'pool': jnp.mean(at_least_float32(x), axis=(1, 2))}


class PreActBottleneck(nn.Module):
    """x + (1x1, 3x3, 1x1 to four times the width), each behind norm and ReLU.

    Where the shape changes, a 1x1 convolution of the first activation takes the place of x.

    Attributes:
        width: channels of the 3x3 convolution.
        stride: step of the 3x3 convolution in pixels.
        norm: as in `PreActResNet`.
        zero_init: starts the last convolution at zero.
        dtype: compute precision.
    """

    width: int
    stride: int
    norm: Norm
    zero_init: bool
    dtype: Precision

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n h_out w_out d']:
        """The maps behind the block."""
        out, dtype, bias = 4 * self.width, compute_dtype(self.dtype), self.norm == 'none'

        def active(x, name):
            if self.norm == 'layer':
                # Each image by itself, over space and channels; a scale and an offset a channel.
                x = nn.GroupNorm(1, dtype=dtype, param_dtype=jnp.float32, name=name)(x)
            elif self.norm == 'batch':
                x = batch_norm(train, dtype, name=name)(x)
            return nn.relu(x)

        first = active(x, 'norm1')
        if self.stride != 1 or x.shape[-1] != out:
            x = BiasedConv(out, 1, self.stride, bias=bias, dtype=dtype, name='shortcut')(first)
        y = BiasedConv(self.width, 1, bias=bias, dtype=dtype, name='conv1')(first)
        y = active(y, 'norm2')
        y = BiasedConv(self.width, 3, self.stride, bias=bias, dtype=dtype, name='conv2')(y)
        y = active(y, 'norm3')
        last = nn.initializers.zeros if self.zero_init else he_fan_out
        return x + BiasedConv(out, 1, bias=bias, kernel_init=last, dtype=dtype, name='conv3')(y)


class BiasedConv(nn.Module):
    """A convolution with zeros around the image, and a bias where no norm brings one.

    Attributes:
        width: output channels.
        kernel: side of the kernel in pixels, odd.
        stride: step in pixels.
        bias: whether there is one.
        kernel_init: initialiser of the kernel.
        dtype: as in Linen; None promotes.
    """

    width: int
    kernel: int
    stride: int = 1
    bias: bool = True
    kernel_init: Any = he_fan_out
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h_out w_out d']:
        """The maps of `x`."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.width)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        x = convolve(x, kernel, self.stride, self.kernel // 2)
        if not self.bias:
            return x
        bias = self.param('bias', nn.initializers.zeros, shape[-1:], jnp.float32)
        return x + bias.astype(x.dtype)
