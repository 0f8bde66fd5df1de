"""Grouped BatchNorm: each part of the batch by itself, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.nets.norm import EPSILON, MOMENTUM, GroupedBatchNorm, batch_norm
from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet

N, GROUPS = 16, 8


def draw(*shape, seed=0, dtype=jnp.float64):
    """Numbers whose mean and spread differ between examples."""
    numbers = jax.random.normal(jax.random.key(seed), shape, dtype)
    each = jnp.arange(shape[0], dtype=dtype).reshape(-1, *(1,) * (len(shape) - 1))
    return numbers * (1 + each / 4) + each


def variables(channels, dtype=jnp.float64):
    """Parameters and statistics unlike the initial ones."""
    rng = np.random.default_rng(0)
    row = lambda: jnp.asarray(rng.uniform(0.5, 2, channels), dtype)
    return {
        'params': {'scale': row(), 'bias': row()},
        'batch_stats': {'mean': row(), 'var': row()},
    }


def plain(train=True):
    return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON)


def assert_close(a, b, **bounds):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **bounds), a, b)


@pytest.mark.parametrize('shape', [(N, 5), (N, 3, 4, 5)])
def test_one_group_is_batch_norm(x64, shape):
    x, v = draw(*shape), variables(shape[-1])
    weights = draw(*shape, seed=1)

    def outcome(module):
        def loss(params, x):
            y, new = module.apply({**v, 'params': params}, x, mutable=['batch_stats'])
            return jnp.sum(weights * y), (y, new)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(v['params'], x)

    assert_close(outcome(GroupedBatchNorm(1, False)), outcome(plain()), rtol=1e-9, atol=1e-9)
    assert isinstance(batch_norm(True, None), nn.BatchNorm)


@pytest.mark.parametrize('shape', [(N, 5), (N, 3, 4, 5)])
def test_every_group_is_normalised_by_itself(x64, shape):
    x, v = draw(*shape), variables(shape[-1])
    grouped = batch_norm(True, None, GROUPS)
    y, new = grouped.apply(v, x, mutable=['batch_stats'])
    parts = [plain().apply(v, part, mutable=['batch_stats']) for part in jnp.split(x, GROUPS)]
    assert_close(y, jnp.concatenate([part for part, _ in parts]), rtol=1e-9, atol=1e-9)
    averaged = jax.tree.map(lambda *leaves: sum(leaves) / GROUPS, *[stats for _, stats in parts])
    assert_close(new, averaged, rtol=1e-9)
    whole = plain().apply(v, x, mutable=['batch_stats'])[0]
    assert np.abs(y - whole).max() > 0.1


def test_in_evaluation_it_is_batch_norm_for_any_number_of_examples(x64):
    v = variables(5)
    for n in (1, 3, N):
        x = draw(n, 2, 2, 5)
        assert_close(
            batch_norm(False, None, GROUPS).apply(v, x), plain(train=False).apply(v, x), rtol=1e-12
        )


def test_fields_choose_its_parameters():
    x = jnp.ones((N, 5))
    fresh = lambda **fields: batch_norm(False, None, GROUPS, **fields).init(jax.random.key(0), x)
    assert set(fresh()['params']) == {'scale', 'bias'}
    assert set(fresh(use_bias=False)['params']) == {'scale'}
    assert 'params' not in fresh(use_bias=False, use_scale=False)
    zeros = fresh(scale_init=nn.initializers.zeros)['params']['scale']
    np.testing.assert_array_equal(zeros, 0)
    np.testing.assert_array_equal(fresh()['batch_stats']['mean'], 0)
    np.testing.assert_array_equal(fresh()['batch_stats']['var'], 1)


def test_bfloat16_goes_through_float32_statistics():
    x = draw(N, 64, 5, dtype=jnp.float32)
    v = variables(5, jnp.float32)
    module = batch_norm(True, jnp.bfloat16, GROUPS)
    y, new = module.apply(v, x.astype(jnp.bfloat16), mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype('float32')}
    exact = batch_norm(True, None, GROUPS).apply(v, x, mutable=['batch_stats'])[0]
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.1)


@pytest.mark.parametrize(
    ('grouped', 'whole'),
    [
        (SmallResNet(widths=(8, 16), norm_groups=GROUPS), SmallResNet(widths=(8, 16))),
        (ResNet(depth=18, stem='cifar', norm_groups=GROUPS), ResNet(depth=18, stem='cifar')),
        (ResNet(depth=50, norm_groups=GROUPS), ResNet(depth=50)),
    ],
    ids=['small', 'basic', 'bottleneck'],
)
def test_an_encoder_has_the_same_variables_and_every_norm_in_groups(grouped, whole):
    x = jnp.zeros((GROUPS, 32, 32, 3))
    init = lambda module: jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    assert init(grouped) == init(whole)

    shapes = []

    def note(call, arguments, options, context):
        if isinstance(context.module, GroupedBatchNorm | nn.BatchNorm):
            shapes.append(type(context.module))
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: grouped.init(jax.random.key(0), x, train=False))
    assert set(shapes) == {GroupedBatchNorm}


def encoder_outcome(variables, x):
    module = SmallResNet(stem_patch=2, widths=(8,), blocks=(1,), norm_groups=GROUPS)

    def loss(params):
        v = {**variables, 'params': params}
        y, new = module.apply(v, x, train=True, mutable=['batch_stats'])
        return jnp.mean(jnp.square(y) * jnp.arange(y.shape[1])), (y, new)

    return jax.value_and_grad(loss, has_aux=True)(variables['params'])


def encoder_variables(x):
    module = SmallResNet(stem_patch=2, widths=(8,), blocks=(1,))
    fresh = module.init(jax.random.key(0), x, train=False)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), fresh)


def test_one_and_eight_devices_give_the_same(x64, mesh8):
    x = draw(N, 8, 8, 3)
    v = encoder_variables(x)
    split, whole = (NamedSharding(mesh8, PartitionSpec(*a)) for a in (('data',), ()))
    one = jax.jit(encoder_outcome)(v, x)
    with jax.set_mesh(mesh8):
        eight = jax.jit(encoder_outcome, in_shardings=(whole, split))(v, x)
    assert_close(one, eight, rtol=1e-10, atol=1e-10)


def test_an_example_meets_only_its_own_group(x64):
    x = draw(N, 8, 8, 3)
    v = encoder_variables(x)
    features = jax.jit(lambda x: encoder_outcome(v, x)[0][1][0])
    moved = np.abs(features(x.at[5].add(draw(1, 8, 8, 3, seed=2)[0])) - features(x)).max(1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), [4, 5])


@pytest.mark.parametrize(('groups', 'silent'), [(GROUPS, True), (1, False)])
def test_a_group_a_device_needs_no_collective(mesh8, groups, silent):
    v = variables(5, jnp.float32)
    apply = lambda x: batch_norm(True, None, groups).apply(v, x, mutable=['batch_stats'])[0]
    split = NamedSharding(mesh8, PartitionSpec('data'))
    x = jax.ShapeDtypeStruct((N, 4, 4, 5), jnp.float32)
    with jax.set_mesh(mesh8):
        compiled = jax.jit(apply, in_shardings=split, out_shardings=split).lower(x).compile()
    names = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute')
    assert silent != any(name in compiled.as_text() for name in names)


def test_refuses_what_cannot_be_split():
    x, v = jnp.ones((100, 5)), variables(5, jnp.float32)
    with pytest.raises(ValueError, match='batch of 100 cannot be split evenly into 8 groups'):
        batch_norm(True, None, 8).apply(v, x, mutable=['batch_stats'])
    for encoder in (ResNet, SmallResNet):
        with pytest.raises(ValueError, match='norm_groups is 0; use 1'):
            encoder(norm_groups=0)
