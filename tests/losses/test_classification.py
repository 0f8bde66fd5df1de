"""Cross-entropy against its definition, and what its gradient is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssljax.losses.classification import cross_entropy

RNG = np.random.default_rng(0)
SCORES, LABELS = RNG.normal(size=(3, 4, 7)), RNG.integers(0, 7, (3, 4))


def test_is_minus_the_log_of_the_labels_share(x64):
    shares = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(shares, LABELS[..., None], -1)[..., 0])
    found = cross_entropy(jnp.asarray(SCORES), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_is_the_log_of_the_classes_where_all_are_equal(x64):
    found = cross_entropy(jnp.full((2, 7), 3.0), jnp.array([0, 6]))
    np.testing.assert_allclose(found, np.log(7), rtol=1e-14)


def test_gradient(x64):
    of = lambda scores: jnp.sum(cross_entropy(jnp.asarray(scores), jnp.asarray(LABELS)))
    check_grads(of, (jnp.asarray(SCORES),), order=1)
    np.testing.assert_allclose(jnp.sum(jax.grad(of)(jnp.asarray(SCORES)), -1), 0, atol=1e-12)


@pytest.mark.parametrize(
    ('dtype', 'wanted'),
    [('bfloat16', 'float32'), ('float32', 'float32'), ('float64', 'float64')],
)
def test_is_computed_in_float32_at_least(x64, dtype, wanted):
    assert cross_entropy(jnp.asarray(SCORES, dtype), jnp.asarray(LABELS)).dtype == wanted
