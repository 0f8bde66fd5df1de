"""Linear probes: what they reach, what they may look at, and that draws are fair."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.evaluate.accuracy import Accuracy
from ssljax.evaluate.classifier import Moments, encode
from ssljax.evaluate.features import Features
from ssljax.evaluate.linear import LogisticProbe, draw, few_labels, linear, stratified

QUICK = LogisticProbe(cs=(1e-3, 1e-2, 0.1, 1.0))


def clusters(n, seed, classes=5, d=10, noise=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    return Features.of(centres[labels] + noise * rng.normal(size=(n, d)), labels)


TRAIN, TEST = clusters(200, 1), clusters(403, 2)


def test_a_single_class_reaches_all():
    same = lambda f: Features.of(f.features, np.full(len(f), 3))
    accuracy, _ = linear(same(TRAIN), same(TEST), QUICK)
    assert accuracy == Accuracy(1.0, 1.0, 403)


def test_separable_classes_reach_all():
    accuracy, _ = linear(clusters(200, 1, noise=0.1), clusters(403, 2, noise=0.1), QUICK)
    assert accuracy.top1 == 1.0


def test_the_whole_probe_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    accuracy, fit = linear(TRAIN, TEST, LogisticProbe(cs=(0.03,)))
    scaler = StandardScaler().fit(TRAIN.features)
    other = LogisticRegression(C=0.03, tol=1e-8, max_iter=5000)
    other.fit(scaler.transform(TRAIN.features), TRAIN.labels)
    score = other.score(scaler.transform(TEST.features), TEST.labels)
    assert accuracy.top1 == pytest.approx(score, abs=1.01 / 403)
    np.testing.assert_allclose(fit.classifier.kernel, other.coef_.T, atol=2e-3)


def test_the_strength_with_the_least_held_out_loss_is_chosen():
    _, fit = linear(TRAIN, TEST, QUICK)
    assert fit.c == min(fit.validated, key=fit.validated.get)
    assert 0.01 <= fit.c <= 0.1  # the noise is twice the signal: neither end of the path
    assert all(0 < loss < 2 for loss in fit.validated.values())


def test_held_out_loss_is_that_of_the_fits_without_each_fold():
    cs = (0.01, 0.1)
    fit = LogisticProbe(cs=cs, patience=9).fit(TRAIN)
    fold = stratified(TRAIN.labels, 5, seed=0)
    moments = Moments.of(TRAIN.features)
    for c in cs:
        loss = 0.0
        for i in range(5):
            kept, held = (TRAIN.take(np.flatnonzero(rows)) for rows in (fold != i, fold == i))
            classifier = LogisticProbe(cs=(c,)).fit(kept, moments).classifier
            scores = np.asarray(classifier.scores(jnp.asarray(held.features)))
            log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            loss -= log_p[np.arange(len(held)), held.labels].sum()
        assert fit.validated[c] == pytest.approx(loss / 200, rel=2e-3)


def test_the_path_ends_after_so_many_worse_values():
    cs = tuple(10.0**e for e in range(-4, 5))
    short = LogisticProbe(cs=cs, patience=1).fit(TRAIN)
    whole = LogisticProbe(cs=cs, patience=99).fit(TRAIN)
    assert short.c == whole.c
    assert list(short.validated) == list(cs[: cs.index(short.c) + 2])
    assert len(whole.validated) == 9


def test_the_path_goes_on_over_a_rise_before_the_fall():
    """One direction that says nothing of the classes outweighs all others: a collapse, nearly."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(200) % 10)
    classes, common = (np.random.default_rng(k).normal(size=(n, 128)) for k, n in ((5, 10), (6, 1)))
    own, how_much = rng.normal(size=(200, 128)), rng.normal(size=(200, 1))
    all_of_them = Features.of(own + 30 * how_much * common + classes[labels], labels)
    drawn = draw(labels, 10, draws=2)[1]
    cs = (1e-5, 1e-4, 1e-3, 1e-2, 1.0, 100.0)
    moments = Moments.of(all_of_them.features)
    found = LogisticProbe(cs=cs).fit(all_of_them.take(drawn), moments)
    values = list(found.validated.values())
    assert values[0] < values[1] < values[2]  # two worse ones in a row
    assert found.c == 100.0 and values[-1] < 0.2


