"""Device half of the views: what colours and blurs, as JAX ops on one image, batched by `vmap`.

Images here are [c, h, w] in [0, 1], so that a row of pixels is contiguous: twice as fast on a CPU
as [h, w, c], and of no concern where XLA chooses the layout. Every op keeps the range. Definitions
are torchvision's for float images.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

LUMA = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in the grey level (ITU-R BT.601)."""

AT_ONCE = 20_000_000
"""Bytes of float32 images that a device changes at a time. The ops in between make some thirty
arrays of that size; a v5e keeps those of 16 pairs of 224 pixels (19 MB) on the chip, those of 32
pairs no longer. 256 pairs of SimCLR's recipe send 2.1 GB through main memory so, 20.4 at once.
Small pictures and batches are one part."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

Image = Float[Array, 'c h w']
Scalar = Float[Array, ''] | float


def unit_range(image: UInt8[Array, '*n']) -> Float[Array, '*n']:
    """uint8 pixels to float32 in [0, 1]."""
    # Not a division: XLA would turn it into this, but only under jit.
    return image.astype(jnp.float32) * np.float32(1 / 255)


def gray_level(image: Image) -> Float[Array, '1 h w']:
    """The luma of an RGB image; the mean over the channels of any other."""
    if image.shape[0] != 3:
        return image.mean(axis=0, keepdims=True)
    red, green, blue = LUMA
    return red * image[:1] + green * image[1:2] + blue * image[2:]


def grayscale(image: Image) -> Image:
    """The grey level, copied to every channel."""
    return jnp.broadcast_to(gray_level(image), image.shape)


def blend(image: Image, other: Array | float, factor: Scalar) -> Image:
    """`factor * image + (1 - factor) * other`, clipped; a factor of 1 changes no bit."""
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """Multiplies by `factor`: a blend with black."""
    return blend(image, 0.0, factor)


def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Blends with the mean grey level of the image, one scalar."""
    return blend(image, gray_level(image).mean(), factor)


def adjust_saturation(image: Image, factor: Scalar) -> Image:
    """Blends with the image's own grey level."""
    return blend(image, gray_level(image), factor)


def shift_hue(image: Float[Array, '3 h w'], shift: Scalar) -> Float[Array, '3 h w']:
    """Turns the hue of HSV by `shift` of the colour circle, -0.5 to 0.5; value and chroma stay.

    With value V (the largest channel), chroma C (largest minus smallest) and hue H in sixths of the
    circle, channel k of an HSV colour is `V - C clip(|(H - 2k) mod 6| - 1, 0, 1)`, the distance
    being taken the short way round: one expression instead of six cases.
    """
    red, green, blue = image
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    # A grey pixel has no hue: chroma 0 makes it stay whatever the hue comes out as.
    per_chroma = 1 / jnp.where(chroma > 0, chroma, 1)
    # Channels are compared with each other, not with `value`: where a compiler computes one twice
    # and rounds apart, none would equal the largest; of two that are nearly equal either will do.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * per_chroma,
        jnp.where(green >= blue, 2 + (blue - red) * per_chroma, 4 + (red - green) * per_chroma),
    )
    distance = hue + 6 * shift - jnp.arange(0, 6, 2, dtype=image.dtype)[:, None, None]
    distance = jnp.abs(distance - 6 * jnp.round(distance / 6))
    return jnp.clip(value - chroma * jnp.clip(distance - 1, 0, 1), 0, 1)


def jitter(
    image: Image, factors: Float[Array, '3'], shift: Scalar | None, order: Int[Array, '4']
) -> Image:
    """Brightness, contrast, saturation and hue, one after another in a given order.

    The first three are blends and differ only in what they blend with, so every one of the four
    places does one blend and one hue shift and keeps one of them: 24 orders without a branch.

    Args:
        image: in [0, 1].
        factors: of brightness, contrast and saturation; 1 leaves the image as it is.
        shift: of the hue, or None to leave it out (as images that are not RGB must).
        order: a permutation of (BRIGHTNESS, CONTRAST, SATURATION, HUE).
    """
    factors = jnp.append(factors, 1)
    for place in range(4):
        op = order[place]
        gray = gray_level(image)
        other = jnp.where(op == CONTRAST, gray.mean(), gray)
        other = jnp.where(op == BRIGHTNESS, 0, other)
        blended = blend(image, other, factors[op])
        image = blended if shift is None else jnp.where(op == HUE, shift_hue(image, shift), blended)
    return image


