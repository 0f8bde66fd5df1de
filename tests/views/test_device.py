"""The device half: every op against its definition, and what randomness may depend on."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssljax.views import device
from ssljax.views.device import Photometric

EVERYTHING = Photometric(
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    jitter=0.8,
    gray=0.2,
    blur=0.5,
    solarize=0.2,
)
COLORLESS = Photometric(brightness=0.8, contrast=0.8, jitter=0.8, blur=0.5, solarize=0.2)


def image_of(shape, seed=0):
    """Noise with black, white and grey pixels, as float64 [c, h, w]."""
    image = np.random.default_rng(seed).uniform(size=shape)
    image[:, 0, 0], image[:, 0, 1], image[:, 1, 0] = 0, 1, 0.5
    return image


def twin_gray(image):
    return 0.2989 * image[0] + 0.5870 * image[1] + 0.1140 * image[2]


def twin_brightness(image, factor):
    return np.clip(factor * image, 0, 1)


def twin_contrast(image, factor):
    gray = twin_gray(image) if len(image) == 3 else image.mean(0)
    return np.clip(factor * image + (1 - factor) * gray.mean(), 0, 1)


def twin_saturation(image, factor):
    return np.clip(factor * image + (1 - factor) * twin_gray(image), 0, 1)


def twin_hue(image, shift):
    out = np.empty_like(image)
    for y, x in np.ndindex(image.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x])
        out[:, y, x] = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
    return out


def twin_blur(image, sigma, radius):
    _, height, width = image.shape
    mirrored = np.pad(image, [(0, 0), (radius, radius), (radius, radius)], mode='reflect')
    out, total = np.zeros_like(image), 0.0
    for dy, dx in itertools.product(range(-radius, radius + 1), repeat=2):
        weight = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
        rows = slice(radius + dy, radius + dy + height)
        columns = slice(radius + dx, radius + dx + width)
        out, total = out + weight * mirrored[:, rows, columns], total + weight
    return out / total


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.0, 1.8])
@pytest.mark.parametrize('op', ['brightness', 'contrast', 'saturation'])
def test_blends_equal_their_definition(x64, op, factor):
    image = image_of((3, 7, 5))
    ours = getattr(device, f'adjust_{op}')(jnp.asarray(image), factor)
    np.testing.assert_allclose(ours, globals()[f'twin_{op}'](image, factor), atol=1e-12)


@pytest.mark.parametrize('shift', [-0.5, -0.21, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_equals_hsv(x64, shift):
    image = image_of((3, 9, 8))
    ours = device.shift_hue(jnp.asarray(image), shift)
    np.testing.assert_allclose(ours, twin_hue(image, shift), atol=1e-12)


def test_hue_third_of_the_circle_permutes_the_channels(x64):
    image = image_of((3, 9, 8))
    turned = device.shift_hue(jnp.asarray(image), 1 / 3)
    np.testing.assert_allclose(turned, image[[2, 0, 1]], atol=1e-12)


@pytest.mark.parametrize('channels', [1, 3, 8])
def test_contrast_is_around_the_mean_gray_level(x64, channels):
    image = image_of((channels, 6, 6))
    ours = device.adjust_contrast(jnp.asarray(image), 0.4)
    np.testing.assert_allclose(ours, twin_contrast(image, 0.4), atol=1e-12)


def test_grayscale_has_three_equal_channels(x64):
    image = image_of((3, 6, 4))
    gray = device.grayscale(jnp.asarray(image))
    np.testing.assert_allclose(gray, np.stack([twin_gray(image)] * 3), atol=1e-12)
    assert (gray[0] == gray[1]).all() and (gray[0] == gray[2]).all()


def test_jitter_in_all_24_orders_equals_the_ops_one_after_another(x64):
    image, factors, shift = image_of((3, 6, 5)), np.array([1.4, 0.5, 1.7]), 0.15
    jitter = jax.jit(device.jitter)
    for order in itertools.permutations(range(4)):
        expected = image
        for op in order:
            twin = (twin_brightness, twin_contrast, twin_saturation, twin_hue)[op]
            expected = twin(expected, (*factors, shift)[op])
        ours = jitter(jnp.asarray(image), jnp.asarray(factors), shift, jnp.asarray(order))
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize('channels', [1, 8])
def test_jitter_without_color_is_brightness_and_contrast(x64, channels):
    image = image_of((channels, 6, 5))
    factors = jnp.asarray([1.4, 0.5, 1.0])
    brighter_first = device.jitter(jnp.asarray(image), factors, None, jnp.asarray([0, 3, 1, 2]))
    expected = twin_contrast(twin_brightness(image, 1.4), 0.5)
    np.testing.assert_allclose(brighter_first, expected, atol=1e-12)
    flatter_first = device.jitter(jnp.asarray(image), factors, None, jnp.asarray([2, 1, 0, 3]))
    expected = twin_brightness(twin_contrast(image, 0.5), 1.4)
    np.testing.assert_allclose(flatter_first, expected, atol=1e-12)


@pytest.mark.parametrize('channels', [1, 3, 8])
@pytest.mark.parametrize(('sigma', 'radius'), [(0.1, 1), (0.7, 2), (2.0, 4)])
def test_blur_is_a_gaussian_of_the_mirrored_image(x64, channels, sigma, radius):
    image = image_of((channels, 11, 8))
    ours = device.gaussian_blur(jnp.asarray(image), sigma, radius)
    np.testing.assert_allclose(ours, twin_blur(image, sigma, radius), atol=1e-12)


def test_blur_of_sigma_0_changes_no_bit():
    image = jnp.asarray(image_of((3, 8, 8)), jnp.float32)
    assert (device.gaussian_blur(image, 0.0, 3) == image).all()


@pytest.mark.parametrize(('size', 'taps'), [(224, 23), (96, 9), (32, 3), (28, 3), (8, 3)])
def test_blur_is_as_wide_as_simclrs(size, taps):
    assert 2 * device.blur_radius(size) + 1 == taps


def test_solarize_inverts_the_bright_half_and_itself():
    image = jnp.asarray(image_of((3, 8, 8)), jnp.float32)
    once = device.solarize(image)
    np.testing.assert_allclose(once, np.where(image < 0.5, image, 1 - image), atol=1e-7)
    # What is bright becomes dark and stays so; inverting it again there gives the image back.
    back = jnp.where(image < 0.5, once, 1 - once)
    np.testing.assert_allclose(back, image, atol=1e-7)


@pytest.mark.parametrize('channels', [1, 3])
def test_every_op_keeps_the_range_in_float32(channels):
    image = jnp.asarray(image_of((channels, 12, 12)), jnp.float32)
    factors, shifts = jnp.linspace(0, 2, 41), jnp.linspace(-0.5, 0.5, 41)
    swept = [
        (device.adjust_brightness, factors),
        (device.adjust_contrast, factors),
        (lambda x, sigma: device.gaussian_blur(x, sigma, 2), factors),
        (lambda x, _: device.solarize(x), factors[:1]),
    ]
    if channels == 3:
        swept += [(device.adjust_saturation, factors), (device.shift_hue, shifts)]
        swept += [(lambda x, _: device.grayscale(x), factors[:1])]
    for op, values in swept:
        out = jax.vmap(op, in_axes=(None, 0))(image, values)
        assert out.dtype == jnp.float32
        assert out.min() >= 0 and out.max() <= 1


def many(change, image, examples):
    keys = jax.random.split(jax.random.key(3), examples)
    return np.asarray(jax.jit(jax.vmap(change, in_axes=(None, 0)))(jnp.asarray(image), keys))


@pytest.mark.parametrize('op', ['jitter', 'gray', 'blur', 'solarize'])
def test_probabilities_are_met(op):
    image = image_of((3, 4, 4)).astype(np.float32)
    change = Photometric(hue=0.4, sigma=(1.0, 2.0), **{op: 0.3})
    changed = (many(change, image, 4000) != image).any(axis=(1, 2, 3))
    assert stats.binomtest(int(changed.sum()), 4000, 0.3).pvalue > 1e-3


@pytest.mark.parametrize(('amplitude', 'low', 'high'), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_brightness_factor_is_uniform(amplitude, low, high):
    image = np.full((1, 2, 2), 0.3, np.float32)
    factors = many(Photometric(brightness=amplitude, jitter=1.0), image, 4000)[:, 0, 0, 0] / 0.3
    assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_contrast_and_saturation_factors_are_uniform():
    image = np.broadcast_to(np.array([0.6, 0.4, 0.4], np.float32)[:, None, None], (3, 2, 2)).copy()
    spread = many(Photometric(saturation=0.5, jitter=1.0), image, 4000)
    factors = (spread[:, 0, 0, 0] - spread[:, 1, 0, 0]) / 0.2
    assert stats.kstest(factors, stats.uniform(0.5, 1.0).cdf).pvalue > 1e-3
    image[:, 0], image[:, 1] = 0.4, 0.6
    spread = many(Photometric(contrast=0.5, jitter=1.0), image, 4000)
    factors = (spread[:, 0, 1, 0] - spread[:, 0, 0, 0]) / 0.2
    assert stats.kstest(factors, stats.uniform(0.5, 1.0).cdf).pvalue > 1e-3


def test_hue_shift_is_uniform():
    image = np.broadcast_to(np.array([0.8, 0.2, 0.2], np.float32)[:, None, None], (3, 2, 2))
    colors = many(Photometric(hue=0.1, jitter=1.0), image, 4000)[:, :, 0, 0]
    hues = np.array([colorsys.rgb_to_hsv(*map(float, c))[0] for c in colors])
    hues = np.where(hues > 0.5, hues - 1, hues)
    assert stats.kstest(hues, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3


def test_all_orders_of_the_jitter_are_equally_likely(monkeypatch):
    def order_as_image(image, factors, shift, order):
        return jnp.broadcast_to(order[:, None, None].astype(image.dtype), image.shape)

    monkeypatch.setattr(device, 'jitter', order_as_image)
    orders = many(Photometric(jitter=1.0), np.zeros((4, 1, 1), np.float32), 12_000)[:, :, 0, 0]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.fixture
def drawn(monkeypatch):
    """What 10,000 views drew: the ops write their parameters into the image in place of pixels."""

    def wrote(first, *values):
        return lambda image: image.at[first : first + len(values), 0, 0].set(jnp.stack(values))

    def jitter(image, factors, shift, order):
        return wrote(0, *factors, shift, *order.astype(image.dtype))(image)

    monkeypatch.setattr(device, 'jitter', jitter)
    monkeypatch.setattr(device, 'grayscale', wrote(8, jnp.float32(1)))
    monkeypatch.setattr(
        device, 'gaussian_blur', lambda image, s, _: wrote(9, s, 1.0 * (s > 0))(image)
    )
    monkeypatch.setattr(device, 'solarize', wrote(11, jnp.float32(1)))
    change = Photometric(0.5, 0.5, 0.5, 0.4, jitter=0.5, gray=0.5, blur=0.5, solarize=0.5)
    return many(change, np.zeros((12, 1, 1), np.float32), 10_000)[:, :, 0, 0]


def test_whether_an_op_applies_does_not_depend_on_the_others(drawn):
    flags = np.stack([drawn[:, 0] > 0, *drawn[:, [8, 10, 11]].T]).astype(float)
    assert np.abs(np.corrcoef(flags) - np.eye(4)).max() < 4.5 / np.sqrt(len(drawn))


def test_what_an_op_draws_depends_on_nothing_else(drawn):
    applied = drawn[(drawn[:, 0] > 0) & (drawn[:, 10] > 0)]
    sigma_and_factors = applied[:, [9, 0, 1, 2, 3]]
    spans = [(0.1, 1.9), (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (-0.4, 0.8)]
    for values, span in zip(sigma_and_factors.T, spans, strict=True):
        assert stats.kstest(values, stats.uniform(*span).cdf).pvalue > 1e-3
    correlations = np.corrcoef(np.delete(applied, 10, axis=1).T)
    correlations[4:8, 4:8] = np.eye(4)  # the places of an order exclude one another
    assert np.abs(correlations - np.eye(11)).max() < 4.5 / np.sqrt(len(applied))


def test_switching_one_op_off_leaves_the_draws_of_the_others():
    image = image_of((3, 4, 4)).astype(np.float32)
    both = many(Photometric(brightness=0.5, jitter=0.5, solarize=0.5), image, 200)
    one = many(Photometric(brightness=0.5, jitter=0.5), image, 200)
    same = (both == one).all(axis=(1, 2, 3))
    assert 60 < same.sum() < 140  # where the other op was not drawn
    solarized = np.where(one < 0.5, one, 1 - one)
    expected = np.where(same[:, None, None, None], one, solarized)
    np.testing.assert_allclose(both, expected, atol=1e-6)


def uint8_views(n, v=2, size=12, channels=3):
    values = np.random.default_rng(1).integers(0, 256, (n, v, size, size, channels), np.uint8)
    return jnp.asarray(values)


def keys_of(n):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(n))


@jax.jit
def everything(images, keys):
    return device.photometric_views(images, keys, EVERYTHING)


@jax.jit
def draws(images, keys):
    """What the ops are drawn from, in place of the pixels: to be compared bit for bit."""
    return device.photometric_views(images, keys, lambda x, k: jax.random.uniform(k, x.shape))


def test_without_any_op_views_are_the_bytes_over_255():
    images = uint8_views(4)
    out = device.photometric_views(images, keys_of(4), Photometric())
    np.testing.assert_allclose(out, np.asarray(images) / 255, rtol=1e-7)


def test_unit_range_is_the_same_under_jit_and_ends_at_0_and_1():
    every_byte = jnp.arange(256, dtype=jnp.uint8)
    unit = device.unit_range(every_byte)
    np.testing.assert_array_equal(unit, jax.jit(device.unit_range)(every_byte))
    assert unit[0] == 0 and unit[255] == 1
    np.testing.assert_array_equal(np.rint(255 * np.asarray(unit)), np.arange(256))


@pytest.mark.parametrize(('channels', 'change'), [(1, COLORLESS), (3, EVERYTHING), (8, COLORLESS)])
def test_views_stay_in_range_for_any_number_of_channels(channels, change):
    images = uint8_views(32, channels=channels)
    out = jax.jit(lambda i, k: device.photometric_views(i, k, change))(images, keys_of(32))
    assert out.shape == images.shape and out.dtype == jnp.float32
    assert jnp.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


def test_constant_images_give_finite_views():
    images = jnp.repeat(jnp.arange(16, dtype=jnp.uint8) * 17, 288).reshape(16, 2, 12, 12, 1)
    images = jnp.broadcast_to(images, (16, 2, 12, 12, 3))
    assert jnp.isfinite(everything(images, keys_of(16))).all()


def test_same_key_same_bits_and_other_keys_others():
    images = jnp.broadcast_to(uint8_views(1, v=1), (16, 2, 12, 12, 3))
    first, again = everything(images, keys_of(16)), everything(images, keys_of(16))
    np.testing.assert_array_equal(first, again)
    views = np.asarray(first).reshape(32, -1)
    # One view in thirteen goes through untouched (0.2 x 0.8 x 0.5 x 0.8), and those are alike.
    assert len(np.unique(views, axis=0)) > 24


def test_views_do_not_depend_on_the_batch_they_stand_in():
    images, keys = uint8_views(16), keys_of(16)
    parts = [slice(0, 8), slice(8, 16)]
    apart = np.concatenate([draws(images[s], keys[s]) for s in parts])
    np.testing.assert_array_equal(draws(images, keys), apart)
    # XLA fuses other sizes otherwise, so pixels agree to rounding.
    apart = np.concatenate([everything(images[s], keys[s]) for s in parts])
    np.testing.assert_allclose(everything(images, keys), apart, atol=5e-6)


def test_views_do_not_depend_on_the_number_of_views():
    images, keys = uint8_views(16, v=3), keys_of(16)
    np.testing.assert_array_equal(draws(images, keys)[:, :2], draws(images[:, :2], keys))
    fewer = everything(images[:, :2], keys)
    np.testing.assert_allclose(everything(images, keys)[:, :2], fewer, atol=5e-6)


def test_views_are_the_same_on_8_devices(mesh8):
    images, keys = uint8_views(16), keys_of(16)
    split = jax.sharding.NamedSharding(mesh8, jax.sharding.PartitionSpec('data'))
    there = jax.device_put(images, split), jax.device_put(keys, split)
    on_8 = everything(*there)
    assert len(on_8.sharding.device_set) == 8
    np.testing.assert_array_equal(draws(*there), draws(images, keys))
    np.testing.assert_allclose(on_8, everything(images, keys), atol=5e-6)


def test_views_on_8_devices_need_no_communication(mesh8):
    split = jax.sharding.NamedSharding(mesh8, jax.sharding.PartitionSpec('data'))
    there = jax.device_put(uint8_views(16), split), jax.device_put(keys_of(16), split)
    compiled = everything.lower(*there).compile().as_text()
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        assert collective not in compiled


def test_one_compilation_serves_all_keys():
    step = jax.jit(lambda images, keys: device.photometric_views(images, keys, EVERYTHING))
    for start in range(3):
        step(uint8_views(2), keys_of(5)[start : start + 2])
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ('change', 'channels', 'says'),
    [
        (EVERYTHING, 1, 'set saturation = 0, hue = 0, gray = 0'),
        (EVERYTHING, 8, 'have 8 channel'),
        (Photometric(gray=0.2), 4, 'gray need RGB'),
        (Photometric(jitter=1.2), 3, r'jitter is 1\.2'),
        (Photometric(blur=-0.1), 3, 'blur is'),
        (Photometric(brightness=-1.0), 3, 'brightness is'),
        (Photometric(hue=0.8), 3, 'hue shifts by up to 0.8'),
        (Photometric(sigma=(2.0, 0.1)), 3, 'sigma is'),
    ],
)
def test_check_says_what_to_change(change, channels, says):
    with pytest.raises(ValueError, match=says):
        change.check(channels)


def test_check_lets_pass_what_is_not_used():
    EVERYTHING.check(3)
    COLORLESS.check(1)
    Photometric(saturation=0.8, hue=0.2, jitter=0.0).check(8)
