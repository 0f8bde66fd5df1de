"""SigLIP's loss against its twin, its closed forms and its slopes, dense and in tiles."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssljax.losses.contrastive import sigmoid_pairs


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arguments(n=5, d=3, log_temperature=0.7, bias=-1.3):
    """a, b, log_temperature, bias."""
    return normal(n, d), normal(n, d, seed=1), np.asarray(log_temperature), np.asarray(bias)


@functools.partial(jax.jit, static_argnums=1)
def siglip(arrays, tile=None):
    """The loss and its gradients to a, b, log_temperature and bias."""

    def loss(a, b, log_temperature, bias):
        return sigmoid_pairs(a, b, log_temperature=log_temperature, bias=bias, tile=tile)

    return jax.value_and_grad(lambda arrays: loss(*arrays))(arrays)


@pytest.mark.parametrize('tile', [None, 1, 3])
def test_is_its_float64_twin(x64, tile):
    arrays = arguments()
    loss, slopes = siglip(arrays, tile)
    np.testing.assert_allclose(loss, reference.sigmoid_pairs(*arrays), rtol=1e-12)
    for at in range(4):
        want = reference.gradient(reference.sigmoid_pairs, arrays, at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-8)


@pytest.mark.parametrize('tile', [None, 2])
def test_gradient_is_the_slope(x64, tile):
    def loss(a, b, log_temperature, bias):
        return sigmoid_pairs(a, b, log_temperature=log_temperature, bias=bias, tile=tile)

    arrays = tuple(map(jnp.asarray, arguments()))
    chex.assert_numerical_grads(jax.jit(loss), arrays, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('tile', [None, 100])
@pytest.mark.parametrize(
    'n, orthogonal, aligned', [(256, 10.011622, 0.704724), (4096, 10.185954, 0.879056)]
)
def test_closed_forms_at_the_papers_start(x64, n, orthogonal, aligned, tile):
    # exp(t') = 10 and b = -10: all logits are -10, but for matches that are alike, which have 0.
    start = (np.log(10.0), np.asarray(-10.0))
    negatives = (n - 1) * np.log1p(np.exp(-10))
    x, y = np.zeros((n, 2)), np.zeros((n, 2))
    x[:, 0] = y[:, 1] = 3.0
    loss = float(siglip((x, y, *start), tile)[0])
    assert loss == pytest.approx(np.log1p(np.exp(10)) + negatives, rel=1e-12)
    assert loss == pytest.approx(orthogonal, abs=5e-7)
    if n == 256:
        loss = float(siglip((2 * np.eye(n), np.eye(n), *start), tile)[0])
        assert loss == pytest.approx(np.log(2) + negatives, rel=1e-12)
        assert loss == pytest.approx(aligned, abs=5e-7)


@pytest.mark.parametrize('tile', [None, 4])
def test_order_of_examples_and_of_the_two_sets_does_not_matter_and_the_match_does(x64, tile):
    a, b, *rest = arguments(n=7)
    order = np.random.default_rng(1).permutation(7)
    loss = lambda a, b: float(siglip((a, b, *rest), tile)[0])
    assert loss(a[order], b[order]) == pytest.approx(loss(a, b), rel=1e-12)
    assert loss(b, a) == pytest.approx(loss(a, b), rel=1e-12)
    assert abs(loss(a[order], b) - loss(a, b)) > 1e-3


def test_two_batches_together_cost_their_mean_and_the_pairs_across(x64):
    a, b, log_temperature, bias = arguments(n=8)
    loss = lambda rows: siglip((a[rows], b[rows], log_temperature, bias))[0]
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cost = np.logaddexp(np.exp(log_temperature) * u @ v.T + bias, 0)
    across = cost[:4, 4:].sum() + cost[4:, :4].sum()
    together = (4 * loss(slice(4)) + 4 * loss(slice(4, 8)) + across) / 8
    np.testing.assert_allclose(loss(slice(8)), together, rtol=1e-12)


@pytest.mark.parametrize('tile', [None, 3])
def test_lengths_and_zero_vectors(tile):
    a, b, t, bias = (np.float32(x) for x in arguments(n=4, d=8))
    lengths = np.float32([[1e-30], [1e-3], [1e3], [1e30]])
    want = float(siglip((a, b, t, bias), tile)[0])
    assert float(siglip((a * lengths, b, t, bias), tile)[0]) == pytest.approx(want, rel=1e-6)
    a[1] = 0
    loss, slopes = siglip((a, b, t, bias), tile)
    assert np.isfinite(loss)
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_array_equal(slopes[0][1], 0)
    a[1, 0] = np.nan
    assert np.isnan(siglip((a, b, t, bias), tile)[0])


@pytest.mark.parametrize('tile', [None, 96])
def test_float32_gradient_is_the_float64_gradient(tile):
    a, b = normal(256, 128), normal(256, 128, seed=1)
    arrays = (a, a + 0.5 * b, np.log(10.0), np.asarray(-10.0))
    single = siglip(tuple(np.float32(x) for x in arrays), tile)
    with jax.enable_x64(True):
        double = siglip(tuple(np.float64(np.float32(x)) for x in arrays), None)
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (single, double))
    for got, want in zip(*leaves, strict=True):
        assert got.dtype == np.float32 and want.dtype == np.float64
        assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


def test_bfloat16_is_computed_in_float32_and_numbers_are_taken():
    half = [jnp.asarray(x, jnp.bfloat16) for x in arguments(n=8, d=32)[:2]]
    loss = lambda a, b: sigmoid_pairs(a, b, log_temperature=2.0, bias=-5.0)
    got, slope = jax.jit(jax.value_and_grad(loss))(*half)
    assert got.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    want = loss(*(x.astype(jnp.float32) for x in half))
    assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_bad_input_is_refused_with_advice():
    a = jnp.ones((4, 8))
    with pytest.raises(ValueError, match=r'tile is 0 .*expected at least 1'):
        sigmoid_pairs(a, a, log_temperature=0.0, bias=0.0, tile=0)
