"""The networks of the context encoder: DCGAN's convolutions, from an image, to one, and a judge.

All convolutions are 4x4, halve or double the side, have no bias (the authors' code keeps theirs at
0) and start from N(0, 0.02); BatchNorms start with scales from N(1, 0.02).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from ssljax.nets.norm import batch_norm
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

SLOPE = 0.2
"""Of the leaky ReLUs below 0."""

small_normal = nn.initializers.normal(0.02)


def near_one(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws from N(1, 0.02)."""
    return 1 + small_normal(key, shape, dtype)


class DownConvs(nn.Module):
    """Convolutions that halve the side, leaky ReLUs, BatchNorm in all but the first.

    Attributes:
        widths: channels of the convolutions.
        dtype: compute precision.
    """

    widths: tuple[int, ...]
    dtype: Precision = 'float32'

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> list[Float[Array, 'n ...']]:
        """The maps behind each convolution."""
        if min(x.shape[1:3]) < 2 ** len(self.widths):
            raise ValueError(
                f'{len(self.widths)} convolutions that halve the side leave nothing of '
                f'{x.shape[1]} x {x.shape[2]} pixels; give fewer widths or larger images'
            )
        dtype, maps = compute_dtype(self.dtype), []
        for i, width in enumerate(self.widths):
            conv = nn.Conv(
                width,
                (4, 4),
                (2, 2),
                ((1, 1), (1, 1)),
                use_bias=False,
                dtype=dtype,
                kernel_init=small_normal,
                name=f'conv{i + 1}',
            )
            x = conv(x)
            if i > 0:
                x = batch_norm(train, dtype, scale_init=near_one, name=f'norm{i + 1}')(x)
            x = nn.leaky_relu(x, SLOPE)
            maps.append(x)
        return maps


class ContextNet(nn.Module):
    """The authors' encoder of an image with a hole: convolutions, then one number per idea.

    The last layer sees the whole map at once, so that its weights fit one size of image. The
    defaults are those for 128 pixels. Collections: `params` (float32) and `batch_stats`.

    Attributes:
        widths: channels of the convolutions.
        bottleneck: features. Paper: 4000.
        dtype: `float32` or `bfloat16` computation.
    """

    widths: tuple[int, ...] = (64, 64, 128, 256, 512)
    bottleneck: int = 4000
    dtype: Precision = 'float32'

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """The bottleneck's features, in at least float32.

        Args:
            x: normalised images.
            train: batch statistics (and their update) instead of running ones.
        """
        return self.features(x, train)['pool']

    @nn.nowrap
    def smoke(self) -> 'ContextNet':
        """The same network with narrow layers."""
        widths = tuple(min(width, 16) for width in self.widths)
        return self.clone(widths=widths, bottleneck=min(self.bottleneck, 32))

    @nn.compact
    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """The maps `conv1`, `conv2`, ... [n, h, w, c] and `pool`, the bottleneck [n, d]."""
        dtype = compute_dtype(self.dtype)
        maps = DownConvs(self.widths, self.dtype, name='down')(x, train)
        named = {f'conv{i + 1}': at_least_float32(y) for i, y in enumerate(maps)}
        y = dense(self.bottleneck, dtype, 'bottleneck')(flat(maps[-1]))
        y = batch_norm(train, dtype, scale_init=near_one, name='norm')(y)
        return {**named, 'pool': at_least_float32(nn.leaky_relu(y, SLOPE))}