def gaussian_blur(image: Image, sigma: Scalar, radius: int) -> Image:
    """Separable Gaussian blur; the image is mirrored at its edges (the edge pixel not repeated).

    Args:
        image: in [0, 1].
        sigma: standard deviation in pixels; 0 changes no bit.
        radius: taps on either side of the middle one.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=image.dtype)
    taps = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    # Shifted sums: on a CPU several times faster than banded matrix products, and far more so than
    # a convolution with one kernel per example. Without the barrier XLA computes all that led to
    # the image anew for every tap that reads it: ten times the whole recipe at 28 pixels.
    for axis in (1, 2):
        width = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = lax.optimization_barrier(jnp.pad(image, width, mode='reflect'))
        end = image.shape[axis]
        image = sum(
            tap * lax.slice_in_dim(padded, k, k + end, axis=axis) for k, tap in enumerate(taps)
        )
    return jnp.clip(image, 0, 1)


def blur_radius(size: int) -> int:
    """Radius of the blur for views of `size` pixels: SimCLR's size // 10 // 2, but at least 1."""
    return max(1, size // 10 // 2)


def solarize(image: Image) -> Image:
    """Inverts what is 0.5 or brighter."""
    return jnp.where(image < 0.5, image, 1 - image)


@dataclasses.dataclass(frozen=True)
class Photometric:
    """What happens to the colours of one view: jitter, grey, blur, solarise.

    In this order; `gray_first` puts grey ahead of the jitter.

    Attributes:
        brightness: factor uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise; needs RGB.
        hue: shift uniform in [-hue, hue] of the colour circle; needs RGB.
        jitter: probability of these four, applied together in random order.
        gray: probability of dropping the colour; needs RGB.
        blur: probability of a Gaussian blur.
        solarize: probability of solarisation.
        sigma: least and greatest standard deviation of the blur in pixels.
        gray_first: whether the colour is dropped ahead of the jitter, not behind it.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    gray_first: bool = False

    def __call__(self, image: Image, key: PRNGKeyArray) -> Image:
        """Draws once from `key` and applies what was drawn to one image in [0, 1]."""
        # Every number has its place in one draw, so switching one op off leaves the others alone.
        u = jax.random.uniform(key, (13,), jnp.float32).astype(image.dtype)
        applied = u[:4] < jnp.asarray([self.jitter, self.gray, self.blur, self.solarize])
        if self.gray and self.gray_first:
            image = jnp.where(applied[1], grayscale(image), image)
        if self.jitter:
            spread = jnp.asarray([self.brightness, self.contrast, self.saturation], image.dtype)
            low = jnp.maximum(0, 1 - spread)
            factors = low + (1 + spread - low) * u[4:7]
            shift = self.hue * (2 * u[7] - 1) if self.hue else None
            jittered = jitter(image, factors, shift, jnp.argsort(u[8:12]))
            image = jnp.where(applied[0], jittered, image)
        if self.gray and not self.gray_first:
            image = jnp.where(applied[1], grayscale(image), image)
        if self.blur:
            low, high = self.sigma
            sigma = jnp.where(applied[2], low + (high - low) * u[12], 0)
            image = gaussian_blur(image, sigma, blur_radius(image.shape[1]))
        if self.solarize:
            image = jnp.where(applied[3], solarize(image), image)
        return image

    def check(self, channels: int) -> None:
        """Raises ValueError if a field is out of range, or needs RGB and there is none."""
        for name in ('jitter', 'gray', 'blur', 'solarize'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is {getattr(self, name)}; a probability is in [0, 1]')
        for name in ('brightness', 'contrast', 'saturation'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be 0 or more')
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f'hue shifts by up to {self.hue}; half the circle, 0.5, is the most')
        if not 0 <= self.sigma[0] <= self.sigma[1]:
            raise ValueError(f'sigma is {self.sigma}; give pixels, 0 <= low <= high')
        colored = {
            'saturation': self.jitter and self.saturation,
            'hue': self.jitter and self.hue,
            'gray': self.gray,
        }
        colored = [name for name, used in colored.items() if used]
        if channels != 3 and colored:
            raise ValueError(
                f'{", ".join(colored)} need RGB images and these have {channels} channel(s); '
                f'set {", ".join(f"{name} = 0" for name in colored)}'
            )


def photometric_views(
    images: UInt8[Array, 'n v h w c'], keys: Key[Array, 'n'], change: Callable
) -> Float[Array, 'n v h w c']:
    """Applies `change` to every view with a key of its own.

    Args:
        images: views of n examples.
        keys: one per example; view k uses `fold_in(key, k)`.
        change: (image [c, h, w] in [0, 1], key) -> image, such as `Photometric`.

    Returns:
        Views in [0, 1], float32.
    """

    def view(image, key, number):
        planes = jnp.moveaxis(unit_range(image), -1, 0)
        return jnp.moveaxis(change(planes, jax.random.fold_in(key, number)), 0, -1)

    numbers = jnp.arange(images.shape[1])
    views = jax.vmap(view, in_axes=(0, None, 0))
    examples = jax.vmap(views, in_axes=(0, 0, None))
    devices = max(1, jax.sharding.get_abstract_mesh().size)  # 0 where no mesh is set
    parts = _parts(images.shape[0], images.size, devices)
    if parts == 1:
        return examples(images, keys, numbers)
    # Device by device, and of each one part after the other: nothing moves, not even locally.
    split = lambda a: a.reshape(devices, parts, -1, *a.shape[1:]).swapaxes(0, 1)
    every = jax.vmap(examples, in_axes=(0, 0, None))
    out = lax.map(lambda part: every(*part, numbers), (split(images), split(keys)))
    return out.swapaxes(0, 1).reshape(images.shape)


def _parts(examples: int, numbers: int, devices: int) -> int:
    """The least number of equal parts in which no device changes more than `AT_ONCE` at a time."""
    own, left = divmod(examples, devices)
    if left:
        return 1
    least = -(-4 * numbers // devices // AT_ONCE)
    return next((parts for parts in range(max(1, least), own) if own % parts == 0), own)
