"""The device half in parts: the same views, and nothing moves."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.views import device
from ssljax.views.device import Photometric

CHANGE = Photometric(
    brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, gray=0.2, blur=0.5
)
SHAPE = (48, 2, 12, 12, 3)


def draw(pixels, key):
    """What the ops are drawn from, in place of the pixels: to be compared bit for bit."""
    return jax.random.uniform(key, pixels.shape)


def changed(images, keys, change):
    """Compiled text and views; compiled anew each time, for the size of a part is no argument."""
    run = jax.jit(lambda i, k: device.photometric_views(i, k, change)).lower(images, keys).compile()
    return run.as_text(), run(images, keys)


@pytest.mark.slow
@pytest.mark.parametrize(('devices', 'parts'), [(1, 24), (8, 3)])
def test_views_are_the_same_in_parts(devices, parts, mesh8, monkeypatch):
    images = jax.random.bits(jax.random.key(0), SHAPE, jnp.uint8)
    keys = jax.random.split(jax.random.key(1), len(images))
    whole = [changed(images, keys, change)[1] for change in (draw, CHANGE)]
    monkeypatch.setattr(device, 'AT_ONCE', 2 * 2 * 12 * 12 * 3 * 4)  # two examples
    there = images, keys
    if devices > 1:
        split = jax.sharding.NamedSharding(mesh8, jax.sharding.PartitionSpec('data'))
        there = jax.device_put(there, split)
    with jax.set_mesh(mesh8) if devices > 1 else contextlib.nullcontext():
        (_, drawn), (text, views) = (changed(*there, change) for change in (draw, CHANGE))
    assert f'"known_trip_count":{{"n":"{parts}"}}' in text
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        assert collective not in text
    assert views.sharding.is_equivalent_to(there[0].sharding, 5)
    np.testing.assert_array_equal(drawn, whole[0])
    # XLA fuses other sizes otherwise, so pixels agree to rounding.
    np.testing.assert_allclose(views, whole[1], atol=5e-6)


@pytest.mark.parametrize(
    ('examples', 'size', 'devices', 'parts'),
    [
        (256, 28, 1, 1),
        (256, 224, 1, 16),
        (4096, 224, 16, 16),
        (4096, 224, 256, 1),
        (34, 224, 1, 17),
        (7, 224, 2, 1),  # not to be shared evenly: not split
    ],
)
def test_parts_are_equal_and_small_enough(examples, size, devices, parts):
    numbers = examples * 2 * size * size * 3
    assert device._parts(examples, numbers, devices) == parts
    if examples % devices == 0:
        assert examples // devices % parts == 0
        assert 4 * numbers / devices / parts <= device.AT_ONCE