def test_test_labels_choose_nothing():
    _, fit = linear(TRAIN, TEST, QUICK)
    shuffled = Features.of(TEST.features, TEST.labels[::-1])
    _, other = linear(TRAIN, shuffled, QUICK)
    assert (other.c, other.validated, other.objective) == (fit.c, fit.validated, fit.objective)
    np.testing.assert_array_equal(other.classifier.kernel, fit.classifier.kernel)


def mapped(features, seed=5):
    """An invertible linear map with condition number 10."""
    rng = np.random.default_rng(seed)
    d = features.features.shape[1]
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    matrix = left @ np.diag(np.linspace(1, 10, d)) @ right
    return Features.of(features.features @ matrix + 3.0, features.labels)


def test_without_penalty_no_invertible_map_matters_with_it_it_does():
    def scores(c, change):
        classifier = LogisticProbe(cs=(c,)).fit(change(TRAIN)).classifier
        logits = np.asarray(classifier.scores(jnp.asarray(change(TEST).features)))
        return logits - logits.mean(axis=1, keepdims=True)

    free, free_mapped = scores(1e6, lambda f: f), scores(1e6, mapped)
    np.testing.assert_allclose(free_mapped, free, atol=0.02 * np.abs(free).max())
    tight, tight_mapped = scores(1e-3, lambda f: f), scores(1e-3, mapped)
    assert np.abs(tight_mapped - tight).max() > 0.1 * np.abs(tight).max()


def test_scaling_each_feature_changes_nothing():
    scale = np.logspace(-3, 3, 10)
    other = lambda f: Features.of(f.features * scale + 7 * scale, f.labels)
    accuracy, fit = linear(TRAIN, TEST, QUICK)
    scaled_accuracy, scaled = linear(other(TRAIN), other(TEST), QUICK)
    assert scaled.c == fit.c
    assert scaled_accuracy.top1 == pytest.approx(accuracy.top1, abs=1.01 / 403)


def test_constant_features_are_harmless():
    def replaced(features, value):
        constant = np.where(np.arange(10) < 3, value, features.features)
        return Features.of(constant, features.labels)

    def accuracy(value):
        return linear(replaced(TRAIN, value), replaced(TEST, value), QUICK)[0]

    assert accuracy(0.3) == accuracy(0.0)


def test_a_class_not_shown_counts_as_an_error():
    shown = TRAIN.take(np.flatnonzero(TRAIN.labels != 2))
    accuracy, _ = linear(shown, TEST, LogisticProbe(cs=(0.1,)))
    assert accuracy.top5 == pytest.approx(np.mean(TEST.labels != 2), abs=1e-12)


def test_class_ids_may_have_gaps_and_any_size():
    sparse = lambda f: Features.of(f.features, 1000 - 100 * f.labels)
    accuracy, fit = linear(sparse(TRAIN), sparse(TEST), QUICK)
    assert accuracy.top1 == pytest.approx(linear(TRAIN, TEST, QUICK)[0].top1, abs=1.01 / 403)
    np.testing.assert_array_equal(fit.classifier.classes, [600, 700, 800, 900, 1000])


def test_every_test_example_counts_once_however_they_are_split():
    classifier = LogisticProbe(cs=(0.1,)).fit(TRAIN).classifier
    whole = classifier.accuracy(TEST)
    parts = [classifier.accuracy(TEST.take(p)) for p in np.split(np.arange(403), [1, 8, 100])]
    assert whole.count == sum(p.count for p in parts) == 403
    hits = sum(p.top1 * p.count for p in parts)
    assert whole.top1 * 403 == pytest.approx(hits, abs=1e-6)