class ChannelwiseDense(nn.Module):
    """Connects every pixel of a channel to every pixel of that channel.

    For c maps of n x n pixels, c n^4 weights instead of the c^2 n^4 of a full connection; a 1x1
    convolution behind it lets the channels talk. Paper: section 3.1.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h w c']:
        """The mixed maps."""
        n, height, width, channels = x.shape
        pixels = height * width
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=1, batch_axis=0)
        kernel = self.param('kernel', init, (channels, pixels, pixels), jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        y = jnp.einsum('npc,cpq->nqc', x.reshape(n, pixels, channels), kernel)
        return y.reshape(x.shape)


class Decoder(nn.Module):
    """From an encoder's features to an image in [-1, 1]: convolutions that double the side.

    Pooled features are first laid out as a map by one layer (a 4x4 transposed convolution of one
    pixel, in the paper); maps are mixed by a channel-wise layer and a 1x1 convolution. Each further
    width doubles the side once, and so does the last layer: L widths want an image of a multiple
    of 2^L pixels.

    Attributes:
        widths: channels of the first map and of those behind each doubling but the last. Paper:
            (512, 256, 128, 64) for 64 pixels, one more 64 for 128.
        dtype: `float32` or `bfloat16` computation.
    """

    widths: tuple[int, ...] = (512, 256, 128, 64)
    dtype: Precision = 'float32'

    @nn.nowrap
    def smoke(self) -> 'Decoder':
        """The same network with narrow layers."""
        return self.clone(widths=tuple(min(width, 16) for width in self.widths))

    @nn.compact
    def __call__(
        self, x: Float[Array, 'n ...'], shape: tuple[int, int], train: bool
    ) -> Float[Array, 'n h w c']:
        """Images in [-1, 1], in at least float32.

        Args:
            x: pooled features [n, d] or maps [n, h, w, d].
            shape: the image's side in pixels and its channels.
            train: batch statistics (and their update) instead of running ones.

        Raises:
            ValueError: if the side is no multiple of 2^L, or maps are not of its 2^L-th part.
        """
        dtype, (side, channels) = compute_dtype(self.dtype), shape
        start, left = divmod(side, 2 ** len(self.widths))
        if left or not start:
            raise ValueError(
                f'a decoder of widths {self.widths} doubles the side {len(self.widths)} times, '
                f'which does not lead to {side} pixels; give fewer widths or other pixels'
            )
        if x.ndim == 2:
            x = dense(start * start * self.widths[0], dtype, 'start')(x)
            x = x.reshape(x.shape[0], start, start, self.widths[0])
        elif x.shape[1:3] == (start, start):
            x = ChannelwiseDense(dtype, name='mix')(x)
            x = nn.Conv(self.widths[0], (1, 1), use_bias=False, dtype=dtype, name='start')(x)
        else:
            raise ValueError(
                f'maps of {x.shape[1]} x {x.shape[2]} pixels do not grow to {side} by '
                f'{len(self.widths)} doublings, those of {start} x {start} do; take another layer '
                'of the encoder or other widths'
            )
        x = nn.relu(batch_norm(train, dtype, scale_init=near_one, name='norm1')(x))
        for i, width in enumerate(self.widths[1:], start=2):
            x = up_conv(width, dtype, f'up{i}')(x)
            x = nn.relu(batch_norm(train, dtype, scale_init=near_one, name=f'norm{i}')(x))
        return jnp.tanh(at_least_float32(up_conv(channels, dtype, 'image')(x)))


class Discriminator(nn.Module):
    """Is this image real? Convolutions that halve the side, then one number for the whole map.

    Attributes:
        widths: channels of the convolutions. Paper: (64, 128, 256, 512) for 64 pixels, one more 64
            in front for 128.
        dtype: `float32` or `bfloat16` computation.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    dtype: Precision = 'float32'

    @nn.nowrap
    def smoke(self) -> 'Discriminator':
        """The same network with narrow layers."""
        return self.clone(widths=tuple(min(width, 16) for width in self.widths))

    @nn.compact
    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, ' n']:
        """Logits: above 0 for "real". In at least float32.

        Args:
            x: images.
            train: batch statistics (and their update) instead of running ones.
        """
        x = DownConvs(self.widths, self.dtype, name='down')(x, train)[-1]
        logits = dense(1, compute_dtype(self.dtype), 'logit')(flat(x))
        return at_least_float32(logits[:, 0])


def dense(width: int, dtype: Any, name: str) -> nn.Dense:
    """A layer without bias: a convolution that covers its whole map, or comes of one pixel."""
    return nn.Dense(width, use_bias=False, dtype=dtype, kernel_init=small_normal, name=name)


def up_conv(width: int, dtype: Any, name: str) -> nn.ConvTranspose:
    """A transposed convolution that doubles the side."""
    return nn.ConvTranspose(
        width, (4, 4), (2, 2), use_bias=False, dtype=dtype, kernel_init=small_normal, name=name
    )


def flat(x: Float[Array, 'n h w c']) -> Float[Array, 'n d']:
    """Maps as vectors."""
    return x.reshape(x.shape[0], -1)
