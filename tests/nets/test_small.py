"""The small residual network: shapes, pooling, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.config import decode, encode
from ssljax.nets.small import SmallResNet, pooled


@functools.cache
def fresh(module, shape):
    init = jax.jit(lambda key: module.init(key, jnp.zeros(shape), train=False))
    return init(jax.random.key(0))


@pytest.mark.parametrize(
    ('module', 'image', 'sides', 'features'),
    [
        (SmallResNet(), (28, 28, 1), (7, 7, 4), 128),
        (SmallResNet(), (32, 32, 3), (8, 8, 4), 128),
        (SmallResNet(stem_patch=2, stem_kernel=4, widths=(8, 16, 32), blocks=(1, 1, 2)),
         (28, 28, 1), (14, 14, 7, 4), 32),
        (SmallResNet(stem_kernel=7, widths=(8,), blocks=(2,)), (28, 28, 1), (7, 7), 8),
        (SmallResNet(widths=(8, 16), block='bottleneck'), (32, 32, 3), (8, 8, 4), 64),
        (SmallResNet(widths=(8, 16), blocks=(1, 1), pool='mean_max', grid=2, stages=2,
                     shortcut='pool'), (28, 28, 1), (7, 7, 4), 2 * 4 * (8 + 16)),
        (SmallResNet(stem_patch=1, stem_kernel=3, widths=(8, 16), blocks=(1, 1), stride=4),
         (28, 28, 1), (28, 28, 7), 16),
    ],
)  # fmt: skip
def test_maps_and_features_have_the_sizes_of_the_fields(module, image, sides, features):
    x = jnp.ones((2, *image))
    maps = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), x, train=False, method='features')[0]
    )
    names = ['stem', *(f'stage{i + 1}' for i in range(len(module.widths)))]
    assert tuple(maps[name].shape[1] for name in names) == sides
    assert maps['pool'].shape == (2, features)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype('float32')}


def test_parameters_are_those_of_its_convolutions_and_norms():
    params = fresh(SmallResNet(widths=(8, 16), blocks=(1, 1)), (1, 28, 28, 1))['params']
    stem = 4 * 4 * 1 * 8 + 2 * 8
    stage1 = 2 * (9 * 8 * 8 + 2 * 8)
    stage2 = 9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 3 * 2 * 16
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == stem + stage1 + stage2


def test_a_patch_stem_sees_each_patch_alone():
    module = SmallResNet(widths=(8,), blocks=(1,))
    variables = fresh(module, (1, 28, 28, 1))
    x = np.zeros((1, 28, 28, 1), np.float32)
    x[0, 4:8, 8:12] = 1.0
    maps = [
        module.apply(variables, jnp.asarray(image), train=False, method='features')['stem'][0]
        for image in (x, 0 * x)
    ]
    changed = np.abs(np.asarray(maps[0] - maps[1])).max(-1) > 0
    assert np.argwhere(changed).tolist() == [[1, 2]]


@pytest.mark.parametrize('pool', ['mean', 'max', 'mean_max'])
def test_pooling_takes_each_region_of_the_grid(pool):
    x = np.random.default_rng(0).normal(size=(3, 7, 7, 5)).astype(np.float32)
    take = {'mean': [np.mean], 'max': [np.max], 'mean_max': [np.mean, np.max]}[pool]
    halves = [slice(0, 4), slice(3, 7)]  # seven pixels in two: rounded outwards
    parts = [f(x[:, a, b], axis=(1, 2)) for a in halves for b in halves for f in take]
    np.testing.assert_allclose(pooled(jnp.asarray(x), pool, 2), np.concatenate(parts, 1), atol=1e-6)
    whole = np.concatenate([f(x, axis=(1, 2)) for f in take], 1)
    np.testing.assert_allclose(pooled(jnp.asarray(x), pool, 1), whole, atol=1e-6)


TINY = SmallResNet(widths=(8, 16), blocks=(1, 1), shortcut='pool')


def run(module, train):
    return jax.jit(lambda v, x: module.apply(v, x, train=train, mutable=['batch_stats']))


def test_bfloat16_is_near_float32():
    variables = fresh(TINY, (1, 28, 28, 1))
    x = jax.random.normal(jax.random.key(1), (16, 28, 28, 1))
    (exact, _), (near, _) = (
        run(module, False)(variables, x) for module in (TINY, TINY.clone(dtype='bfloat16'))
    )
    assert near.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(near - exact) / np.linalg.norm(exact) < 0.02


def test_an_image_sees_its_batch_in_training_only():
    variables = fresh(TINY, (1, 28, 28, 1))
    x = jax.random.normal(jax.random.key(1), (4, 28, 28, 1))
    (all_eval, _), (two_eval, _) = (run(TINY, False)(variables, a) for a in (x, x[:2]))
    (all_train, _), (two_train, _) = (run(TINY, True)(variables, a) for a in (x, x[:2]))
    np.testing.assert_allclose(all_eval[:2], two_eval, rtol=1e-5, atol=1e-5)
    assert np.abs(all_train[:2] - two_train).max() > 0.1


def test_training_moves_the_running_statistics_a_tenth_of_the_way_to_the_batch():
    variables = fresh(TINY, (1, 28, 28, 1))
    x = jax.random.normal(jax.random.key(1), (4, 28, 28, 1)) + 2
    _, new = run(TINY, True)(variables, x)
    patches = np.asarray(x, np.float64).reshape(4, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4)
    kernel = np.asarray(variables['params']['stem_conv']['kernel'], np.float64)
    maps = patches.reshape(-1, 16) @ kernel.reshape(16, 8)
    stats = new['batch_stats']['stem_norm']
    np.testing.assert_allclose(stats['mean'], 0.1 * maps.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * maps.var(0), rtol=1e-4)
    _, kept = run(TINY, False)(variables, x)
    for a, b in zip(
        jax.tree.leaves(kept['batch_stats']), jax.tree.leaves(variables['batch_stats']), strict=True
    ):
        assert np.array_equal(a, b)


@pytest.mark.parametrize('train', [True, False])
def test_eight_devices_compute_what_one_does(x64, mesh8, train):
    module = SmallResNet(widths=(8, 16), blocks=(1, 1), shortcut='pool', pool='mean_max', grid=2)
    variables = fresh(module, (1, 28, 28, 1))
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    x = jax.random.normal(jax.random.key(1), (16, 28, 28, 1), jnp.float64)

    def loss(params, x):
        v = {**variables, 'params': params}
        h, new = module.apply(v, x, train=train, mutable=['batch_stats'])
        return jnp.mean(jnp.sin(h)), new

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    everywhere = jax.device_put(variables['params'], NamedSharding(mesh8, PartitionSpec()))
    rows = jax.device_put(x, NamedSharding(mesh8, PartitionSpec('data')))
    one, eight = step(variables['params'], x), step(everywhere, rows)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'widths': (8, 16), 'blocks': (1,)}, 'describe different stages'),
        ({'widths': (), 'blocks': ()}, 'at least one'),
        ({'stem_patch': 0}, 'must be at least 1'),
        ({'stages': 3}, 'between 1 and 2'),
        ({'stem_kernel': 3}, 'would be lost'),
        ({'block': 'dense'}, "block is 'dense'; use one of 'basic', 'bottleneck'"),
        ({'pool': 'min'}, "pool is 'min'; use one of"),
        ({'shortcut': 'none'}, "shortcut is 'none'; use one of"),
        ({'dtype': 'int8'}, "dtype is 'int8'"),
    ],
)
def test_refuses_fields_it_has_not(monkeypatch, fields, message):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)  # as users have it
    with pytest.raises(ValueError, match=message):
        SmallResNet(**fields)


def test_refuses_a_grid_finer_than_the_map():
    with pytest.raises(ValueError, match='grid 5 is finer than the map of 4 x 4 pixels'):
        fresh(SmallResNet(widths=(8, 8), blocks=(1, 1), grid=5), (1, 28, 28, 1))


def test_is_a_value_that_a_configuration_holds():
    module = SmallResNet(stem_kernel=5, widths=(8, 16, 24), blocks=(1, 2, 3))
    assert decode(encode(module)) == module
