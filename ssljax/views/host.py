"""Host half of the views: what must happen next to the JPEG, as stateless TensorFlow ops.

All of it is graph-only and draws once per picture: at 32 pixels a view costs no more than its ops'
overhead.
"""

import dataclasses
import math
from typing import Literal

from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.picture import Picture

TRIES = 10
"""Windows drawn before the central fallback is taken, as in torchvision."""

DRAWS = 2 * TRIES + 3
"""Uniform numbers a view needs: areas, aspects, top, left, flip."""


@dataclasses.dataclass(frozen=True)
class Resize:
    """How a window becomes a view.

    Attributes:
        size: height and width of the result in pixels.
        interpolation: bicubic is Keys' cubic with a = -0.5; pixel centres are at half integers.
        antialias: windows whose longer side is at least this many times `size` are filtered.
    """

    size: int
    interpolation: Literal['bicubic', 'bilinear'] = 'bicubic'
    antialias: float = 2.0

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [h, w, c] to float32 [size, size, c]; bicubic may leave [0, 255]."""
        tf = tensorflow()

        cubic = self.interpolation == 'bicubic'
        sampled = tf.raw_ops.ResizeBicubic if cubic else tf.raw_ops.ResizeBilinear
        to = [self.size, self.size]
        images = image[None]
        sides = tf.shape(image)[:2]

        def sample():
            return sampled(images=images, size=to, half_pixel_centers=True)

        def smooth():
            return tf.raw_ops.ScaleAndTranslate(
                images=images,
                size=to,
                scale=self.size / tf.cast(sides, tf.float32),
                translation=[0.0, 0.0],
                kernel_type='keyscubic' if cubic else 'triangle',
                antialias=True,
            )

        # The filter is written for any ratio and is slow even where it has nothing to remove.
        large = math.ceil(self.antialias * self.size)
        return tf.cond(tf.reduce_max(sides) >= large, smooth, sample)[0]


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Random resized crop (Szegedy et al. 2014, arXiv 1409.4842) and horizontal flip.

    Attributes:
        resize: what becomes of a window.
        scale: least and greatest share of the picture's area, drawn uniformly.
        ratio: least and greatest width / height, drawn log-uniformly.
        flip: probability of a left-right flip.
        square: instead of an area and a ratio, the side of a square as a share of the picture's
            shorter side: what resizing that side to 300 pixels and cutting 256 comes to.
    """

    resize: Resize
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    square: float | None = None

    def check(self) -> None:
        """Raises ValueError if a field is out of range."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f'flip is {self.flip}; a probability is in [0, 1]')
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f'scale is {self.scale}; give shares of the area, 0 < low <= high <= 1'
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f'ratio is {self.ratio}; give width / height, 0 < low <= high')
        if self.square is not None and not 0 < self.square <= 1:
            raise ValueError(
                f'square is {self.square}; give a share of the shorter side in (0, 1], or None'
            )


def random_views(picture: Picture, seed: Tensor, count: int, crop: RandomCrop) -> Tensor:
    """Cuts, resizes and flips `count` random views of a picture.

    Args:
        picture: one image.
        seed: integers [2]; the same seed gives the same views, and view k does not depend on
            `count`.
        count: number of views.
        crop: the distribution they are drawn from.

    Returns:
        uint8 [count, size, size, channels].
    """
    tf = tensorflow()

    # Decoding once beats decoding two windows: they overlap, and the entropy-coded bits above a
    # window have to be read in either case.
    picture = picture.decoded() if count > 1 else picture
    draws = tf.random.stateless_uniform([count, DRAWS], seed, alg='philox')
    windows = sample_windows(*picture.shape(), draws[:, :-1], crop)
    views = [crop.resize(picture.crop(*tf.unstack(windows[k]))) for k in range(count)]
    views = to_uint8(tf.stack(views))
    if crop.flip:
        # `Reverse` takes its axes at run time: no branch, and four times faster than a selection
        # between a view and its slice of stride -1.
        axes = tf.pad(draws[:, -1:] < crop.flip, [[0, 0], [1, 1]])
        views = [tf.raw_ops.Reverse(tensor=views[k], dims=axes[k]) for k in range(count)]
        views = tf.stack(views)
    size = crop.resize.size
    return tf.ensure_shape(views, [count, size, size, picture.channels])


def sample_windows(height: Tensor, width: Tensor, draws: Tensor, crop: RandomCrop) -> Tensor:
    """Draws windows for a random resized crop, torchvision's rule.

    Up to ten windows are drawn and the first that fits in the picture is placed uniformly; if none
    fits, the largest central window whose aspect lies within `crop.ratio` is taken.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        draws: uniform numbers in [0, 1), [v, 2 * TRIES + 2].
        crop: gives `scale` and `ratio`, or `square`, which always fits.

    Returns:
        int32 [v, 4]: top, left, height, width, always inside the picture.
    """
    tf = tensorflow()

    sides = tf.cast(tf.stack([height, width]), tf.float32)
    area, aspect, place = tf.split(draws, [TRIES, TRIES, 2], axis=1)
    (low, high), (narrow, wide) = crop.scale, crop.ratio
    edge = tf.sqrt((low + (high - low) * area) * tf.reduce_prod(sides))
    stretch = tf.exp((math.log(narrow) + math.log(wide / narrow) * aspect) / 2)
    windows = tf.stack([edge / stretch, edge * stretch], 2)
    if crop.square is not None:
        windows = tf.fill(tf.shape(windows), crop.square * tf.reduce_min(sides))
    windows = tf.maximum(tf.round(windows), 1.0)

    # The fallback stands last and always fits, so the first that fits always exists.
    fallback = tf.minimum(sides, tf.round(sides[::-1] * [1 / narrow, wide]))
    fallback = tf.broadcast_to(tf.maximum(fallback, 1.0), [tf.shape(draws)[0], 1, 2])
    windows = tf.concat([windows, fallback], 1)
    first = tf.argmax(tf.reduce_all(windows <= sides, 2), 1, output_type=tf.int32)
    window = tf.gather(windows, first, axis=1, batch_dims=1)

    room = sides - window
    corner = tf.where((first == TRIES)[:, None], room / 2, place * (room + 1))
    return tf.cast(tf.concat([tf.floor(corner), window], 1), tf.int32)


def center_crop(picture: Picture, share: float, resize: Resize) -> Tensor:
    """The central square, `share` of the shorter side, resized: uint8 [size, size, channels]."""
    tf = tensorflow()

    height, width = picture.shape()
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.cast(tf.maximum(tf.round(share * shorter), 1.0), tf.int32)
    view = resize(picture.crop((height - side) // 2, (width - side) // 2, side, side))
    return tf.ensure_shape(to_uint8(view), [resize.size, resize.size, picture.channels])


def to_uint8(image: Tensor) -> Tensor:
    """Float pixels to the nearest uint8, clipped to [0, 255]."""
    tf = tensorflow()

    return tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8)
