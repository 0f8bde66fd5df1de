"""The recipes: both halves together, their fields, and the gallery that shows them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import tyro
from view_batches import batch_of

from ssljax.data.picture import Picture
from ssljax.views import device
from ssljax.views.gallery import GAP, contact_sheet
from ssljax.views.recipe import Recipe
from ssljax.views.simclr import SimCLRViews
from ssljax.views.supervised import CropFlip

GRAY = {'saturation': 0.0, 'hue': 0.0, 'gray': 0.0, 'mean': (0.3,), 'std': (0.35,)}
PLAIN = {'scale': (1.0, 1.0), 'flip': 0.0}
NO_COLOR = {'jitter': 0.0, 'gray': 0.0, 'blur': 0.0}


@pytest.mark.parametrize('channels', [1, 3, 8])
def test_simclr_with_everything_off_gives_the_normalised_picture(channels):
    mean, std = tuple(np.linspace(0.2, 0.5, channels)), tuple(np.linspace(0.2, 0.3, channels))
    recipe = SimCLRViews(size=32, mean=mean, std=std, **PLAIN, **NO_COLOR)
    recipe.check(channels)
    batch, pictures = batch_of(recipe, channels=channels, side=32)
    assert batch['image'].dtype == jnp.uint8
    views = recipe.on_device(batch)['image']
    expected = (pictures / 255 - np.array(mean)) / np.array(std)
    assert views.dtype == jnp.float32
    for k in range(2):
        np.testing.assert_allclose(views[:, k], expected, atol=1e-6)
        np.testing.assert_array_equal(views[:, k], recipe.normalize(jnp.asarray(pictures)))


def test_crop_flip_gives_one_normalised_view():
    recipe = CropFlip(size=32, **PLAIN)
    recipe.check(3)
    batch, pictures = batch_of(recipe, side=32)
    views = recipe.on_device(batch)['image']
    assert views.shape == (4, 1, 32, 32, 3) and recipe.views() == {'image': (1, 32)}
    np.testing.assert_array_equal(views[:, 0], recipe.normalize(jnp.asarray(pictures)))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [24, 28])
def test_simclr_views_have_the_announced_shape_and_range(channels, size):
    recipe = SimCLRViews(size=size, **(GRAY if channels == 1 else {}))
    recipe.check(channels)
    count, pixels = recipe.views()['image']
    batch, _ = batch_of(recipe, channels=channels, side=32)
    assert batch['image'].shape == (4, count, pixels, pixels, channels)
    out = jax.jit(recipe.on_device)(batch)
    assert out['image'].shape == batch['image'].shape
    unit = recipe.denormalize(out['image'])
    assert unit.min() > -1e-6 and unit.max() < 1 + 1e-6
    assert {'index', 'key'} <= set(out)
    assert (out['image'][:, 0] != out['image'][:, 1]).any()


def test_strength_scales_the_amplitudes_of_the_jitter():
    color = SimCLRViews(strength=0.5).photometric()
    amplitudes = color.brightness, color.contrast, color.saturation, color.hue
    assert amplitudes == (0.4, 0.4, 0.4, 0.1)
    assert (color.jitter, color.gray, color.blur) == (0.8, 0.2, 0.5)


@pytest.mark.parametrize('first', [True, False])
def test_colour_is_dropped_ahead_of_the_jitter_or_behind_it(x64, first):
    amplitudes = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.4, 'jitter': 1.0}
    recipe = SimCLRViews(**amplitudes, gray=1.0, gray_first=first, blur=0.0)
    image = np.random.default_rng(0).uniform(size=(3, 8, 8))
    luma = lambda image: np.tensordot([[0.2989, 0.5870, 0.1140]] * 3, image, 1)
    jitter = device.Photometric(**amplitudes)  # the same key draws the same for it
    for key in jax.random.split(jax.random.key(0), 8):
        gray_jittered = jitter(jnp.asarray(luma(image)), key)
        jittered_gray = luma(jitter(jnp.asarray(image), key))
        assert np.abs(gray_jittered - jittered_gray).max() > 0.01
        want = gray_jittered if first else jittered_gray
        np.testing.assert_allclose(recipe.photometric()(jnp.asarray(image), key), want, atol=1e-12)


def test_which_views_lose_their_colour_does_not_depend_on_when():
    image = jax.random.uniform(jax.random.key(1), (3, 8, 8))
    keys = jax.random.split(jax.random.key(0), 64)
    views = lambda **fields: jax.jit(
        jax.vmap(SimCLRViews(blur=0.0, **fields).photometric(), in_axes=(None, 0))
    )(image, keys)
    ahead, behind, never = views(gray_first=True), views(), views(gray=0.0)
    gray = np.asarray((behind == behind[:, :1]).all(axis=(1, 2, 3)))
    assert 4 < gray.sum() < 24
    assert np.abs(ahead[gray] - ahead[gray][:, :1]).max() < 1e-5
    np.testing.assert_allclose(ahead[~gray], never[~gray], atol=1e-5)


def test_denormalize_undoes_standardize():
    recipe = SimCLRViews()
    image = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    np.testing.assert_allclose(recipe.denormalize(recipe.standardize(image)), image, atol=1e-6)


def test_evaluation_is_the_central_square():
    picture = tf.reshape(tf.range(40 * 60 * 3, dtype=tf.int32) % 251, (40, 60, 3))
    picture = tf.cast(picture, tf.uint8)
    view = SimCLRViews(size=20, evaluation_crop=0.5).evaluation(Picture(picture, 3))
    np.testing.assert_array_equal(view, picture[10:30, 20:40])


@pytest.mark.parametrize(
    ('recipe', 'channels', 'says'),
    [
        (SimCLRViews(mean=(0.5,), std=(0.2,)), 1, 'set saturation = 0, hue = 0, gray = 0'),
        (SimCLRViews(), 1, 'mean has 3 numbers but the images have 1 channel'),
        (SimCLRViews(std=(1.0, 1.0)), 3, 'std has 2 numbers'),
        (SimCLRViews(std=(0.2, 0.2, 0.0)), 3, 'above 0'),
        (SimCLRViews(hue=0.4, strength=2.0), 3, 'half the circle'),
        (SimCLRViews(count=0), 3, 'at least one view'),
        (SimCLRViews(flip=2.0), 3, 'flip is'),
        (SimCLRViews(scale=(0.5, 0.1)), 3, 'scale is'),
        (SimCLRViews(size=0), 3, 'size is 0'),
        (CropFlip(antialias=0.5), 3, 'antialias is'),
        (CropFlip(evaluation_crop=1.5), 3, 'evaluation_crop is'),
        (CropFlip(ratio=(2.0, 1.0)), 3, 'ratio is'),
    ],
)
def test_check_says_what_to_change(recipe, channels, says):
    with pytest.raises(ValueError, match=says):
        recipe.check(channels)


def test_fields_are_edited_on_the_command_line():
    line = '--strength 0.5 --blur 0 --scale 0.2 1.0 --mean 0.5 --std 0.25 --interpolation bilinear'
    recipe = tyro.cli(SimCLRViews, args=line.split())
    edited = {'strength': 0.5, 'blur': 0.0, 'scale': (0.2, 1.0), 'interpolation': 'bilinear'}
    assert recipe == SimCLRViews(mean=(0.5,), std=(0.25,), **edited)
    assert hash(recipe) == hash(dataclasses.replace(recipe))


def test_a_recipe_without_halves_says_so():
    with pytest.raises(NotImplementedError):
        Recipe().views()


def test_contact_sheet_shows_the_views_of_an_example_below_each_other():
    recipe = SimCLRViews(size=32, **PLAIN, **NO_COLOR)
    batch, pictures = batch_of(recipe, examples=5, side=32)
    sheet = contact_sheet(recipe.on_device(batch), recipe, columns=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 32 + 3 * GAP, 3 * 32 + 4 * GAP, 3)
    for row in range(2):
        for column in range(3):
            y, x = row * (32 + GAP) + GAP, column * (32 + GAP) + GAP
            np.testing.assert_array_equal(sheet[y : y + 32, x : x + 32], pictures[column])
    assert (sheet[:GAP] == 255).all() and (sheet[:, -GAP:] == 255).all()


@pytest.mark.parametrize('channels', [1, 8])
def test_contact_sheet_shows_other_channels_by_their_mean(channels):
    recipe = CropFlip(size=32, mean=(0.5,), std=(0.25,), **PLAIN)
    batch, pictures = batch_of(recipe, channels=channels, side=32)
    sheet = contact_sheet(recipe.on_device(batch), recipe)
    shown = sheet[GAP : GAP + 32, GAP : GAP + 32]
    assert (shown == shown[..., :1]).all()
    np.testing.assert_allclose(shown[..., 0], pictures[0].mean(-1), atol=0.51)
