"""DINO's head: its size, its equation, and what weight normalisation makes of its last layer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.config import decode, encode
from ssljax.nets.dino_head import DINOHead

HEAD = DINOHead(widths=(10, 6), bottleneck=4, prototypes=9)


def drawn(head, n=8, features=12, dtype=jnp.float64):
    """Variables of which every one counts, and features."""
    x = jax.random.normal(jax.random.key(1), (n, features), dtype)
    variables = head.init(jax.random.key(0), x, train=False)
    noise = lambda a: jnp.asarray(a + jax.random.normal(jax.random.key(a.size), a.shape), dtype)
    return jax.tree.map(noise, variables), x


def scores(head, variables, x):
    return head.apply(variables, x, train=False)


@pytest.mark.parametrize(('gain', 'count'), [(False, 22_286_592), (True, 22_352_128)])
def test_has_the_published_number_of_parameters(gain, count):
    head, x = DINOHead(learned_gain=gain), jnp.zeros((2, 384))
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert set(variables['params']) == {'linear1', 'linear2', 'linear3', 'last'}
    assert 'bias' not in variables['params']['last']


def test_is_its_equation(x64):
    variables, x = drawn(HEAD)
    params, y = jax.tree.map(np.asarray, variables['params']), np.asarray(x)
    for i in (1, 2, 3):
        y = y @ params[f'linear{i}']['kernel'] + params[f'linear{i}']['bias']
        if i < 3:
            y = np.asarray([a * 0.5 * (1 + np.vectorize(_erf)(a / np.sqrt(2))) for a in y])
    w = params['last']['kernel']
    want = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in w.T] for a in y]
    got = scores(HEAD, variables, x)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, atol=1e-12)


def _erf(x):
    from math import erf

    return erf(x)


def test_scores_are_cosines_whatever_the_lengths_of_the_prototypes(x64):
    variables, x = drawn(HEAD)
    want = scores(HEAD, variables, x)
    assert np.abs(want).max() <= 1 + 1e-12
    last = variables['params']['last']
    longer = last['kernel'] * jnp.linspace(0.1, 50, 9)
    other = {'params': {**variables['params'], 'last': {'kernel': longer}}}
    np.testing.assert_allclose(scores(HEAD, other, x), want, atol=1e-12)


def test_the_gradient_turns_prototypes_and_does_not_stretch_them(x64):
    variables, x = drawn(HEAD)
    slope = jax.grad(lambda v: jnp.sum(jnp.sin(3 * scores(HEAD, v, x))))(variables)
    w, g = variables['params']['last']['kernel'], slope['params']['last']['kernel']
    assert np.all(np.linalg.norm(g, axis=0) > 1e-3)
    np.testing.assert_allclose(np.sum(np.asarray(w * g), axis=0), 0, atol=1e-12)


def test_a_learned_gain_multiplies_and_starts_at_one(x64):
    head = dataclasses.replace(HEAD, learned_gain=True)
    variables, x = drawn(HEAD)
    gained = head.init(jax.random.key(0), x, train=False)['params']['last']['gain']
    np.testing.assert_array_equal(gained, 1)
    gain = jnp.linspace(-1, 3, 9)
    last = {**variables['params']['last'], 'gain': gain}
    other = {'params': {**variables['params'], 'last': last}}
    want = scores(HEAD, variables, x) * gain
    np.testing.assert_allclose(scores(head, other, x), want, atol=1e-12)


def test_features_of_zero_score_zero_and_have_finite_slopes():
    x = jnp.zeros((3, 12))
    variables = HEAD.init(jax.random.key(0), x, train=False)
    value, slope = jax.value_and_grad(lambda v: jnp.sum(scores(HEAD, v, x) ** 2))(variables)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_batch_norm_stands_behind_the_hidden_layers_alone():
    head = dataclasses.replace(HEAD, batch_norm=True)
    x = jax.random.normal(jax.random.key(0), (16, 12))
    variables = head.init(jax.random.key(0), x, train=True)
    assert set(variables['batch_stats']) == {'norm1', 'norm2'}
    _, new = head.apply(variables, 3 + x, train=True, mutable=['batch_stats'])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new['batch_stats'],
                         variables['batch_stats'])  # fmt: skip
    assert all(jax.tree.leaves(moved))
    assert set(HEAD.init(jax.random.key(0), x, train=True)) == {'params'}


def test_bfloat16_rounds_and_comes_out_as_float32():
    variables, x = drawn(HEAD, dtype=jnp.float32)
    low = scores(dataclasses.replace(HEAD, dtype='bfloat16'), variables, x)
    high = scores(HEAD, variables, x)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, atol=0.05)
    assert (low != high).any()


def test_directions_of_prototypes_start_as_the_authors():
    kernel = DINOHead(widths=(), bottleneck=256, prototypes=512).init(
        jax.random.key(0), jnp.zeros((1, 8)), train=False
    )['params']['last']['kernel']
    # Uniform in +-1/16.
    assert np.abs(kernel).max() <= 1 / 16
    np.testing.assert_allclose(np.std(kernel), 1 / 16 / np.sqrt(3), rtol=0.01)


@pytest.mark.parametrize(
    'fields', [{'widths': (0,)}, {'bottleneck': 0}, {'prototypes': 1}, {'dtype': 'float16'}]
)
def test_bad_sizes_are_refused(fields):
    with pytest.raises((ValueError, TypeError), match=r'must be at least|dtype'):
        DINOHead(**fields)


def test_survives_a_configuration_file_and_shrinks():
    head = DINOHead(widths=(64, 20), learned_gain=True)
    assert decode(json.loads(json.dumps(encode(head)))) == head
    small = head.smoke()
    assert (small.widths, small.bottleneck, small.prototypes) == ((32, 20), 16, 64)
    assert small.learned_gain
