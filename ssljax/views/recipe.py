"""A recipe of views: how a picture becomes what the network sees, host half and device half."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ssljax.core import Batch
from ssljax.data.graph import Tensor
from ssljax.data.picture import Picture
from ssljax.views import device, host

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A frozen description of the views of one example, and the two functions that make them.

    What must happen next to the JPEG (crop, resize, flip) is the host half: TensorFlow ops inside
    the input pipeline, uint8 out. Everything else is the device half: JAX, inside the step. Both
    are pure: the host half draws from the seed it is given, the device half from `batch['key']`,
    where view k of an example uses `fold_in(key, k)`.

    Attributes:
        size: height and width of a view in pixels.
        mean: subtracted from [0, 1] images, one number or one per channel; ImageNet's by default,
            as in most published encoders. (0,) with `std` (1,) feeds plain [0, 1] images, as the
            SimCLR code does.
        std: divides after that, one number or one per channel.
        interpolation: kernel with which windows are resized.
        antialias: a window whose longer side is this many times `size` or more is low-pass filtered
            while it shrinks, which takes four times as long (bilinear: eight). 1 filters always, as
            torchvision does. With 2, large photographs do not alias, and most windows of ImageNet
            are only sampled, as all are in the SimCLR code.
        evaluation_crop: side of the central square kept for evaluation, as a share of the picture's
            shorter side, in (0, 1]. The paper has 0.875 for ImageNet and 1 for CIFAR-10.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal['bicubic', 'bilinear'] = 'bicubic'
    antialias: float = 2.0
    evaluation_crop: float = 0.875

    def views(self) -> dict[str, tuple[int, int]]:
        """The arrays of views by name, each (number of views, size in pixels)."""
        raise NotImplementedError

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """The host half, inside a tf.data graph.

        Args:
            picture: one image, encoded or not.
            seed: int32 or int64 [2], (run seed, global position); all randomness comes from it.

        Returns:
            uint8 [views, size, size, channels] for every name in `views()`.
        """
        raise NotImplementedError

    def on_device(self, batch: Batch) -> Batch:
        """The device half, inside jit: uint8 views become float32 and normalised.

        Args:
            batch: holds the arrays named in `views()` as uint8 [n, v, h, w, c], and `key` [n].
        """
        raise NotImplementedError

    def check(self, channels: int) -> None:
        """Raises ValueError, saying which fields to change, if images do not fit this recipe.

        Args:
            channels: channels of the images to come.
        """
        for name in ('mean', 'std'):
            given = len(getattr(self, name))
            if given not in (1, channels):
                raise ValueError(
                    f'{name} has {given} numbers but the images have {channels} channel(s); '
                    f'give one number, or one per channel'
                )
        if min(self.std) <= 0:
            raise ValueError(f'std is {self.std}; it divides, so it must be above 0')
        if self.size < 1:
            raise ValueError(f'size is {self.size} pixels; it must be 1 or more')
        if self.antialias < 1:
            raise ValueError(f'antialias is {self.antialias}; 1 filters always, so give 1 or more')
        if not 0 < self.evaluation_crop <= 1:
            raise ValueError(f'evaluation_crop is {self.evaluation_crop}; it must be in (0, 1]')

    def evaluation(self, picture: Picture) -> Tensor:
        """The view a picture is evaluated on: central square, resized; uint8 [size, size, c]."""
        return host.center_crop(picture, self.evaluation_crop, self.resize())

    def smoke(self) -> 'Recipe':
        """The same recipe with small views."""
        return dataclasses.replace(self, size=min(self.size, 32))

    def resize(self) -> host.Resize:
        """How this recipe resizes a window."""
        return host.Resize(self.size, self.interpolation, self.antialias)

    def normalize(self, image: UInt8[Array, '*n c']) -> Float[Array, '*n c']:
        """uint8 pixels to the numbers the network is fed: `(image / 255 - mean) / std`, float32."""
        return self.standardize(device.unit_range(image))

    def standardize(self, image: Float[Array, '*n c']) -> Float[Array, '*n c']:
        """Images in [0, 1] to the numbers the network is fed."""
        return (image - jnp.asarray(self.mean, image.dtype)) / jnp.asarray(self.std, image.dtype)

    def denormalize(self, image: Float[Array, '*n c']) -> Float[Array, '*n c']:
        """The inverse of `standardize`: back to [0, 1]."""
        return image * jnp.asarray(self.std, image.dtype) + jnp.asarray(self.mean, image.dtype)
