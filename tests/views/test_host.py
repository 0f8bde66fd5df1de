"""The host half: windows against torchvision's rule and closed forms, resizing against kernels."""

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats

from ssljax.data.picture import Picture
from ssljax.views import host
from ssljax.views.host import RandomCrop, Resize

DEFAULT = RandomCrop(Resize(224))


def pixels_of(height, width, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return tf.constant(values)


def uniforms(rows, seed=0):
    return np.random.default_rng(seed).random((rows, 2 * host.TRIES + 2), np.float32)


def windows_of(height, width, draws, crop=DEFAULT):
    return host.sample_windows(height, width, tf.constant(draws), crop).numpy()


def twin_window(height, width, draws, crop):
    """torchvision's rule, one try after the other."""
    for k in range(host.TRIES):
        area = height * width * np.interp(draws[k], [0, 1], crop.scale)
        ratio = math.exp(np.interp(draws[host.TRIES + k], [0, 1], np.log(crop.ratio)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = draws[-2] * (height - h + 1), draws[-1] * (width - w + 1)
            return int(top), int(left), h, w
    h, w = height, width
    if width / height < crop.ratio[0]:
        h = round(width / crop.ratio[0])
    elif width / height > crop.ratio[1]:
        w = round(height * crop.ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('shape', [(375, 500), (500, 375), (32, 32), (28, 28), (100, 700), (9, 80)])
@pytest.mark.parametrize('scale', [(0.08, 1.0), (0.9, 1.0)])
def test_windows_follow_torchvisions_rule(shape, scale):
    crop = RandomCrop(Resize(224), scale=scale)
    draws = uniforms(500)
    ours = windows_of(*shape, draws, crop)
    twins = np.array([twin_window(*shape, u.astype(float), crop) for u in draws])
    # float32 may round a side, or fit a window, the other way than float64.
    assert (ours == twins).all(axis=1).mean() > 0.99


def test_windows_are_inside_the_picture():
    rng = np.random.default_rng(0)
    sides = [(1, 1), (1, 300), (300, 1), (2, 3), *rng.integers(1, 700, (40, 2)).tolist()]
    for k, (height, width) in enumerate(sides):
        draws = uniforms(300, seed=k)
        draws[:100, -2:] = np.nextafter(np.float32(1), np.float32(0))
        draws[100:200, -2:] = 0
        top, left, h, w = windows_of(height, width, draws).T
        assert h.min() >= 1 and w.min() >= 1 and top.min() >= 0 and left.min() >= 0
        assert (top + h).max() <= height and (left + w).max() <= width


def test_area_aspect_and_place_are_distributed_as_stated_where_all_windows_fit():
    side = 20_000
    crop = RandomCrop(Resize(224), scale=(0.1, 0.5))  # 0.5 x 4/3 < 1: the first always fits
    top, left, h, w = windows_of(side, side, uniforms(20_000), crop).T
    area, aspect = h * w.astype(float) / side**2, np.log(w / h)
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    spread = math.log(4 / 3)
    assert stats.kstest(aspect, stats.uniform(-spread, 2 * spread).cdf).pvalue > 1e-3
    assert stats.kstest(top / (side - h), 'uniform').pvalue > 1e-3
    assert stats.kstest(left / (side - w), 'uniform').pvalue > 1e-3
    correlations = np.corrcoef([area, aspect, top / (side - h), left / (side - w)])
    assert np.abs(correlations - np.eye(4)).max() < 4 / math.sqrt(20_000)


def test_mean_area_of_a_square_picture_is_that_of_the_windows_that_fit():
    # A window fits a unit square if area <= exp(-|l|), l its log aspect, uniform on [-s, s].
    least, s = 0.08, math.log(4 / 3)
    fit = (1 - math.exp(-s)) - least * s
    expected = ((1 - math.exp(-2 * s)) / 2 - least**2 * s) / 2 / fit
    _, _, h, w = windows_of(20_000, 20_000, uniforms(40_000)).T
    area = h * w.astype(float) / 20_000**2
    assert abs(area.mean() - expected) < 4 * area.std() / math.sqrt(40_000)


@pytest.mark.parametrize(
    ('shape', 'window'),
    [
        ((100, 1000), (0, 433, 100, 133)),
        ((1000, 100), (433, 0, 133, 100)),
        ((300, 300), (0, 0, 300, 300)),
        ((300, 390), (0, 0, 300, 390)),
    ],
)
def test_where_no_window_fits_the_largest_central_one_is_taken(shape, window):
    draws = uniforms(50)
    draws[:, host.TRIES : 2 * host.TRIES] = 0.99
    crop = RandomCrop(Resize(224), scale=(1.0, 1.0))
    assert (windows_of(*shape, draws, crop) == window).all()


@pytest.mark.parametrize('shape', [(375, 500), (500, 333), (300, 300)])
def test_square_windows_are_as_after_resizing_and_go_everywhere(shape):
    crop = RandomCrop(Resize(224), square=256 / 300)
    tops, lefts, heights, widths = windows_of(*shape, uniforms(2000), crop).T
    side = round(min(shape) * 256 / 300)
    assert (heights == side).all() and (widths == side).all()
    for places, length in zip((tops, lefts), shape, strict=True):
        assert set(places.tolist()) == set(range(length - side + 1))


def cubic(x):
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def twin_resize(image, size, kernel, filtered):
    """Weighted means with the kernel around each output pixel's centre, widened when filtering."""
    for axis in (0, 1):
        given = image.shape[axis]
        step = given / size
        wide = max(step, 1.0) if filtered else 1.0
        centers = (np.arange(size) + 0.5) * step - 0.5
        if kernel is cubic:
            positions = np.arange(given)
            weights = kernel((positions[None] - centers[:, None]) / wide)
        else:
            centers = centers if filtered else np.clip(centers, 0, given - 1)
            weights = np.maximum(1 - np.abs(np.arange(given)[None] - centers[:, None]) / wide, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('shape', [(40, 25, 3), (9, 14, 1), (70, 90, 8), (16, 16, 3)])
@pytest.mark.parametrize('antialias', [1.0, 2.0, 100.0])
def test_resize_equals_its_kernel(interpolation, shape, antialias):
    image = pixels_of(*shape)
    ours = Resize(16, interpolation, antialias)(image).numpy()
    filtered = max(shape[:2]) >= 16 * antialias
    twin = twin_resize(image.numpy(), 16, cubic if interpolation == 'bicubic' else None, filtered)
    # TensorFlow reads the bicubic kernel from a table of 1024 entries.
    np.testing.assert_allclose(ours, twin, atol=0.5 if interpolation == 'bicubic' else 1e-3)


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_resize_to_the_same_size_changes_no_bit(interpolation):
    image = pixels_of(32, 32)
    for antialias in (1.0, 2.0):
        assert (Resize(32, interpolation, antialias)(image).numpy() == image.numpy()).all()


def test_large_pictures_are_filtered_and_small_ones_are_not():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    filtered = Resize(16)(tf.constant(stripes)).numpy()
    assert np.abs(filtered - 127.5).max() < 10
    bare = Resize(16, antialias=8.0)(tf.constant(stripes)).numpy()
    assert np.abs(bare[:, ::2] - bare[:, 1::2]).max() < 1  # every sample hits the same phase
    assert np.abs(Resize(33)(tf.constant(stripes)).numpy() - 127.5).max() > 60


def test_to_uint8_rounds_and_clips():
    given = tf.constant([-20.0, 0.49, 0.51, 127.4, 254.6, 300.0])
    assert host.to_uint8(given).numpy().tolist() == [0, 0, 1, 127, 255, 255]


def views_of(picture, position=0, count=2, crop=DEFAULT):
    return host.random_views(picture, tf.constant([7, position], tf.int64), count, crop)


@pytest.mark.parametrize('channels', [1, 3, 8])
def test_full_windows_of_the_same_size_give_the_picture(channels):
    image = pixels_of(32, 32, channels).numpy()
    whole = RandomCrop(Resize(32), scale=(1.0, 1.0), flip=0.0)
    mirrored = RandomCrop(Resize(32), scale=(1.0, 1.0), flip=1.0)
    for position in range(10):
        assert (views_of(Picture(image, channels), position, 2, whole).numpy() == image).all()
        views = views_of(Picture(image, channels), position, 2, mirrored).numpy()
        assert (views[:, :, ::-1] == image).all()


def test_half_of_the_views_are_flipped_each_on_its_own():
    image = pixels_of(4, 4, 1)
    crop = RandomCrop(Resize(4), scale=(1.0, 1.0))
    positions = tf.data.Dataset.range(2000)
    views = positions.map(lambda i: host.random_views(Picture(image, 1), tf.stack([0, i]), 2, crop))
    views = np.stack(list(views.as_numpy_iterator()))
    flipped = (views == image.numpy()[:, ::-1]).all(axis=(2, 3, 4))
    assert ((views == image.numpy()).all(axis=(2, 3, 4)) ^ flipped).all()
    first, second = flipped.T
    for outcome, p in ((first, 0.5), (second, 0.5), (first & second, 0.25)):
        assert stats.binomtest(int(outcome.sum()), 2000, p).pvalue > 1e-3


def jpeg_of(height, width):
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=95)
    return tf.constant(file.getvalue())


@pytest.mark.parametrize('count', [1, 2])
def test_graph_and_eager_make_the_same_bytes(count):
    contents = jpeg_of(150, 260)
    crop = RandomCrop(Resize(48))
    graph = tf.data.Dataset.range(20).map(
        lambda i: host.random_views(Picture(contents, 3), tf.stack([7, i]), count, crop),
        num_parallel_calls=2,
    )
    for position, views in enumerate(graph.as_numpy_iterator()):
        eager = views_of(Picture(contents, 3), position, count, crop)
        np.testing.assert_array_equal(views, eager)


def test_views_depend_on_the_seed_and_on_nothing_else():
    picture = Picture(pixels_of(60, 80), 3)
    three, two = views_of(picture, 5, 3).numpy(), views_of(picture, 5, 2).numpy()
    np.testing.assert_array_equal(three[:2], two)
    assert (three[0] != three[1]).any() and (three[1] != three[2]).any()
    np.testing.assert_array_equal(two, views_of(picture, 5, 2))
    assert (two != views_of(picture, 6, 2).numpy()).any()
    other_run = host.random_views(picture, tf.constant([8, 5], tf.int64), 2, DEFAULT)
    assert (two != other_run.numpy()).any()


def test_a_jpeg_and_its_pixels_give_the_same_views():
    contents = jpeg_of(100, 140)
    encoded, decoded = Picture(contents, 3), Picture(contents, 3).decoded()
    np.testing.assert_array_equal(views_of(encoded), views_of(decoded))
    # One view is cut while it is decoded, so colour may differ at the window's edge.
    one = views_of(encoded, count=1).numpy().astype(int) - views_of(decoded, count=1).numpy()
    assert np.abs(one).mean() < 1


@pytest.mark.parametrize(('shape', 'share'), [((60, 80), 0.875), ((90, 70), 1.0), ((33, 33), 0.5)])
def test_center_crop_is_the_central_square(shape, share):
    image = pixels_of(*shape)
    side = round(share * min(shape))
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    view = host.center_crop(Picture(image, 3), share, Resize(side))
    np.testing.assert_array_equal(view, image[top : top + side, left : left + side])


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'scale': (0.0, 1.0)}, 'scale is'),
        ({'scale': (0.5, 0.2)}, 'scale is'),
        ({'scale': (0.5, 1.5)}, 'scale is'),
        ({'ratio': (1.2, 0.8)}, 'ratio is'),
        ({'flip': 1.5}, 'flip is'),
        ({'square': 0.0}, 'square is'),
        ({'square': 1.1}, 'square is'),
    ],
)
def test_check_says_what_to_change(fields, says):
    DEFAULT.check()
    with pytest.raises(ValueError, match=says):
        RandomCrop(Resize(224), **fields).check()
