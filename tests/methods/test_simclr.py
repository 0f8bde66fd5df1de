"""SimCLR's own facts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.core import Now, Run, Signature
from ssljax.methods import measures
from ssljax.methods.simclr import SimCLR

RUN = Run(examples=80, batch=8, steps=10, steps_per_epoch=10)


def objective(method, z):
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    return method.objective({}, {'z': z}, {'stats': {}}, now)


@pytest.mark.parametrize(('temperature', 'want'), [(0.5, 1.062879), (0.1, None)])
def test_perfect_pairs_of_orthogonal_images(temperature, want):
    n = 8
    z = jnp.repeat(jnp.eye(n)[:, None], 2, axis=1)
    loss, _ = objective(SimCLR(temperature=temperature), z)
    e = np.exp(1 / temperature)
    np.testing.assert_allclose(loss, -np.log(e / (e + 2 * n - 2)), rtol=1e-4)
    if want is not None:
        np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_the_loss_is_half_of_the_reference_code():
    # The authors' TensorFlow code returns the sum of both directions' means; equation 1 of the
    # paper is their mean: collapsed embeddings of N pairs cost ln(2N - 1), once.
    loss, _ = objective(SimCLR(temperature=0.1), jnp.ones((8, 2, 4)))
    np.testing.assert_allclose(loss, np.log(15), rtol=1e-5)


def test_measures_tell_a_collapse_from_a_sphere():
    spread = jax.random.normal(jax.random.key(0), (4096, 2, 16))
    assert measures.of_views(spread)['std'] == pytest.approx(1, abs=0.02)
    assert measures.of_views(spread)['agreement'] == pytest.approx(0, abs=0.02)
    collapsed = measures.of_views(jnp.ones((64, 2, 16)))
    assert collapsed['std'] == pytest.approx(0, abs=1e-3)
    assert collapsed['agreement'] == pytest.approx(1)


def test_one_view_is_refused():
    data = Signature((('image', (1, 32)),), 3, None, 80)
    with pytest.raises(ValueError, match='at least 2, the recipe makes 1'):
        SimCLR().check(data, RUN)


def test_temperature_must_be_positive():
    data = Signature((('image', (2, 32)),), 3, None, 80)
    with pytest.raises(ValueError, match='temperature is 0'):
        dataclasses.replace(SimCLR(), temperature=0.0).check(data, RUN)
