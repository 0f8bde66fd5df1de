"""Multi-crop's views: two resolutions, drawn apart, through the pipeline and the gallery."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import tyro

from ssljax import config
from ssljax.core import with_keys
from ssljax.data.picture import Picture
from ssljax.data.pipeline import Stream, batches
from ssljax.data.registry import open_source
from ssljax.views.gallery import GAP, contact_sheet
from ssljax.views.multicrop import MultiCrop

OFF = {
    'jitter': 0.0,
    'gray': 0.0,
    'blur': (0.0, 0.0),
    'solarize': (0.0, 0.0),
    'local_blur': 0.0,
    'local_solarize': 0.0,
}
WHOLE = {'scale': (1.0, 1.0), 'local_scale': (1.0, 1.0), 'ratio': (1.0, 1.0), 'flip': 0.0}
UNIT = {'mean': (0.0,), 'std': (1.0,)}
GRAY = {'saturation': 0.0, 'hue': 0.0, 'gray': 0.0, 'mean': (0.286,), 'std': (0.353,)}
SMALL = MultiCrop(size=28, local_size=12, local_count=4, **UNIT)


def on_host(recipe, picture, seed=(0, 0)):
    views = recipe.on_host(Picture(tf.constant(picture), picture.shape[-1]), tf.constant(seed))
    return {name: view.numpy() for name, view in views.items()}


def pictures(examples=4, side=28, channels=3):
    shape = (examples, side, side, channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def batch_of(recipe, **kinds):
    made = [on_host(recipe, picture, (0, i)) for i, picture in enumerate(pictures(**kinds))]
    batch = {name: jnp.asarray(np.stack([views[name] for views in made])) for name in made[0]}
    return with_keys({**batch, 'index': jnp.arange(len(made))}, jax.random.key(1))


def repeated(recipe, examples):
    """A batch in which all views of an array of an example are the same picture."""
    batch = {'index': jnp.arange(examples)}
    for name, (count, size) in recipe.views().items():
        images = pictures(examples, size)[:, None].repeat(count, axis=1)
        batch[name] = jnp.asarray(images)
    return with_keys(batch, jax.random.key(1))


def test_the_defaults_are_those_of_dino():
    recipe = MultiCrop()
    assert recipe.views() == {'image': (2, 224), 'local': (8, 96)}
    assert recipe.random_crop().scale == (0.4, 1.0)
    assert recipe.random_local_crop().scale == (0.05, 0.4)
    kinds = (*recipe.photometric(), recipe.local_photometric())
    for kind in kinds:
        assert (kind.brightness, kind.contrast, kind.saturation, kind.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (kind.jitter, kind.gray, kind.sigma) == (0.8, 0.2, (0.1, 2.0))
    assert [kind.blur for kind in kinds] == [1.0, 0.1, 0.5]
    assert [kind.solarize for kind in kinds] == [0.0, 0.2, 0.0]


@pytest.mark.parametrize('channels', [1, 3])
def test_with_everything_off_every_view_is_the_picture_at_its_size(channels):
    recipe = dataclasses.replace(SMALL, antialias=100.0, local_size=14, **WHOLE, **OFF)
    whole = pictures(1, channels=channels)[0]
    views = on_host(recipe, whole)
    half = tf.image.resize(whole, (14, 14), 'bicubic').numpy()
    for view in views['image']:
        np.testing.assert_array_equal(view, whole)
    assert len(views['local']) == 4
    for view in views['local']:
        np.testing.assert_allclose(view, np.clip(half, 0, 255), atol=1)
    batch = batch_of(recipe, channels=channels)
    ready = recipe.on_device(batch)
    for name in ('image', 'local'):
        np.testing.assert_array_equal(ready[name], recipe.normalize(batch[name]))


def test_global_views_show_more_of_the_picture_than_local_ones():
    ramp = np.arange(64, dtype=np.uint8)[:, None, None].repeat(64, axis=1)
    recipe = MultiCrop(
        size=32, local_size=16, scale=(0.5, 1.0), local_scale=(0.05, 0.1), local_count=8
    )
    for i in range(8):
        views = on_host(recipe, ramp, (0, i))
        # Heights that a window covers: the square root of its share, 3/4 to 4/3 in aspect.
        seen = {name: np.ptp(view.astype(int), axis=(1, 2, 3)) for name, view in views.items()}
        assert seen['image'].min() > 64 * np.sqrt(0.5 * 3 / 4) - 4
        assert seen['local'].max() < 64 * np.sqrt(0.1 * 4 / 3) + 4


def test_views_are_drawn_apart_and_from_the_seed_alone():
    ramp = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    recipe = MultiCrop(size=16, local_size=16, local_scale=(0.4, 1.0), local_count=2)
    once, again, other = (on_host(recipe, ramp, (0, i)) for i in (3, 3, 4))
    every = [view for views in (once, other) for name in views for view in views[name]]
    assert len({view.tobytes() for view in every}) == 8
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])


def test_the_number_of_local_views_changes_no_other_view():
    whole = pictures(1)[0]
    few, many = on_host(SMALL, whole), on_host(dataclasses.replace(SMALL, local_count=7), whole)
    np.testing.assert_array_equal(few['image'], many['image'])
    np.testing.assert_array_equal(few['local'], many['local'][:4])


def test_without_local_views_there_is_no_array_of_them():
    recipe = dataclasses.replace(SMALL, local_count=0)
    assert recipe.views() == {'image': (2, 28)}
    batch = batch_of(recipe)
    assert 'local' not in batch and 'local' not in recipe.on_device(batch)


def test_probabilities_are_frequencies_view_by_view():
    chances = {**OFF, 'solarize': (0.3, 0.8), 'local_solarize': 0.5}
    recipe = MultiCrop(size=4, local_size=4, local_count=2, **UNIT, **chances)
    batch = repeated(recipe, 4096)
    ready = jax.jit(recipe.on_device)(batch)
    changed = np.concatenate(
        [
            np.any(np.asarray(ready[name]) != recipe.normalize(batch[name]), axis=(2, 3, 4))
            for name in ('image', 'local')
        ],
        axis=1,
    )
    # Four standard deviations of a frequency, and of a correlation, of 4096 draws.
    np.testing.assert_allclose(changed.mean(axis=0), [0.3, 0.8, 0.5, 0.5], atol=0.031)
    correlated = np.abs(np.corrcoef(changed.T) - np.eye(4))
    assert correlated.max() < 4 / 64


def test_colours_are_drawn_from_the_examples_key_alone():
    recipe = dataclasses.replace(SMALL, jitter=1.0)
    batch = repeated(recipe, 6)
    on_device = jax.jit(recipe.on_device)
    whole = on_device(batch)
    part = on_device({name: leaf[2:4] for name, leaf in batch.items()})
    other = on_device({**batch, 'key': jax.random.split(jax.random.key(9), 6)})
    for name in ('image', 'local'):
        np.testing.assert_allclose(part[name], whole[name][2:4], atol=1e-5)
        assert (other[name] != whole[name]).any(axis=(1, 2, 3, 4)).all()


@pytest.mark.parametrize('channels', [1, 3])
def test_views_have_the_announced_shapes_and_range(channels):
    recipe = dataclasses.replace(SMALL, **(GRAY if channels == 1 else {}))
    recipe.check(channels)
    batch = batch_of(recipe, channels=channels)
    ready = jax.jit(recipe.on_device)(batch)
    for name, (count, size) in recipe.views().items():
        assert batch[name].shape == (4, count, size, size, channels)
        assert batch[name].dtype == jnp.uint8 and ready[name].dtype == jnp.float32
        assert ready[name].shape == batch[name].shape
        unit = recipe.denormalize(ready[name])
        assert unit.min() > -1e-6 and unit.max() < 1 + 1e-6
    assert {'index', 'key'} <= set(ready)


def test_the_pipeline_delivers_both_arrays():
    source = open_source('fashion_mnist_10k', 'train')
    recipe = MultiCrop(size=28, local_size=12, local_count=3, **GRAY)
    once, again = (next(iter(batches(source, recipe, Stream(5, seed), 7, 8))) for seed in (0, 0))
    assert once['image'].shape == (5, 2, 28, 28, 1)
    assert once['local'].shape == (5, 3, 12, 12, 1)
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])


def test_contact_sheet_packs_the_local_views_below_the_global_ones():
    recipe = dataclasses.replace(SMALL, local_count=3, **OFF)
    batch = batch_of(recipe)
    sheet = contact_sheet(recipe.on_device(batch), recipe, columns=3)
    # Two global views below each other, then two rows of local ones: two side by side, then one.
    assert sheet.shape == (2 * (28 + GAP) + 2 * (12 + GAP) + GAP, 3 * (28 + GAP) + GAP, 3)
    for column in range(3):
        x = GAP + column * (28 + GAP)
        for k in range(2):
            y = GAP + k * (28 + GAP)
            np.testing.assert_array_equal(sheet[y : y + 28, x : x + 28], batch['image'][column, k])
        for k, (down, right) in enumerate([(0, 0), (0, 1), (1, 0)]):
            y, left = 2 * (28 + GAP) + GAP + down * (12 + GAP), x + right * (12 + GAP)
            shown = sheet[y : y + 12, left : left + 12]
            np.testing.assert_array_equal(shown, batch['local'][column, k])
    assert (sheet[-12 - GAP :, GAP + 12 : GAP + 28] == 255).all()


@pytest.mark.parametrize(
    ('recipe', 'channels', 'says'),
    [
        (MultiCrop(blur=(1.0,)), 3, 'different numbers of global views'),
        (MultiCrop(local_count=-1), 3, 'local_count 0 or more'),
        (MultiCrop(local_size=0), 3, 'local_size 1 or more'),
        (MultiCrop(scale=(0.0, 1.0)), 3, 'scale is'),
        (MultiCrop(local_scale=(0.4, 0.05)), 3, 'local views: scale is'),
        (MultiCrop(local_blur=2.0), 3, 'blur is 2.0'),
        (MultiCrop(solarize=(0.0, 1.5)), 3, 'solarize is 1.5'),
        (MultiCrop(mean=(0.5,), std=(0.2,)), 1, 'set saturation = 0, hue = 0, gray = 0'),
    ],
)
def test_check_says_what_to_change(recipe, channels, says):
    with pytest.raises(ValueError, match=says):
        recipe.check(channels)


def test_smoke_is_small_and_keeps_the_rest():
    small = MultiCrop().smoke()
    assert small.views() == {'image': (2, 32), 'local': (2, 16)}
    assert MultiCrop(local_count=0).smoke().views() == {'image': (2, 32)}
    kept = dataclasses.replace(small, size=224, local_size=96, local_count=8)
    assert kept == MultiCrop()


def test_fields_are_edited_on_the_command_line_and_kept_in_a_file():
    line = '--local-count 6 --local-scale 0.05 0.14 --blur 0.5 0.5 --solarize 0 0 --size 32'
    recipe = tyro.cli(MultiCrop, args=line.split())
    want = MultiCrop(
        local_count=6, local_scale=(0.05, 0.14), blur=(0.5, 0.5), solarize=(0.0, 0.0), size=32
    )
    assert recipe == want
    assert config.decode(json.loads(json.dumps(config.encode(want)))) == want
