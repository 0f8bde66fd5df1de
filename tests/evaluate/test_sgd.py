"""The SGD probe against a plain loop, the papers' schedules, and counting."""

import dataclasses

import jax
import numpy as np
import pytest

from ssljax.evaluate.features import Features
from ssljax.evaluate.sgd import BYOL, MOCO, SIMCLR, SGDProbe


def clusters(n, seed, classes=3, d=6, noise=0.3):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    return Features.of(centres[labels] + noise * rng.normal(size=(n, d)), labels)


def plain_loop(probe, train, classes):
    """The same protocol in float64 NumPy, one batch at a time."""
    x, y = np.float64(train.features), train.labels
    n, batch = len(x), min(probe.batch, len(x))
    steps = -(-n // batch)
    weights = np.zeros((x.shape[1] + 1, classes))
    trace, losses, step = np.zeros_like(weights), [], 0
    x = np.concatenate([x, np.ones((n, 1))], axis=1)
    for epoch in range(probe.epochs):
        key = jax.random.fold_in(jax.random.key(probe.seed), epoch)
        order = np.asarray(jax.random.permutation(key, n))
        total = 0.0
        for rows in np.split(order, range(batch, n, batch)):
            logits = x[rows] @ weights
            log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            total -= log_p[np.arange(len(rows)), y[rows]].sum()
            gradient = x[rows].T @ (np.exp(log_p) - np.eye(classes)[y[rows]]) / len(rows)
            gradient += probe.weight_decay * weights
            trace = gradient + probe.momentum * trace
            update = gradient + probe.momentum * trace if probe.nesterov else trace
            rate = probe.learning_rate * batch / 256
            if probe.schedule == 'cosine':
                rate *= (1 + np.cos(np.pi * step / (probe.epochs * steps))) / 2
            else:
                rate *= probe.factor ** sum(epoch >= m for m in probe.milestones)
            weights -= rate * update
            step += 1
        losses.append(total / n)
    return weights, losses


@pytest.mark.parametrize(
    'probe',
    [
        SGDProbe(learning_rate=20.0, batch=4, epochs=3, nesterov=True, weight_decay=0.01),
        SGDProbe(learning_rate=20.0, batch=5, epochs=4, schedule='step', milestones=(1, 3)),
        SGDProbe(learning_rate=20.0, batch=64, epochs=3, seed=1),
    ],
)
def test_against_a_plain_loop_whether_or_not_the_batch_divides(probe):
    train = clusters(10, 0)
    classifier, losses = probe.fit(train)
    weights, expected = plain_loop(probe, train, classes=3)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(classifier.kernel, weights[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(classifier.bias, weights[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('probe', [SIMCLR, BYOL, MOCO], ids=['simclr', 'byol', 'moco'])
def test_presets_separate_what_is_separable(probe):
    classifier, losses = probe.fit(clusters(700, 1))
    assert classifier.accuracy(clusters(301, 2)).top1 == 1.0
    assert losses[-1] < 0.05 < losses[0]


def test_the_papers_peak_rates_and_drops():
    assert SIMCLR.rate(50_000)(0) == pytest.approx(1.6)
    assert BYOL.rate(50_000)(0) == pytest.approx(0.8)
    moco = MOCO.rate(2560)
    for epoch, rate in ((0, 30), (59, 30), (60, 3), (79, 3), (80, 0.3), (99, 0.3)):
        assert moco(10 * epoch + 5) == pytest.approx(rate, rel=1e-5)


def test_cosine_ends_at_zero():
    rate = BYOL.rate(10_000)
    assert rate(80 * 10) == pytest.approx(0.0, abs=1e-7)
    assert rate(40 * 10) == pytest.approx(0.4)


def test_a_rate_of_zero_leaves_the_loss_of_no_information():
    _, losses = SGDProbe(learning_rate=0.0, batch=4, epochs=2).fit(clusters(10, 0))
    np.testing.assert_allclose(losses, np.log(3), rtol=1e-6)


def test_standardising_makes_the_scale_of_features_irrelevant():
    probe = SGDProbe(learning_rate=1.0, batch=32, epochs=5, standardize=True)
    scaled = lambda f: Features.of(100 * f.features + 50, f.labels)
    one, losses = probe.fit(clusters(100, 1, noise=2.0))
    other, scaled_losses = probe.fit(scaled(clusters(100, 1, noise=2.0)))
    np.testing.assert_allclose(losses, scaled_losses, rtol=1e-3)
    test = clusters(203, 2, noise=2.0)
    assert one.accuracy(test).top1 == pytest.approx(other.accuracy(scaled(test)).top1, abs=0.01)


def test_the_same_seed_gives_the_same_bits_another_another_order():
    probe = SGDProbe(learning_rate=5.0, batch=4, epochs=2)
    train = clusters(10, 0, noise=2.0)
    kernel = lambda p: np.asarray(p.fit(train)[0].kernel)
    np.testing.assert_array_equal(kernel(probe), kernel(probe))
    assert not np.array_equal(kernel(probe), kernel(dataclasses.replace(probe, seed=1)))


def test_missing_labels_are_refused():
    with pytest.raises(ValueError, match='no labels'):
        SIMCLR.fit(Features.of(np.ones((4, 2))))
