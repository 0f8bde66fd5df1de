"""The moving average and its momentum, against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.core import Now, Run
from ssljax.momentum import Momentum, average

STEPS = 40
RUN = Run(examples=80, batch=8, steps=STEPS, steps_per_epoch=10)


def at(momentum, step):
    return float(jax.jit(momentum.at)(Now(jnp.asarray(step), jax.random.key(0), RUN)))


def trees():
    draw = lambda seed: {
        'kernel': jax.random.normal(jax.random.key(seed), (3, 4)),
        'norm': {'scale': jax.random.normal(jax.random.key(seed + 1), (4,))},
    }
    return draw(0), draw(10)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_zero_copies_the_source_and_one_keeps_the_target():
    target, source = trees()
    assert_same(average(target, source, 0.0), source)
    assert_same(average(target, source, 1.0), target)
    now = Now(jnp.asarray(3), jax.random.key(0), RUN)
    for schedule in ('constant', 'cosine', 'linear'):
        assert_same(average(target, source, Momentum(1.0, schedule).at(now)), target)
    assert_same(average(target, source, Momentum(0.0, 'constant').at(now)), source)


def test_towards_a_source_at_rest_the_distance_shrinks_by_the_momentum(x64):
    start, source = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trees())
    target = start
    for k in range(1, 6):
        target = average(target, source, 0.9)
        for t, s, t0 in zip(*map(jax.tree.leaves, (target, source, start)), strict=True):
            np.testing.assert_allclose(t - s, 0.9**k * (t0 - s), rtol=1e-12)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.float64])
def test_every_leaf_keeps_its_type(x64, dtype):
    ones = {'w': jnp.ones(3, dtype)}
    momentum = Momentum(0.99, 'cosine').at(Now(jnp.asarray(1), jax.random.key(0), RUN))
    assert average(ones, ones, momentum)['w'].dtype == dtype


@pytest.mark.parametrize(
    ('momentum', 'start', 'middle', 'end'),
    [
        (Momentum(0.996, 'cosine'), 0.996, 0.998, 1.0),
        (Momentum(0.9, 'cosine'), 0.9, 0.95, 1.0),
        (Momentum(0.996, 'linear'), 0.996, 0.998, 1.0),
        (Momentum(0.999, 'constant'), 0.999, 0.999, 0.999),
    ],
)
def test_starts_and_ends_as_published(momentum, start, middle, end):
    found = [at(momentum, step) for step in (0, STEPS // 2, STEPS)]
    np.testing.assert_allclose(found, [start, middle, end], rtol=1e-6)


def test_a_quarter_of_the_way_tells_cosine_from_line():
    left = (1 + np.cos(np.pi / 4)) / 2
    assert at(Momentum(0.9, 'cosine'), STEPS // 4) == pytest.approx(1 - 0.1 * left, rel=1e-6)
    assert at(Momentum(0.9, 'linear'), STEPS // 4) == pytest.approx(0.925, rel=1e-6)


def test_refuses_what_is_no_momentum():
    for wrong in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match=r'is outside \[0, 1\]; 0 copies'):
            Momentum(wrong)
