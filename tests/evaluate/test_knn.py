"""Weighted kNN against its definition, scikit-learn and facts that hold for any features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.evaluate.accuracy import Accuracy
from ssljax.evaluate.classifier import Moments
from ssljax.evaluate.features import Features
from ssljax.evaluate.knn import _merged, choose_k, knn, nearest, vote


def clusters(n, seed, classes=7, d=12, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    return Features.of(centres[labels] + noise * rng.normal(size=(n, d)), labels)


BANK, QUERY = clusters(150, 1), clusters(83, 2)


def by_definition(bank, query, k, temperature):
    """Class scores [m, c], one query and one neighbour at a time, in float64."""
    a, b = np.float64(query.features), np.float64(bank.features)
    classes = max(bank.labels.max(), query.labels.max()) + 1
    scores = np.zeros((len(a), classes))
    for i, row in enumerate(a):
        cosine = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in b]
        for j in np.argsort(-np.array(cosine), kind='stable')[:k]:
            scores[i, bank.labels[j]] += np.exp(cosine[j] / temperature)
    return scores


@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_against_the_definition(temperature):
    ks = (1, 5, 40, 150)
    results = knn(BANK, QUERY, ks=ks, temperature=temperature)
    for k in ks:
        order = np.argsort(-by_definition(BANK, QUERY, k, temperature), axis=1, kind='stable')
        hits = order == QUERY.labels[:, None]
        assert results[k].top1 == pytest.approx(hits[:, 0].mean(), abs=1e-12)
        assert results[k].top5 == pytest.approx(hits[:, :5].any(axis=1).mean(), abs=1e-12)
        assert results[k].count == 83


def test_votes_are_the_weights_up_to_a_factor_per_query():
    similarity, position = nearest(QUERY.features, BANK.features, k=20)
    labels = jnp.asarray(BANK.labels)[position]
    votes = np.asarray(vote(similarity, labels, classes=7, temperature=0.07))
    expected = by_definition(BANK, QUERY, 20, 0.07)
    np.testing.assert_allclose(
        votes / votes.sum(axis=1, keepdims=True),
        expected / expected.sum(axis=1, keepdims=True),
        atol=1e-5,
    )


@pytest.mark.parametrize('classes', [64, 65, 150])
def test_votes_of_many_classes_are_those_of_few(classes):
    similarity, position = nearest(QUERY.features, BANK.features, k=20)
    labels = 9 * jnp.asarray(BANK.labels)[position]  # 0 to 54, as BANK has 7 classes
    votes = vote(similarity, labels, classes=classes, temperature=0.07)
    few = vote(similarity, labels, classes=55, temperature=0.07)
    np.testing.assert_array_equal(votes[:, :55], few)
    np.testing.assert_array_equal(votes[:, 55:], 0)


def test_memory_of_votes_grows_by_what_is_scored():
    def size(classes):
        shape = lambda dtype: jax.ShapeDtypeStruct((256, 100), dtype)
        votes = functools.partial(vote, classes=classes, temperature=0.07)
        compiled = jax.jit(votes).lower(shape(jnp.float32), shape(jnp.int32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert size(10_000) - size(100) < 3 * 4 * 256 * 10_000


def test_against_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    for k in (1, 10, 60):
        other = KNeighborsClassifier(
            k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / 0.07)
        )
        other.fit(BANK.features, BANK.labels)
        score = other.score(QUERY.features, QUERY.labels)
        assert knn(BANK, QUERY, ks=(k,))[k].top1 == pytest.approx(score, abs=1e-12)


def test_one_neighbour_is_the_nearest():
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    closest = np.argmax(unit(QUERY.features) @ unit(BANK.features).T, axis=1)
    _, position = nearest(QUERY.features, BANK.features, k=1)
    np.testing.assert_array_equal(position[:, 0], closest)
    expected = np.mean(BANK.labels[closest] == QUERY.labels)
    assert knn(BANK, QUERY, ks=(1,))[1].top1 == pytest.approx(expected, abs=1e-12)


def test_duplicates_score_all():
    assert knn(BANK, BANK, ks=(1,))[1] == Accuracy(1.0, 1.0, 150)


def test_rotating_and_scaling_all_features_changes_nothing():
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))
    turn = lambda f: Features.of(3 * f.features @ rotation, f.labels)
    ks = (1, 10, 50)
    assert knn(turn(BANK), turn(QUERY), ks=ks) == knn(BANK, QUERY, ks=ks)


@pytest.mark.parametrize(('query_tile', 'bank_tile'), [(512, 8192), (16, 50), (83, 7), (1, 149)])
@pytest.mark.parametrize('k', [9, 150])
def test_tiles_change_nothing(query_tile, bank_tile, k):
    similarity, position = nearest(
        QUERY.features, BANK.features, k=k, query_tile=query_tile, bank_tile=bank_tile
    )
    whole, where = nearest(QUERY.features, BANK.features, k=k)
    assert all(len(set(row)) == k for row in np.asarray(position))
    np.testing.assert_array_equal(position, where)
    np.testing.assert_allclose(similarity, whole, atol=1e-6)


@pytest.mark.parametrize('bank_tile', [3, 4, 100])
def test_equal_neighbours_come_by_position_across_tiles(bank_tile):
    bank = np.tile(np.eye(2, dtype=np.float32), (5, 1))
    _, position = nearest(np.eye(2, dtype=np.float32), bank, k=7, bank_tile=bank_tile)
    np.testing.assert_array_equal(position, [[0, 2, 4, 6, 8, 1, 3], [1, 3, 5, 7, 9, 0, 2]])


def test_memory_does_not_grow_with_the_number_of_pairs():
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    best = shape(64, 128, 10), shape(64, 128, 10, dtype=jnp.int32)
    merged = lambda *a: _merged(*a, Moments.identity(32), (0, 8192))
    lowered = jax.jit(merged).lower(best, shape(64, 128, 32), shape(512, 32))
    compiled = lowered.compile()
    pairs = 4 * 8192**2
    assert compiled.memory_analysis().temp_size_in_bytes < pairs / 32


def test_moments_standardise_both_sides():
    moments = Moments.of(BANK.features)
    turn = lambda f: Features.of(moments.standardise(jnp.asarray(f.features)), f.labels)
    ks = (1, 10, 50)
    assert knn(BANK, QUERY, ks=ks, moments=moments) == knn(turn(BANK), turn(QUERY), ks=ks)
    assert knn(BANK, QUERY, ks=ks, moments=moments) != knn(BANK, QUERY, ks=ks)


def test_a_small_temperature_does_not_overflow():
    sharp = knn(BANK, QUERY, ks=(20,), temperature=1e-4)[20]
    assert sharp.top1 == knn(BANK, QUERY, ks=(1,))[1].top1


def test_features_that_are_not_numbers_score_nothing():
    broken = Features.of(np.full((83, 12), np.nan), QUERY.labels)
    assert knn(BANK, broken, ks=(5,))[5] == Accuracy(0.0, 0.0, 83)


def test_k_is_chosen_on_validation_and_of_equals_the_smallest():
    k, accuracy = choose_k(BANK, QUERY, candidates=(40, 1, 10, 5000))
    assert set(accuracy) == {1, 10, 40}
    assert accuracy[k].top1 == max(a.top1 for a in accuracy.values())
    assert choose_k(BANK, clusters(30, 4, noise=0.0), candidates=(20, 5, 10))[0] == 5


@pytest.mark.parametrize('k', [0, 151])
def test_k_that_does_not_fit_the_bank_is_refused(k):
    with pytest.raises(ValueError, match='bank of 150 examples'):
        knn(BANK, QUERY, ks=(k,))
    with pytest.raises(ValueError, match='bank of 150 examples'):
        choose_k(BANK, QUERY, candidates=(151, 200))


def test_missing_labels_and_other_widths_are_refused():
    with pytest.raises(ValueError, match='no labels'):
        knn(BANK, Features.of(QUERY.features), ks=(1,))
    with pytest.raises(ValueError, match='the bank has 12 features an example, the queries 5'):
        knn(BANK, Features.of(QUERY.features[:, :5], QUERY.labels), ks=(1,))
