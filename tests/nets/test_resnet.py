"""ResNets: sizes, shapes, types, BatchNorm's bookkeeping, one device and eight."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.config import decode, encode
from ssljax.nets.resnet import ResNet

PARAMETERS = [
    (ResNet(depth=18), 11_176_512),
    (ResNet(depth=34), 21_284_672),
    (ResNet(depth=50), 23_508_032),
    (ResNet(depth=101), 42_500_160),
    (ResNet(depth=152), 58_143_808),
    pytest.param(ResNet(depth=200), 62_624_832, marks=pytest.mark.slow),
    (ResNet(depth=50, inner_width=2), 66_834_240),
    (ResNet(depth=50, width=2), 93_907_072),
    (ResNet(depth=50, width=3), 211_197_120),
    (ResNet(depth=50, width=4), 375_378_176),
    (ResNet(depth=50, width=5), 586_450_240),
    pytest.param(ResNet(depth=101, width=2), 169_771_136, marks=pytest.mark.slow),
    pytest.param(ResNet(depth=152, width=2), 232_253_568, marks=pytest.mark.slow),
    pytest.param(ResNet(depth=152, width=3), 522_329_280, marks=pytest.mark.slow),
    pytest.param(ResNet(depth=200, width=2), 250_128_512, marks=pytest.mark.slow),
    (ResNet(depth=18, stem='cifar'), 11_168_832),
    (ResNet(depth=50, stem='cifar'), 23_500_352),
]


def label(parameter):
    """A short name for the module of a case."""
    if isinstance(parameter, ResNet):
        return f'{parameter.depth}x{parameter.width}x{parameter.inner_width}-{parameter.stem}'
    return str(parameter)


def shapes(module, image, method=None):
    """The abstract variables and outputs on images of that shape."""

    def run(key):
        x = jnp.zeros(image)
        variables = module.init(key, x, train=False)
        return variables, module.apply(variables, x, train=False, method=method)

    return jax.eval_shape(run, jax.random.key(0))


@functools.cache
def fresh(module):
    init = jax.jit(lambda key: module.init(key, jnp.zeros((1, 16, 16, 3)), train=False))
    return init(jax.random.key(0))


def images(n):
    return jax.random.normal(jax.random.key(1), (n, 16, 16, 3), jnp.float32)


def wide(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)


@pytest.mark.slow
@pytest.mark.parametrize(('module', 'count'), PARAMETERS, ids=label)
def test_has_the_published_number_of_parameters(module, count):
    variables, _ = shapes(module, (1, 64, 64, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
    ('module', 'size', 'sides', 'width'),
    [
        (ResNet(depth=18), 224, (56, 56, 28, 14, 7), 64),
        (ResNet(depth=18), 97, (25, 25, 13, 7, 4), 64),
        (ResNet(depth=50, width=2), 224, (56, 56, 28, 14, 7), 512),
        (ResNet(depth=18, stem='cifar'), 32, (32, 32, 16, 8, 4), 64),
    ],
)
def test_maps_have_the_sides_of_symmetric_padding(module, size, sides, width):
    _, maps = shapes(module, (2, size, size, 3), 'features')
    names = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')
    assert tuple(maps[name].shape[1] for name in names) == sides
    assert tuple(maps[name].shape[3] for name in names[1:]) == tuple(width * 2**i for i in range(4))
    assert maps['pool'].shape == (2, width * 8)


@pytest.mark.parametrize('channels', [1, 3, 8])
def test_takes_any_number_of_channels(channels):
    variables, pool = shapes(ResNet(depth=18), (2, 64, 64, channels))
    assert variables['params']['stem_conv']['kernel'].shape == (7, 7, channels, 64)
    assert pool.shape == (2, 512)


def test_pool_is_the_mean_of_the_last_maps_and_what_a_call_returns():
    module = ResNet(depth=18, stem='cifar')

    @jax.jit
    def both(variables, x):
        maps = module.apply(variables, x, train=False, method='features')
        return maps, module.apply(variables, x, train=False)

    maps, called = both(fresh(module), images(2))
    np.testing.assert_allclose(maps['pool'], np.mean(maps['stage4'], axis=(1, 2)), atol=1e-6)
    assert np.array_equal(called, maps['pool'])


@pytest.mark.parametrize('zero_init', [True, False])
def test_zero_init_reaches_the_last_scale_of_every_block(zero_init):
    module = ResNet(depth=18, zero_init=zero_init)

    @jax.jit
    def scales(key):
        params = module.init(key, jnp.zeros((1, 16, 16, 3)), train=False)['params']
        blocks = [layers for name, layers in params.items() if 'block' in name]
        return [(layers['norm1']['scale'], layers['norm2']['scale']) for layers in blocks]

    pairs = scales(jax.random.key(0))
    assert len(pairs) == 8
    for first, last in pairs:
        assert np.all(first == 1)
        assert np.all(last == (0 if zero_init else 1))


@pytest.mark.slow
def test_float64_stays_float64(x64):
    module = ResNet(depth=18, stem='cifar', zero_init=False)
    run = jax.jit(lambda v, x: module.apply(v, x, train=False))
    exact = run(wide(fresh(module)), images(2).astype(jnp.float64))
    single = run(fresh(module), images(2))
    assert (exact.dtype, single.dtype) == (jnp.float64, jnp.float32)
    assert 1e-9 < np.linalg.norm(exact - single) / np.linalg.norm(exact) < 1e-5


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_outside():
    exact = ResNet(depth=18, stem='cifar', zero_init=False)
    module = ResNet(depth=18, stem='cifar', zero_init=False, dtype='bfloat16')
    variables = fresh(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

    def run(module):
        apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=['batch_stats']))
        return apply(variables, images(8))

    (a, stats_a), (b, stats_b) = run(exact), run(module)
    assert b.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats_b)} == {jnp.dtype('float32')}
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.03  # 8 bits of mantissa: 4e-3 each
    for p, q in zip(jax.tree.leaves(stats_a), jax.tree.leaves(stats_b), strict=True):
        assert np.linalg.norm(p - q) < 0.03 * np.linalg.norm(p) + 0.01

    jaxpr = jax.make_jaxpr(lambda x: module.apply(variables, x, train=False))(images(1))
    convolutions = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'conv_general_dilated']
    assert {v.aval.dtype for e in convolutions for v in e.invars} == {jnp.dtype('bfloat16')}


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(x64, mesh8):
    module = ResNet(depth=10, stem='cifar', zero_init=False)
    variables = wide(fresh(module))
    x = images(16).astype(jnp.float64)

    def loss(params, x):
        h, new = module.apply(
            {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
        )
        return jnp.mean(jnp.sin(h)), new

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    everywhere = jax.device_put(variables['params'], NamedSharding(mesh8, PartitionSpec()))
    rows = jax.device_put(x, NamedSharding(mesh8, PartitionSpec('data')))
    one, eight = step(variables['params'], x), step(everywhere, rows)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'depth': 20}, 'depth is 20; use one of 10, 18, 34'),
        ({'stem': 'tiny'}, "stem is 'tiny'; use 'imagenet' or 'cifar'"),
        ({'width': 0}, 'factors from 1'),
        ({'dtype': 'float16'}, "dtype is 'float16'; use 'float32' or 'bfloat16'"),
        ({'depth': 18, 'inner_width': 2}, 'has no bottlenecks'),
    ],
)
def test_refuses_fields_it_has_not(monkeypatch, fields, message):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)  # as users have it
    with pytest.raises(ValueError, match=message):
        ResNet(**fields)


def test_is_a_value_that_a_configuration_holds():
    module = ResNet(depth=34, width=2, dtype='bfloat16')
    assert decode(encode(module)) == module
    assert hash(module) == hash(ResNet(depth=34, width=2, dtype='bfloat16'))
