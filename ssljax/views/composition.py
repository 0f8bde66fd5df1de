"""The views of SimCLR's ablation: any transformations in any order, of one view alone.

All of them run on the device, so that a crop may come behind a blur.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ssljax.core import Batch
from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.picture import Picture
from ssljax.views import device, host
from ssljax.views.device import Image
from ssljax.views.recipe import Recipe

Transformation = Literal['crop', 'cutout', 'color', 'sobel', 'noise', 'blur', 'rotate']
TRANSFORMATIONS: tuple[Transformation, ...] = get_args(Transformation)


@dataclasses.dataclass(frozen=True)
class CompositionViews(Recipe):
    """A random crop, twice: once as it is, once behind the transformations named, in their order.

    The first crop makes images of one size and is the same for both views; a `first_scale` of
    (1.0, 1.0) leaves square pictures whole. The other view stays as it is, or one could not tell
    what a transformation does alone from what the crop does.

    Attributes:
        transformations: of view 0, one after another; none leaves two equal views.
        first_scale: least and greatest share of the picture's area in the first crop.
        scale: likewise, in the transformation `crop`, which flips half of the windows too.
        ratio: least and greatest width / height of either.
        brightness: of `color`; the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise, around the mean grey level.
        saturation: likewise, around the grey image; 0 where images are not RGB.
        hue: amplitude of the shift, as a share of the colour circle; 0 where images are not RGB.
        jitter: probability of these four, applied together in random order.
        gray: probability of dropping the colour; 0 where images are not RGB.
        hole: side of the square that `cutout` takes out, as a share of the view's. Its middle is
            anywhere in the view, so part of it may lie outside; it is filled with the mean.
        noise: greatest standard deviation of Gaussian noise, of images in [0, 1].
        sigma: least and greatest standard deviation of the blur in pixels.

    The paper gives no numbers for `hole` and `noise`: half the side is cutout's own choice for
    CIFAR-10 (arXiv 1708.04552), 0.1 is ours. `rotate` turns by a random multiple of 90 degrees,
    `sobel` keeps the length of the grey level's gradient.

    Reference: Chen, Kornblith, Norouzi, Hinton 2020, arXiv 2002.05709, section 3.1 and figure 5.
    """

    transformations: tuple[Transformation, ...] = ()
    first_scale: tuple[float, float] = (0.08, 1.0)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    jitter: float = 0.8
    gray: float = 0.2
    hole: float = 0.5
    noise: float = 0.1
    sigma: tuple[float, float] = (0.1, 2.0)

    def views(self) -> dict[str, tuple[int, int]]:
        """Two views of `size` pixels, under `image`; the first is the one transformed."""
        return {'image': (2, self.size)}

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """The first crop, resized, twice."""
        one = host.random_views(picture, seed, 1, self._first_crop())
        return {'image': tensorflow().repeat(one, 2, axis=0)}

    def on_device(self, batch: Batch) -> Batch:
        """Transforms view 0 and normalises both."""
        same = device.unit_range(batch['image'][:, 1:])
        changed = device.photometric_views(batch['image'][:, :1], batch['key'], self.transformed)
        return {**batch, 'image': self.standardize(jnp.concatenate([changed, same], axis=1))}

    def transformed(self, image: Image, key: PRNGKeyArray) -> Image:
        """One image in [0, 1] behind all transformations, each with a key of its own."""
        for place, name in enumerate(self.transformations):
            image = self._transform(name, image, jax.random.fold_in(key, place))
        return image

    def check(self, channels: int) -> None:
        """Raises ValueError if a field is out of range or needs RGB and there is none."""
        super().check(channels)
        unknown = [name for name in self.transformations if name not in TRANSFORMATIONS]
        if unknown:
            raise ValueError(
                f'there is no transformation {unknown[0]!r}; there are {", ".join(TRANSFORMATIONS)}'
            )
        self._first_crop().check()
        host.RandomCrop(self.resize(), self.scale, self.ratio).check()
        if not 0 < self.hole <= 1:
            raise ValueError(f'hole is {self.hole}; give a share of the side, in (0, 1]')
        if self.noise < 0:
            raise ValueError(f'noise is {self.noise}; it must be 0 or more')
        blurred = device.Photometric(sigma=self.sigma)
        (self._color() if 'color' in self.transformations else blurred).check(channels)

    def _first_crop(self) -> host.RandomCrop:
        return host.RandomCrop(self.resize(), self.first_scale, self.ratio, flip=0.0)

    def _color(self) -> device.Photometric:
        return device.Photometric(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            jitter=self.jitter,
            gray=self.gray,
            sigma=self.sigma,
        )

    def _transform(self, name: Transformation, image: Image, key: PRNGKeyArray) -> Image:
        match name:
            case 'crop':
                return crop(image, key, self.scale, self.ratio)
            case 'cutout':
                mean = jnp.asarray(self.mean, image.dtype)[:, None, None]
                return cutout(image, key, self.hole, mean)
            case 'color':
                return self._color()(image, key)
            case 'sobel':
                return sobel(image)
            case 'noise':
                return noise(image, key, self.noise)
            case 'blur':
                return device.Photometric(blur=1.0, sigma=self.sigma)(image, key)
            case 'rotate':
                return rotate(image, key)


def crop(
    image: Image, key: PRNGKeyArray, scale: tuple[float, float], ratio: tuple[float, float]
) -> Image:
    """A random window, resized to the size of the image, and in half of the cases flipped.

    A side that comes out longer than the image's is cut to it, where torchvision draws again.

    Args:
        image: in [0, 1].
        key: of the draw.
        scale: least and greatest share of the area.
        ratio: least and greatest width / height, drawn log-uniformly.
    """
    u = jax.random.uniform(key, (5,), jnp.float32)
    area = scale[0] + (scale[1] - scale[0]) * u[0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    root = jnp.exp((low + (high - low) * u[1]) / 2)
    share = jnp.minimum(1, jnp.sqrt(area) * jnp.stack([1 / root, root]))
    size = jnp.asarray(image.shape[1:], jnp.float32)
    first = (1 - share) * u[2:4] * size
    window = jax.image.scale_and_translate(
        image, image.shape, (1, 2), 1 / share, -first / share, method='linear'
    )
    return jnp.clip(jnp.where(u[4] < 0.5, window[:, :, ::-1], window), 0, 1).astype(image.dtype)


def cutout(image: Image, key: PRNGKeyArray, hole: float, fill: jax.Array) -> Image:
    """Fills a square around a random pixel (DeVries and Taylor 2017, arXiv 1708.04552)."""
    _, height, width = image.shape
    side = round(hole * min(height, width))
    first = jax.random.randint(key, (2,), 0, jnp.asarray([height, width])) - side // 2
    inside = lambda n, start: (jnp.arange(n) >= start) & (jnp.arange(n) < start + side)
    hidden = inside(height, first[0])[:, None] & inside(width, first[1])
    return jnp.where(hidden, fill, image)


def sobel(image: Image) -> Image:
    """The length of the grey level's gradient, a quarter of the Sobel filters' sums, in [0, 1]."""
    x = jnp.pad(device.gray_level(image), [(0, 0), (1, 1), (1, 1)], mode='edge')
    smooth = lambda a, axis: sum(
        weight * jax.lax.slice_in_dim(a, k, k + a.shape[axis] - 2, axis=axis)
        for k, weight in enumerate((1, 2, 1))
    )
    slope = lambda a, axis: (
        jax.lax.slice_in_dim(a, 2, a.shape[axis], axis=axis)
        - jax.lax.slice_in_dim(a, 0, a.shape[axis] - 2, axis=axis)
    )
    across, down = slope(smooth(x, 1), 2), slope(smooth(x, 2), 1)
    length = jnp.hypot(across, down) / 4
    return jnp.broadcast_to(jnp.clip(length, 0, 1), image.shape)


def noise(image: Image, key: PRNGKeyArray, greatest: float) -> Image:
    """Adds Gaussian noise of a random standard deviation up to `greatest`."""
    k_scale, k_noise = jax.random.split(key)
    scale = greatest * jax.random.uniform(k_scale, (), jnp.float32)
    added = scale * jax.random.normal(k_noise, image.shape, jnp.float32)
    return jnp.clip(image + added.astype(image.dtype), 0, 1)


def rotate(image: Image, key: PRNGKeyArray) -> Image:
    """Turns a square image by a random multiple of 90 degrees."""
    turned = jnp.stack([jnp.rot90(image, k, axes=(1, 2)) for k in range(4)])
    return turned[jax.random.randint(key, (), 0, 4)]
