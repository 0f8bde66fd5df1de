"""Ranks of closed forms; ties, unknown classes and NaN; counting in tiles."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.evaluate.accuracy import Accuracy, by_tiles, rank


def test_rank_counts_the_classes_ahead():
    scores = jnp.array([[0.1, 0.7, 0.2]] * 3)
    np.testing.assert_array_equal(rank(scores, jnp.array([0, 1, 2])), [2, 0, 1])


def test_equal_scores_are_ranked_by_class_as_argmax_does():
    scores = jnp.ones((3, 3))
    np.testing.assert_array_equal(rank(scores, jnp.array([0, 1, 2])), [0, 1, 2])


def test_a_class_the_scores_do_not_know_is_never_a_hit():
    ranks = rank(jnp.ones((1, 2)), jnp.array([-1]))
    assert Accuracy.of(ranks) == Accuracy(0.0, 0.0, 1)


@pytest.mark.parametrize('bad', [[np.nan, np.nan, np.nan], [0.0, 1.0, np.nan]])
def test_scores_that_are_not_numbers_never_hit(bad):
    ranks = rank(jnp.array([bad, [0.0, 1.0, 0.0]]), jnp.array([1, 1]))
    assert Accuracy.of(ranks) == Accuracy(0.5, 0.5, 2)


def test_top5_and_top1_against_sorting():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(203, 11)).astype(np.float32), rng.integers(0, 11, 203)
    order = np.argsort(-scores, axis=1)
    expected = Accuracy(
        top1=float(np.mean(order[:, 0] == labels)),
        top5=float(np.mean((order[:, :5] == labels[:, None]).any(axis=1))),
        count=203,
    )
    assert Accuracy.of(rank(jnp.asarray(scores), jnp.asarray(labels))) == expected


@pytest.mark.parametrize('n', [1, 7, 8, 9, 20])
def test_tiles_leave_every_row_once(n):
    x = jnp.arange(n)
    np.testing.assert_array_equal(by_tiles(lambda a: a + 1, 8, x), np.arange(n) + 1)
