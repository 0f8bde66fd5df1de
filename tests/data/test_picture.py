import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssljax.data.picture import Picture


def noise(height, width, channels):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(height).integers(0, 256, shape).astype(np.uint8)


def encoded(image, form, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form, **options)
    return stream.getvalue()


def decoded(contents, mode):
    image = np.asarray(Image.open(io.BytesIO(contents)).convert(mode))
    return image[..., None] if image.ndim == 2 else image


@pytest.mark.parametrize('form', ['JPEG', 'PNG'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('sides', [(40, 57), (32, 32), (1, 3)])
def test_shape_and_pixels_are_pillows(form, channels, sides):
    contents = encoded(noise(*sides, channels), form)
    picture = Picture(tf.constant(contents), channels)
    assert tuple(side.numpy() for side in picture.shape()) == sides
    np.testing.assert_array_equal(
        picture.pixels().numpy(), decoded(contents, 'L' if channels == 1 else 'RGB')
    )


def test_grey_files_become_colour_and_transparency_goes():
    grey = noise(9, 12, 1)
    three = Picture(tf.constant(encoded(grey, 'PNG')), 3).pixels().numpy()
    np.testing.assert_array_equal(three, np.repeat(grey[..., None], 3, 2))
    clear = noise(9, 12, 4)
    contents = tf.constant(encoded(clear, 'PNG'))
    np.testing.assert_array_equal(Picture(contents, 3).pixels().numpy(), clear[..., :3])
    np.testing.assert_array_equal(Picture(contents, 4).pixels().numpy(), clear)
    np.testing.assert_array_equal(Picture(contents, 4).crop(1, 2, 3, 4).numpy(), clear[1:4, 2:6])


@pytest.mark.parametrize('form', ['PNG', 'array'])
def test_a_crop_is_the_window(form):
    image = noise(30, 20, 3)
    picture = Picture(tf.constant(image if form == 'array' else encoded(image, form)), 3)
    for top, left, height, width in [(0, 0, 30, 20), (3, 4, 5, 6), (29, 19, 1, 1)]:
        np.testing.assert_array_equal(
            picture.crop(top, left, height, width).numpy(),
            image[top : top + height, left : left + width],
        )


def test_a_jpeg_crop_is_the_window_but_for_its_edge():
    contents = encoded(noise(90, 120, 3), 'JPEG', quality=90)
    whole = decoded(contents, 'RGB')
    crop = Picture(tf.constant(contents), 3).crop(17, 23, 40, 51).numpy()
    np.testing.assert_array_equal(crop[2:-2, 2:-2], whole[19:55, 25:72])
    picture = Picture(tf.constant(contents), 3).decoded()
    np.testing.assert_array_equal(picture.crop(17, 23, 40, 51).numpy(), whole[17:57, 23:74])


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'array'])
@pytest.mark.parametrize('window', [(0, 0, 31, 20), (25, 0, 6, 5), (0, 19, 3, 2)])
def test_a_window_outside_is_an_error(form, window):
    image = noise(30, 20, 3)
    picture = Picture(tf.constant(image if form == 'array' else encoded(image, form)), 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        picture.crop(*window)


@pytest.mark.parametrize('share', [0.3, 0.9, 0.999])
@pytest.mark.parametrize('form', ['JPEG', 'PNG'])
def test_truncated_files_do_not_decode(form, share):
    contents = encoded(noise(60, 60, 3), form)
    with pytest.raises(tf.errors.InvalidArgumentError):
        Picture(tf.constant(contents[: int(share * len(contents))]), 3).pixels()


@pytest.mark.parametrize(
    'contents',
    [b'', b'GIF89a', b'no image at all, however long it may be', b'\x89PNG\r\n\x1a\n'],
)
def test_other_files_have_no_shape(contents):
    with pytest.raises(tf.errors.InvalidArgumentError):
        Picture(tf.constant(contents), 3).shape()


def test_shapes_are_checked_in_a_graph_too():
    image = noise(30, 20, 3)
    graph = tf.function(
        lambda contents: Picture(contents, 3).shape(),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    assert [side.numpy() for side in graph(encoded(image, 'PNG'))] == [30, 20]
    assert [side.numpy() for side in graph(encoded(image, 'JPEG'))] == [30, 20]
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph(b'II*\0 this would be a TIFF file, if it went on')


@pytest.mark.parametrize('form', ['gif', 'bmp'])
def test_what_is_neither_jpeg_nor_png_is_corrupt_to_all(form):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(stream, form)
    picture = Picture(tf.constant(stream.getvalue()), 3)
    for look in (picture.pixels, picture.shape, lambda: picture.crop(0, 0, 3, 3)):
        with pytest.raises(tf.errors.InvalidArgumentError):
            look()
