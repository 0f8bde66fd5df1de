"""The solver reaches the optimum: scikit-learn's, and the one where the gradient vanishes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.evaluate.logistic import Problem, rotate, solve, with_intercept


def data(n, d, classes=4, noise=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    scale = np.logspace(0, -2, d)  # ill-conditioned, as features are
    x = (rng.normal(size=(classes, d))[labels] + noise * rng.normal(size=(n, d))) * scale
    return x.astype(np.float32), labels


def problem(x, labels, c, weights=None):
    z, basis, spectrum = rotate(jnp.asarray(x))
    weights = np.ones(len(x)) if weights is None else weights
    return basis, Problem(
        inputs=with_intercept(z),
        targets=jax.nn.one_hot(labels, int(labels.max()) + 1, dtype=z.dtype),
        weights=jnp.asarray(weights / weights.sum(), z.dtype),
        spectrum=jnp.append(spectrum, 1),
        l2=jnp.asarray(1 / (c * weights.sum()), z.dtype),
    )


def zeros(p):
    return jnp.zeros((p.inputs.shape[1], p.targets.shape[1]), p.inputs.dtype)


@jax.jit
def solved(p, start, tolerance=1e-6, iterations=1000):
    return solve(p, start, tolerance=tolerance, iterations=iterations)


@pytest.mark.parametrize('c', [1e-3, 0.1, 10.0])
@pytest.mark.parametrize(('n', 'd'), [(300, 20), (40, 100)])
def test_the_objective_is_scikit_learns(n, d, c):
    from sklearn.linear_model import LogisticRegression

    x, labels = data(n, d)
    other = LogisticRegression(C=c, tol=1e-9, max_iter=20000).fit(np.float64(x), labels)
    logits = np.float64(x) @ other.coef_.T + other.intercept_
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = -c * log_p[np.arange(n), labels].sum() + (other.coef_**2).sum() / 2

    _, p = problem(x, labels, c)
    ours = float(solved(p, zeros(p)).objective) * c * n
    assert ours == pytest.approx(expected, rel=1e-4)


def test_the_gradient_vanishes_in_float64(x64):
    x, labels = data(300, 20)
    basis, p = problem(np.float64(x), labels, 1.0)
    weights = solved(p, zeros(p), tolerance=0.0).weights
    kernel, bias = basis @ weights[:-1], weights[-1]

    def objective(kernel, bias):
        log_p = jax.nn.log_softmax(x @ kernel + bias)
        return -log_p[jnp.arange(300), labels].mean() + jnp.sum(kernel**2) / 600

    gradients = jax.grad(objective, argnums=(0, 1))(kernel, bias)
    assert max(float(jnp.abs(g).max()) for g in gradients) < 1e-7


def test_a_weight_of_zero_leaves_an_example_out():
    x, labels = data(120, 8)
    kept = np.arange(120) < 60
    basis, masked = problem(x, labels, 1.0, weights=1.0 * kept)
    twice = np.tile(np.arange(60), 2)  # each kept example twice: the same mean
    alone_basis, alone = problem(x[twice], labels[twice], 0.5)
    one = basis @ solved(masked, zeros(masked)).weights[:-1]
    other = alone_basis @ solved(alone, zeros(alone)).weights[:-1]
    np.testing.assert_allclose(one, other, atol=2e-2)


def test_problems_under_vmap_are_solved_as_alone():
    x, labels = data(120, 8)
    _, p = problem(x, labels, 1.0)
    l2 = jnp.array([1e-4, 1e-2, 1.0])
    together = jax.vmap(lambda s: solved(dataclasses.replace(p, l2=s), zeros(p)))(l2)
    for i, strength in enumerate(l2):
        alone = solved(dataclasses.replace(p, l2=strength), zeros(p))
        assert together.objective[i] == pytest.approx(float(alone.objective), rel=1e-5)


def test_a_warm_start_saves_iterations_and_ends_at_the_same_value():
    x, labels = data(300, 20)
    _, p = problem(x, labels, 1.0)
    near = solved(dataclasses.replace(p, l2=p.l2 * 1.5), zeros(p)).weights
    cold, warm = solved(p, zeros(p)), solved(p, near)
    assert warm.iterations < cold.iterations
    assert warm.objective == pytest.approx(float(cold.objective), rel=1e-5)


def test_iterations_are_bounded_and_never_raise_the_objective():
    x, labels = data(300, 20)
    _, p = problem(x, labels, 10.0)
    values = [float(solved(p, zeros(p), 0.0, i).objective) for i in range(8)]
    assert values[0] == pytest.approx(np.log(4), rel=1e-6)
    assert all(b < a for a, b in itertools.pairwise(values))
    assert solved(p, zeros(p), 0.0, 7).iterations == 7


def test_numbers_that_are_none_end_the_search_at_once():
    x, labels = data(40, 5)
    _, p = problem(x, labels, 1.0)
    broken = dataclasses.replace(p, inputs=p.inputs * jnp.nan)
    assert solved(broken, zeros(p)).iterations == 1


@pytest.mark.parametrize(('n', 'd'), [(60, 9), (9, 9), (9, 60)])
def test_rotation_is_orthonormal_and_diagonalises_the_second_moments(n, d):
    x, _ = data(n, d)
    z, basis, spectrum = rotate(jnp.asarray(x))
    r = min(n, d)
    assert z.shape == (n, r)
    np.testing.assert_allclose(basis.T @ basis, np.eye(r), atol=1e-5)
    np.testing.assert_allclose(z.T @ z / n, np.diag(spectrum), atol=1e-5 * float(spectrum.max()))
    np.testing.assert_allclose(z @ basis.T, x, atol=1e-4)
