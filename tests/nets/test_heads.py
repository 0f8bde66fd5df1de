"""Heads: published sizes, the equation in float64, which BatchNorm stands where."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ssljax.config import decode, encode
from ssljax.nets.heads import Classifier, ProjectionHead

PARAMETERS = {
    'SimCLR v1': (ProjectionHead(), 2048, 4_460_672),
    'MoCo v2': (
        ProjectionHead((2048, 128), 'none', True, 'none', True),
        2048,
        4_458_624,
    ),
    'BYOL projector': (ProjectionHead((4096, 256), 'affine', True, 'none'), 2048, 9_449_472),
    'BYOL predictor': (ProjectionHead((4096, 256), 'affine', True, 'none'), 256, 2_109_440),
    'SimSiam projector': (
        ProjectionHead((2048, 2048, 2048), 'affine', False, 'plain', True),
        2048,
        12_593_152,
    ),
    'SimSiam predictor': (ProjectionHead((512, 2048), 'affine', False, 'none', True), 2048,
                          2_100_224),
    'Barlow Twins': (ProjectionHead((8192,) * 3, 'affine', False, 'none'), 2048, 151_027_712),
    'VICReg': (ProjectionHead((8192,) * 3, 'affine', True, 'none'), 2048, 151_044_096),
    'SwAV': (ProjectionHead((2048, 128), 'affine', True, 'none', True), 2048,
             4_846_720 - 3000 * 128),
}  # fmt: skip


@pytest.mark.parametrize('name', PARAMETERS)
def test_has_the_published_number_of_parameters(name):
    head, features, count = PARAMETERS[name]
    x = jnp.zeros((2, features))
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=False))
    leaves = jax.tree.leaves(variables['params'])
    assert sum(leaf.size for leaf in leaves) == count
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}


def small(head, n=32, features=12):
    x = jax.random.normal(jax.random.key(1), (n, features), jnp.float64)
    variables = head.init(jax.random.key(0), x, train=False)
    rng = np.random.default_rng(0)  # so that every scale, offset and statistic counts
    draw = lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape) if a.ndim == 1 else a, jnp.float64)
    return jax.tree.map(draw, variables), x


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('widths', [(10, 6), (10, 9, 6)], ids=['v1', 'v2'])
def test_simclr_is_linear_norm_relu_linear_norm(x64, widths, train):
    head = ProjectionHead(widths)
    variables, x = small(head)
    params, stats = variables['params'], variables['batch_stats']
    y = np.asarray(x)
    for i in range(1, len(widths) + 1):
        y = y @ np.asarray(params[f'linear{i}']['kernel'])
        mean, var = (
            (y.mean(0), y.var(0))
            if train
            else (stats[f'norm{i}']['mean'], stats[f'norm{i}']['var'])
        )
        y = (y - mean) / np.sqrt(var + 1e-5) * params[f'norm{i}']['scale']
        if i < len(widths):
            y = np.maximum(y + params[f'norm{i}']['bias'], 0)
    assert 'bias' not in params[f'norm{len(widths)}']
    assert all('bias' not in params[f'linear{i}'] for i in range(1, len(widths) + 1))
    z, _ = head.apply(variables, x, train=train, mutable=['batch_stats'])
    assert z.dtype == jnp.float64
    np.testing.assert_allclose(z, y, atol=1e-12)


def test_without_norms_it_is_a_plain_perceptron_with_no_statistics(x64):
    head = ProjectionHead((10, 6), 'none', True, 'none', True)
    variables, x = small(head)
    assert set(variables) == {'params'}
    p = variables['params']
    hidden = np.maximum(x @ p['linear1']['kernel'] + p['linear1']['bias'], 0)
    expected = hidden @ p['linear2']['kernel'] + p['linear2']['bias']
    np.testing.assert_allclose(head.apply(variables, x, train=True), expected, atol=1e-12)


def test_bfloat16_is_near_float32_and_comes_out_in_float32():
    head = ProjectionHead((256, 64))
    x = jax.random.normal(jax.random.key(1), (64, 128))
    variables = head.init(jax.random.key(0), x, train=False)
    exact, _ = head.apply(variables, x, train=True, mutable=['batch_stats'])
    near, _ = head.clone(dtype='bfloat16').apply(variables, x, train=True, mutable=['batch_stats'])
    assert near.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(near - exact) / np.linalg.norm(exact) < 0.02


def test_classifier_is_linear_and_starts_near_the_uniform_prediction(x64):
    x = jax.random.normal(jax.random.key(1), (4, 64), jnp.float64)
    variables = Classifier(10).init(jax.random.key(0), x)
    scores = Classifier(10).apply(variables, x)
    layer = variables['params']['linear']
    assert (layer['kernel'].shape, layer['kernel'].dtype) == ((64, 10), jnp.float32)
    np.testing.assert_allclose(scores, x @ layer['kernel'] + layer['bias'], atol=1e-12)
    assert np.array_equal(scores, Classifier(10).apply(variables, x, train=True))
    assert np.abs(scores).max() < 0.5


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'widths': ()}, 'one layer or more'),
        ({'last_norm': 'layer'}, "the norm is 'layer'"),
        ({'dtype': 'half'}, "dtype is 'half'"),
    ],
)
def test_refuses_fields_it_has_not(monkeypatch, fields, message):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)  # as users have it
    with pytest.raises(ValueError, match=message):
        ProjectionHead(**fields)


def test_is_a_value_that_a_configuration_holds():
    head = ProjectionHead((512, 128), dtype='bfloat16')
    assert decode(encode(head)) == head
