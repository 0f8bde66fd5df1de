"""One image inside a `tf.data` graph, as a recipe's host half sees it."""

import dataclasses

from ssljax.data.graph import Tensor, tensorflow


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that is still encoded (JPEG, PNG) or already decoded.

    A recipe asks for `shape`, `crop` and `pixels` and need not know which it is. Where a JPEG is
    cropped encoded, its edge pixels may differ by a few grey levels from the same crop of the
    decoded image, because the decoder interpolates colour only inside the crop. The EXIF
    orientation of a photograph is not applied.

    Attributes:
        data: a scalar string tensor (the file's bytes) or a uint8 tensor [h, w, c].
        channels: 1 to 4; what an encoded image is converted to (4 only from PNG).
    """

    data: Tensor
    channels: int

    @property
    def encoded(self) -> bool:
        """Whether `data` holds the bytes of a file."""
        return self.data.dtype == tensorflow().string

    def shape(self) -> tuple[Tensor, Tensor]:
        """Height and width, int32 scalars; of an encoded image only the header is read."""
        tf = tensorflow()
        if not self.encoded:
            shape = tf.shape(self.data)
            return shape[0], shape[1]
        shape = tf.cond(
            tf.io.is_jpeg(self.data),
            lambda: tf.io.extract_jpeg_shape(self.data)[:2],
            lambda: _png_shape(self.data),
        )
        return shape[0], shape[1]

    def crop(self, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """The window with its upper left corner at (`top`, `left`), uint8 [height, width, c].

        Args:
            top: first row, int32.
            left: first column, int32.
            height: rows; the window has to lie inside the image.
            width: columns.
        """
        tf = tensorflow()

        def cut(pixels: Tensor) -> Tensor:
            return tf.slice(pixels, [top, left, 0], [height, width, self.channels])

        if not self.encoded:
            window = cut(self.data)
        elif self.channels not in (1, 3):
            window = cut(self.pixels())
        else:
            window = tf.cond(
                tf.io.is_jpeg(self.data),
                lambda: tf.image.decode_and_crop_jpeg(
                    self.data,
                    tf.stack([top, left, height, width]),
                    channels=self.channels,
                    dct_method='INTEGER_ACCURATE',
                ),
                lambda: cut(self.pixels()),
            )
        return tf.ensure_shape(window, [None, None, self.channels])

    def pixels(self) -> Tensor:
        """The whole image, uint8 [h, w, c]."""
        return _decode(self.data, self.channels) if self.encoded else self.data

    def decoded(self) -> 'Picture':
        """The same image decoded once, for recipes that look at it more than once."""
        return Picture(self.pixels(), self.channels)


def _decode(contents: Tensor, channels: int) -> Tensor:
    tf = tensorflow()
    if channels in (1, 3):
        # This kernel decodes PNG as well. The accurate DCT agrees with Pillow's pixels to the bit;
        # TensorFlow's default, the fast one, is off by up to 5 levels and no faster.
        # It would decode GIF and BMP too, whose shape nobody reads: such a file is corrupt to all.
        known = tf.io.is_jpeg(contents) | _is_png(contents)
        checked = tf.debugging.Assert(known, ['neither JPEG nor PNG'])
        with tf.control_dependencies([] if checked is None else [checked]):
            image = tf.io.decode_jpeg(contents, channels=channels, dct_method='INTEGER_ACCURATE')
    else:
        image = tf.io.decode_png(contents, channels=channels)
    return tf.ensure_shape(image, [None, None, channels])


def _is_png(contents: Tensor) -> Tensor:
    tf = tensorflow()
    return tf.equal(tf.strings.substr(contents, 0, 4), b'\x89PNG')


def _png_shape(contents: Tensor) -> Tensor:
    """Height and width from a PNG's first chunk: width, then height, big-endian, at byte 16."""
    tf = tensorflow()
    # Of a shorter one TensorFlow would quote the bytes in an error that Python cannot read.
    has_sides = tf.strings.length(contents) >= 24
    checked = tf.debugging.Assert(
        _is_png(contents) & has_sides, ['neither JPEG nor PNG, or cut short']
    )
    with tf.control_dependencies([] if checked is None else [checked]):
        sides = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False)
    return tf.ensure_shape(sides[::-1], [2])