@pytest.mark.parametrize('per_class', [1, 10])
def test_draws_are_stratified_distinct_and_a_function_of_the_seed(per_class):
    rows = draw(TRAIN.labels, per_class, draws=6, seed=3)
    assert rows.shape == (6, 5 * per_class)
    for r in rows:
        assert len(set(r)) == len(r)
        np.testing.assert_array_equal(np.bincount(TRAIN.labels[r]), np.full(5, per_class))
    np.testing.assert_array_equal(rows[:3], draw(TRAIN.labels, per_class, draws=3, seed=3))
    assert len({tuple(r) for r in rows}) == 6
    assert not np.array_equal(rows, draw(TRAIN.labels, per_class, draws=6, seed=4))


def test_few_labels_read_no_label_that_was_not_drawn():
    rows = draw(TRAIN.labels, 6, draws=3)
    others = np.setdiff1d(np.arange(200), rows)
    labels = TRAIN.labels.copy()
    labels[others] = (labels[others] + 1) % 5
    changed = Features.of(TRAIN.features, labels)
    assert few_labels(changed, TEST, rows, QUICK) == few_labels(TRAIN, TEST, rows, QUICK)


def test_few_labels_mean_and_std_are_over_draws():
    result = few_labels(TRAIN, TEST, draw(TRAIN.labels, 6, draws=4), QUICK)
    top1 = [a.top1 for a in result.accuracies]
    assert len(top1) == len(result.cs) == 4
    assert result.per_class == 6
    assert result.mean == pytest.approx(np.mean(top1))
    assert result.std == pytest.approx(np.std(top1, ddof=1))
    assert 0.2 < result.mean < linear(TRAIN, TEST, QUICK)[0].top1


def test_one_draw_has_no_spread():
    assert few_labels(TRAIN, TEST, draw(TRAIN.labels, 6, draws=1), QUICK).std == 0


def test_folds_spread_every_class_evenly():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [23, 7, 40]))
    fold = stratified(labels, 5, seed=1)
    for c in range(3):
        counts = np.bincount(fold[labels == c], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(fold)) <= 1
    assert not np.array_equal(fold, stratified(labels, 5, seed=2))


def test_fewer_labels_than_folds_mean_fewer_folds():
    assert stratified(np.repeat([0, 1], [3, 50]), 5, seed=0).max() == 2


def test_the_only_example_of_a_class_is_never_held_out():
    labels = np.repeat([0, 1, 2, 3], [12, 1, 9, 1])
    fold = stratified(labels, 3, seed=0)
    np.testing.assert_array_equal(fold == -1, np.isin(labels, (1, 3)))
    assert np.bincount(fold[fold >= 0]).tolist() == [7, 7, 7]


def test_a_class_with_one_label_is_fitted_and_the_others_are_still_told_apart():
    rng = np.random.default_rng(0)
    lone = rng.normal(size=(1, TRAIN.features.shape[1])) + 30
    more = Features.of(np.r_[TRAIN.features, lone], np.r_[TRAIN.labels, 99])
    with_lone, without = QUICK.fit(more).classifier, QUICK.fit(TRAIN).classifier
    assert with_lone.accuracy(Features.of(lone, np.array([99]))).top1 == 1
    assert with_lone.accuracy(TEST).top1 > 0.9 * without.accuracy(TEST).top1


def test_encode_finds_columns():
    np.testing.assert_array_equal(
        encode(np.array([7, 2, 9, 0, 10]), np.array([2, 7, 9])), [1, 0, 2, -1, -1]
    )


def test_missing_labels_are_refused():
    with pytest.raises(ValueError, match='no labels'):
        QUICK.fit(Features.of(TRAIN.features))
    with pytest.raises(ValueError, match='no labels'):
        linear(TRAIN, Features.of(TEST.features), QUICK)


def test_more_labels_than_a_class_has_are_refused():
    with pytest.raises(ValueError, match=r'41 labels a class asked for, but class 0 has 40'):
        draw(TRAIN.labels, 41)


def test_one_label_a_class_cannot_be_cross_validated_but_can_be_fitted():
    rows = draw(TRAIN.labels, 1, draws=1)
    with pytest.raises(ValueError, match='a class with at least 2 labels'):
        few_labels(TRAIN, TEST, rows, QUICK)
    assert few_labels(TRAIN, TEST, rows, LogisticProbe(cs=(1.0,))).mean > 0.2
