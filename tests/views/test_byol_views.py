"""BYOL's views: what the two share, and what only one of them gets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from view_batches import batch_of

from ssljax.core import with_keys
from ssljax.views.byol import BYOLViews

OFF = {'jitter': 0.0, 'gray': 0.0, 'blur': (0.0, 0.0), 'solarize': (0.0, 0.0)}
PLAIN = {'scale': (1.0, 1.0), 'flip': 0.0}
UNIT = {'mean': (0.0,), 'std': (1.0,)}


def repeated(examples, side=24, channels=3):
    """A batch whose two views of an example are the same picture."""
    images = np.random.default_rng(0).integers(0, 256, (examples, 1, side, side, channels))
    image = jnp.asarray(images.repeat(2, axis=1), jnp.uint8)
    return with_keys({'image': image, 'index': jnp.arange(examples)}, jax.random.key(1))


def test_the_defaults_are_the_papers():
    first, second = BYOLViews().photometric()
    for view in (first, second):
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter, view.gray, view.sigma) == (0.8, 0.2, (0.1, 2.0))
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    assert BYOLViews().views() == {'image': (2, 224)}
    assert BYOLViews().random_crop().scale == (0.08, 1.0)


@pytest.mark.parametrize('channels', [1, 3])
def test_with_everything_off_both_views_are_the_normalised_picture(channels):
    recipe = BYOLViews(size=24, mean=(0.4,), std=(0.2,), **PLAIN, **OFF)
    batch, pictures = batch_of(recipe, channels=channels)
    views = recipe.on_device(batch)['image']
    assert views.dtype == jnp.float32
    for k in range(2):
        np.testing.assert_array_equal(views[:, k], recipe.normalize(jnp.asarray(pictures)))


def test_only_the_view_that_is_solarised_changes():
    recipe = BYOLViews(size=24, **UNIT, **{**OFF, 'solarize': (0.0, 1.0)})
    batch = repeated(4)
    views = np.asarray(recipe.on_device(batch)['image'])
    plain = np.asarray(recipe.normalize(batch['image'][:, 0]))
    np.testing.assert_array_equal(views[:, 0], plain)
    np.testing.assert_allclose(views[:, 1], np.where(plain < 0.5, plain, 1 - plain), atol=1e-6)


def test_only_the_view_that_is_blurred_changes():
    recipe = BYOLViews(size=24, sigma=(1.0, 1.0), **UNIT, **{**OFF, 'blur': (1.0, 0.0)})
    batch = repeated(4)
    views = np.asarray(recipe.on_device(batch)['image'])
    np.testing.assert_array_equal(views[:, 1], recipe.normalize(batch['image'][:, 1]))
    assert np.all(views[:, 0].std(axis=(1, 2)) < 0.7 * views[:, 1].std(axis=(1, 2)))


def test_probabilities_are_frequencies_view_by_view():
    recipe = BYOLViews(size=4, **UNIT, **{**OFF, 'solarize': (0.3, 0.8)})
    batch = repeated(4096, side=4)
    views = jax.jit(recipe.on_device)(batch)['image']
    changed = np.any(np.asarray(views) != recipe.normalize(batch['image']), axis=(2, 3, 4))
    # Four standard deviations of a frequency of 4096 draws are at most 0.031.
    np.testing.assert_allclose(changed.mean(axis=0), [0.3, 0.8], atol=0.031)
    assert abs(np.corrcoef(changed.T)[0, 1]) < 4 / 64


def test_views_are_drawn_apart_and_only_from_the_examples_key():
    recipe = BYOLViews(size=24, jitter=1.0, blur=(0.5, 0.5), solarize=(0.5, 0.5))
    batch = repeated(6)
    on_device = jax.jit(recipe.on_device)
    views = on_device(batch)['image']
    assert all((views[i, 0] != views[i, 1]).any() for i in range(6))
    part = {name: leaf[2:4] for name, leaf in batch.items()}
    np.testing.assert_allclose(on_device(part)['image'], views[2:4], atol=1e-5)
    other = {**batch, 'key': jax.random.split(jax.random.key(9), 6)}
    assert (on_device(other)['image'] != views).any(axis=(1, 2, 3, 4)).all()


def test_one_view_does_not_depend_on_the_others_probabilities():
    batch = repeated(4)
    recipe = BYOLViews(size=24, jitter=1.0)
    other = dataclasses.replace(recipe, blur=(1.0, 1.0), solarize=(0.0, 1.0))
    one, two = (jax.jit(r.on_device)(batch)['image'] for r in (recipe, other))
    np.testing.assert_allclose(one[:, 0], two[:, 0], atol=1e-5)
    assert (one[:, 1] != two[:, 1]).any()


def test_views_have_the_announced_shape_and_range():
    recipe = BYOLViews(size=20, blur=(1.0, 0.1, 0.5), solarize=(0.0, 0.2, 0.1))
    recipe.check(3)
    batch, _ = batch_of(recipe)
    assert recipe.views() == {'image': (3, 20)}
    assert batch['image'].shape == (4, 3, 20, 20, 3) and batch['image'].dtype == jnp.uint8
    out = jax.jit(recipe.on_device)(batch)
    assert out['image'].shape == batch['image'].shape and {'index', 'key'} <= set(out)
    unit = recipe.denormalize(out['image'])
    assert unit.min() > -1e-6 and unit.max() < 1 + 1e-6


@pytest.mark.parametrize(
    ('recipe', 'channels', 'says'),
    [
        (BYOLViews(blur=(1.0,)), 3, 'describe different numbers of views'),
        (BYOLViews(blur=(), solarize=()), 3, 'one probability per view'),
        (BYOLViews(solarize=(0.0, 1.2)), 3, 'solarize is 1.2'),
        (BYOLViews(blur=(-0.5, 0.1)), 3, 'blur is -0.5'),
        (BYOLViews(scale=(0.0, 1.0)), 3, 'scale is'),
        (BYOLViews(mean=(0.5,), std=(0.2,)), 1, 'set saturation = 0, hue = 0, gray = 0'),
        (BYOLViews(), 1, 'mean has 3 numbers'),
    ],
)
def test_check_says_what_to_change(recipe, channels, says):
    with pytest.raises(ValueError, match=says):
        recipe.check(channels)


def test_fields_are_edited_on_the_command_line():
    line = '--blur 0 0 --solarize 0 0.5 --scale 0.2 1.0 --jitter 1'
    recipe = tyro.cli(BYOLViews, args=line.split())
    want = BYOLViews(blur=(0.0, 0.0), solarize=(0.0, 0.5), scale=(0.2, 1.0), jitter=1.0)
    assert recipe == want and hash(recipe) == hash(want)
