"""Sinkhorn's assignments and SwAV's loss: their twins, closed forms, invariances, slopes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.clustering import sinkhorn, swapped_prediction

codes_of = jax.jit(sinkhorn, static_argnames=('epsilon', 'iterations'))
loss_of = jax.jit(swapped_prediction, static_argnames='temperature')
both = jax.jit(
    jax.value_and_grad(functools.partial(swapped_prediction, temperature=0.1), argnums=(0, 1))
)


def cosines(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=shape)


def distributions(*shape, seed=1):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1])


@pytest.mark.parametrize('shape', [(6, 4), (5, 9), (1, 3), (4, 1)])
@pytest.mark.parametrize(('epsilon', 'iterations'), [(0.05, 3), (0.5, 1), (1.0, 10)])
def test_sinkhorn_is_its_float64_twin(x64, shape, epsilon, iterations):
    scores = cosines(*shape)
    found = codes_of(scores, epsilon=epsilon, iterations=iterations)
    np.testing.assert_allclose(
        found, reference.sinkhorn(scores, epsilon, iterations), rtol=1e-10, atol=1e-300
    )


@pytest.mark.parametrize('iterations', [1, 3])
def test_every_example_is_assigned_whole(x64, iterations):
    codes = codes_of(cosines(64, 30), epsilon=0.05, iterations=iterations)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-13)
    # The prototypes' shares are not yet even.
    assert np.abs(codes.sum(0) - 64 / 30).max() > 0.1


def test_in_the_limit_prototypes_share_the_batch_evenly(x64):
    codes = codes_of(cosines(64, 30), epsilon=0.2, iterations=500)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(codes.sum(0), 64 / 30, rtol=1e-10)


def test_the_limit_is_the_best_of_all_even_assignments(x64):
    scores, epsilon = cosines(8, 4), 0.3
    codes = np.asarray(codes_of(scores, epsilon=epsilon, iterations=2000))

    def value(q):
        return np.sum(q * scores) - epsilon * np.sum(q * np.log(q))

    for seed in range(20):
        # A direction that keeps the sums of rows and columns.
        d = np.random.default_rng(seed).normal(size=(8, 4))
        d = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
        assert value(codes + 1e-3 * codes.min() * d) < value(codes)


def test_equal_scores_give_even_codes():
    codes = codes_of(jnp.full((6, 8), 0.3), epsilon=0.05, iterations=3)
    np.testing.assert_allclose(codes, 1 / 8, rtol=1e-6)


def test_as_many_distinct_examples_as_prototypes_are_told_apart():
    order = np.random.default_rng(0).permutation(6)
    codes = codes_of(jnp.eye(6)[order], epsilon=0.05, iterations=3)
    np.testing.assert_allclose(codes, np.eye(6)[order], atol=1e-6)


def test_all_examples_at_one_prototype_are_spread_over_all():
    """What keeps SwAV from collapsing: the argmax is the same for all, the codes are even."""
    scores = jnp.tile(jnp.asarray([1.0, 0.0, -0.5, 0.2]), (8, 1))
    np.testing.assert_allclose(codes_of(scores, epsilon=0.05, iterations=1), 1 / 4, rtol=1e-5)


def test_a_constant_for_a_prototype_changes_nothing_and_one_for_an_example_does(x64):
    scores = cosines(16, 6)
    codes = codes_of(scores, epsilon=0.2, iterations=3)
    shifted = codes_of(scores + cosines(6, seed=2), epsilon=0.2, iterations=3)
    np.testing.assert_allclose(shifted, codes, rtol=1e-12)
    offsets = cosines(16, 1, seed=3)
    assert np.abs(codes_of(scores + offsets, epsilon=0.2, iterations=3) - codes).max() > 1e-4
    pair = [codes_of(s, epsilon=0.2, iterations=2000) for s in (scores, scores + offsets)]
    np.testing.assert_allclose(*pair, rtol=1e-9)


def test_orders_of_examples_and_prototypes_carry_over(x64):
    rng, scores = np.random.default_rng(4), cosines(12, 5)
    rows, columns = rng.permutation(12), rng.permutation(5)
    codes = codes_of(scores, epsilon=0.1, iterations=3)
    moved = codes_of(scores[rows][:, columns], epsilon=0.1, iterations=3)
    np.testing.assert_allclose(moved, codes[rows][:, columns], rtol=1e-12)


def test_scores_far_beyond_the_range_of_exp_stay_finite():
    scores = jnp.asarray(300 * cosines(32, 8), jnp.float32)
    codes = codes_of(scores, epsilon=0.05, iterations=3)
    assert np.isfinite(codes).all()
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)


def test_sinkhorn_in_float32_is_that_of_float64_to_1e_5():
    scores = cosines(256, 64)
    single = codes_of(scores.astype(np.float32), epsilon=0.05, iterations=3)
    np.testing.assert_allclose(single, reference.sinkhorn(scores, 0.05, 3), rtol=1e-4, atol=1e-5)
    coarse = codes_of(jnp.asarray(scores, jnp.bfloat16), epsilon=0.05, iterations=3)
    assert single.dtype == coarse.dtype == jnp.float32


@pytest.mark.parametrize(('views', 'coded'), [(2, 2), (4, 2), (3, 1), (3, 3)])
def test_the_loss_is_its_float64_twin(x64, views, coded):
    arrays = [cosines(5, views, 7), distributions(5, coded, 7)]
    loss, slopes = both(*arrays)
    twin = lambda *arrays: reference.swapped_prediction(*arrays, 0.1)
    np.testing.assert_allclose(loss, twin(*arrays), rtol=1e-12)
    for at in range(2):
        np.testing.assert_allclose(slopes[at], reference.gradient(twin, arrays, at), atol=1e-7)


def test_gradient_is_the_slope(x64):
    arguments = jnp.asarray(cosines(4, 3, 5)), jnp.asarray(distributions(4, 2, 5))
    loss = functools.partial(loss_of, temperature=0.5)
    codes = functools.partial(codes_of, epsilon=0.5, iterations=3)
    for function, at in ((loss, arguments), (codes, (arguments[0][:, 0],))):
        chex.assert_numerical_grads(function, at, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


def test_a_guess_over_3000_prototypes_costs_their_logarithm(x64):
    codes = jnp.full((4, 2, 3000), 1 / 3000)
    loss = loss_of(jnp.zeros((4, 8, 3000)), codes, temperature=0.1)
    np.testing.assert_allclose(loss, np.log(3000), rtol=1e-12)


def test_one_hot_codes_cost_the_cross_entropy_of_scaled_scores(x64):
    hot = np.eye(6)[np.random.default_rng(0).integers(0, 6, (5, 1))].repeat(2, 1)
    # log(1 + 5 exp(-1 / temperature)), with the scores as sharp as the codes.
    for temperature in (0.1, 0.5):
        want = np.log1p(5 * np.exp(-1 / temperature))
        np.testing.assert_allclose(loss_of(hot, hot, temperature=temperature), want, rtol=1e-11)


def test_no_view_predicts_its_own_code(x64):
    scores, codes = cosines(5, 3, 7), distributions(5, 1, 7)
    _, slopes = both(scores, codes)
    np.testing.assert_array_equal(slopes[0][:, 0], 0)
    assert (np.abs(slopes[0][:, 1:]).max((0, 2)) > 1e-3).all()


def test_order_of_examples_and_of_prototypes_does_not_matter(x64):
    rng, arrays = np.random.default_rng(5), [cosines(12, 4, 5), distributions(12, 2, 5)]
    rows, columns = rng.permutation(12), rng.permutation(5)
    moved = [a[rows][..., columns] for a in arrays]
    np.testing.assert_allclose(both(*moved)[0], both(*arrays)[0], rtol=1e-12)


def test_bfloat16_is_computed_in_float32():
    scores, codes = (jnp.asarray(a, jnp.bfloat16) for a in (cosines(8, 2, 5), cosines(8, 2, 5)))
    loss, slopes = both(scores, codes)
    assert loss.dtype == jnp.float32 and slopes[0].dtype == jnp.bfloat16
    full = [a.astype(jnp.float32) for a in (scores, codes)]
    assert float(loss) == pytest.approx(float(both(*full)[0]), rel=1e-6)


def test_one_and_eight_devices_agree(x64, mesh8):
    scores = jnp.asarray(cosines(24, 3, 10))
    split = NamedSharding(mesh8, PartitionSpec('data'))

    def whole(scores):
        codes = jnp.stack([sinkhorn(scores[:, i], epsilon=0.05, iterations=3) for i in (0, 1)], 1)
        return swapped_prediction(scores, codes, temperature=0.1)

    one = jax.jit(jax.value_and_grad(whole))(scores)
    with jax.set_mesh(mesh8):
        eight = jax.jit(jax.value_and_grad(whole), in_shardings=split)(scores)
    chex.assert_trees_all_close(eight, one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'epsilon': 0.0}, 'epsilon is 0.0'), ({'iterations': 0}, '0 iterations')],
)
def test_sinkhorn_refuses_what_it_cannot_do(changes, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(jnp.zeros((2, 3)), **{'epsilon': 0.05, 'iterations': 3, **changes})


@pytest.mark.parametrize(
    ('views', 'coded', 'temperature', 'message'),
    [
        (1, 1, 0.1, r'scores of 1 view\(s\)'),
        (2, 3, 0.1, 'codes of 3'),
        (2, 2, -1.0, 'temperature is -1.0'),
    ],
)
def test_the_loss_refuses_what_it_cannot_do(views, coded, temperature, message):
    with pytest.raises(ValueError, match=message):
        swapped_prediction(
            jnp.zeros((2, views, 3)), jnp.zeros((2, coded, 3)), temperature=temperature
        )
