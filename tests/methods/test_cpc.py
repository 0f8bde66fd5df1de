"""CPC's own facts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssljax.core import Now, Run, Signature
from ssljax.methods.cpc import CPC, moved
from ssljax.nets.column_gru import ColumnGRU
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.preact_resnet import PreActResNet
from ssljax.nets.small import SmallResNet

RUN = Run(examples=40, batch=8, steps=10, steps_per_epoch=5)
PATCHES = PatchEncoder(PreActResNet((4,), (1,), 'cifar'), patch=4, stride=2)
SMALL = CPC(PATCHES, PixelCNN(1, 8), steps=2, first_step=2, subcrop=1)


def objective(method, weights, z, c):
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    return method.objective({'weights': weights}, {'z': z, 'c': c}, {'stats': {}}, now)


def batch(n=4, size=12, key=0):
    image = jax.random.normal(jax.random.key(key), (n, 1, size, size, 3))
    return {'image': image, 'key': jax.random.split(jax.random.key(1), n)}


def test_predicts_down_the_columns_among_all_patches(x64):
    rng = np.random.default_rng(0)
    z, c = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(2, 5, 3, 2))
    weights = rng.normal(size=(2, 4, 2))
    # Sequences are the columns of every image, from top to bottom.
    columns = [np.stack([a[n, :, j] for n in range(2) for j in range(3)]) for a in (c, z)]
    want = reference.log_bilinear(*columns, weights, first_step=2)
    loss, (_, metrics) = objective(SMALL, *map(jnp.asarray, (weights, z, c)))
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(metrics['information'], np.log(30) - want / 2, rtol=1e-10)


def test_images_of_a_group_are_candidates_for_each_other(x64):
    rng = np.random.default_rng(0)
    z, c = (jnp.asarray(rng.normal(size=(6, 5, 3, d))) for d in (4, 2))
    weights = jnp.asarray(rng.normal(size=(2, 4, 2)))
    loss, (_, metrics) = objective(dataclasses.replace(SMALL, group=2), weights, z, c)
    alone = [objective(SMALL, weights, z[at : at + 2], c[at : at + 2]) for at in (0, 2, 4)]
    np.testing.assert_allclose(loss, np.mean([loss for loss, _ in alone]), rtol=1e-12)
    information = np.mean([metrics['information'] for _, (_, metrics) in alone])
    np.testing.assert_allclose(metrics['information'], information, rtol=1e-10)


@pytest.mark.slow
def test_without_weights_nothing_is_known_and_the_start_is_close_to_that(x64):
    z = jax.random.normal(jax.random.key(0), (4, 7, 7, 8))
    loss, (_, metrics) = objective(SMALL, jnp.zeros((2, 8, 8)), z, z)
    assert float(loss) == pytest.approx(2 * np.log(4 * 49), rel=1e-12)
    assert float(metrics['information']) == pytest.approx(0, abs=1e-5)
    params, state = SMALL.init(jax.random.key(0), batch(), RUN)
    outputs, _ = SMALL.forward(params, state, batch(), jax.random.key(1))
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    assert float(SMALL.objective(params, outputs, state, now)[0]) < 1.1 * 2 * np.log(4 * 25)


@pytest.mark.parametrize('context', [PixelCNN(2, 8), ColumnGRU(8)])
def test_a_context_sees_no_pixel_below_its_patch(context):
    method = dataclasses.replace(SMALL, context=context, subcrop=0)
    params, state = method.init(jax.random.key(0), batch(), RUN)
    forward = jax.jit(lambda b: method.forward(params, state, b, jax.random.key(2))[0])
    before = forward(batch())
    # The patch of row 2 covers the pixels 4 to 7.
    image = batch()['image']
    below = image.at[:, :, 8:].add(1.0)
    changed = forward({**batch(), 'image': below})
    np.testing.assert_array_equal(changed['c'][:, :3], before['c'][:, :3])
    assert np.all(np.any(changed['c'][:, 3:] != before['c'][:, 3:], axis=(2, 3)))
    within = forward({**batch(), 'image': image.at[:, :, 7].add(1.0)})
    assert np.any(within['c'][:, 2] != before['c'][:, 2])


def test_an_image_knows_nothing_of_the_others_unless_by_batch_norm():
    alone = jax.tree.map(lambda leaf: leaf[:2], batch())
    leaky = PatchEncoder(SmallResNet(2, None, (4,), (1,)), patch=4, stride=2)
    for encoder, leaks in ((PATCHES, False), (leaky, True)):
        method = dataclasses.replace(SMALL, encoder=encoder)
        params, state = method.init(jax.random.key(0), batch(), RUN)
        both = [
            method.forward(params, state, b, jax.random.key(2))[0]['z'] for b in (batch(), alone)
        ]
        assert (float(jnp.max(jnp.abs(both[0][:2] - both[1]))) > 1e-3) == leaks


def test_a_subcrop_keeps_a_window_of_the_patch_in_the_middle():
    patches = 1 + jnp.arange(2 * 9 * 49, dtype=jnp.float32).reshape(2, 3, 3, 7, 7, 1)
    keys = jax.random.split(jax.random.key(0), 2)
    out = np.asarray(moved(patches, keys, 3))[..., 0]
    frame = np.ones((7, 7), bool)
    frame[1:5, 1:5] = False  # one pixel before, two behind
    assert np.all(out[..., frame] == 0)
    places = set()
    for at in np.ndindex(2, 3, 3):
        y, x = np.argwhere(np.asarray(patches)[at][..., 0] == out[at][1, 1])[0]
        np.testing.assert_array_equal(out[at][1:5, 1:5], patches[at][y : y + 4, x : x + 4, 0])
        places.add((int(y), int(x)))
    assert len(places) > 8 and {max(places)[0], min(places)[0]} == {0, 3}
    np.testing.assert_array_equal(moved(patches, keys, 0), patches)
    # By the example's own key, whatever else is in the batch.
    np.testing.assert_array_equal(moved(patches[1:], keys[1:], 3)[..., 0], out[1:])


def test_the_product_is_the_mean_over_the_grid():
    params, state = SMALL.init(jax.random.key(0), batch(), RUN)
    module, variables = SMALL.product(params, state)
    layers = module.apply(variables, batch()['image'][:, 0], train=False, method='features')
    assert layers['grid'].shape == (4, 5, 5, 16) and layers['pool'].shape == (4, 16)
    np.testing.assert_allclose(layers['pool'], layers['grid'].mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ('size', 'change', 'message'),
    [
        (32, {}, r'32 x 32 pixels are smaller than one patch of 64; use images of at least 64'),
        (128, {}, r'steps 2 to 5 do not fit into a grid of 3 rows .* views of at least 224'),
        (256, {'first_step': 0}, 'steps 0 to 3 do not fit'),
        (256, {'steps': 6}, 'steps 2 to 7 do not fit into a grid of 7 rows'),
        (256, {'subcrop': 64}, 'subcrop takes 64 of 64 pixels; use 0 to 63'),
        (256, {'group': 3}, 'groups of 3 images cannot be made of a batch of 8; use a divisor'),
    ],
)
def test_what_does_not_fit_is_refused(size, change, message):
    data = Signature((('image', (1, size)),), 3, None, 40)
    CPC().check(Signature((('image', (1, 256)),), 3, None, 40), RUN)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CPC(), **change).check(data, RUN)


@pytest.mark.parametrize(
    ('group', 'small'), [(None, None), (4, 4), (16, 16), (48, 16), (0, 0), (-16, -16)]
)
def test_smoke_leaves_groups_to_be_refused_that_no_batch_has(group, small):
    assert CPC(group=group).smoke().group == small


def test_the_batch_is_a_multiple_of_the_group():
    assert [CPC(group=group).batch_unit(2) for group in (None, 1, 16)] == [1, 1, 16]


def test_two_views_are_refused():
    data = Signature((('image', (2, 256)),), 3, None, 40)
    with pytest.raises(ValueError, match='1 view, the recipe makes 2'):
        CPC().check(data, RUN)
