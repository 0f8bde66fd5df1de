"""Online measures: complete, deterministic to the bit, and true to the full probes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ssljax.evaluate.collapse import alarms
from ssljax.evaluate.features import Features
from ssljax.evaluate.linear import LogisticProbe, linear
from ssljax.evaluate.online import online, spread


def clusters(n, seed, noise=2.0, classes=8, d=24):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    return Features.of(centres[labels] + noise * rng.normal(size=(n, d)), labels)


TRAIN, VALIDATION = clusters(600, 1), clusters(201, 2)
SPREAD = {'feature_std', 'effective_rank', 'uniformity'}


def test_names_and_ranges():
    measures = online(TRAIN, VALIDATION)
    assert set(measures) == {'knn_top1', 'knn_top5', 'linear_top1', 'linear_top5'} | SPREAD
    for probe in ('knn', 'linear'):
        assert 1 / 8 < measures[f'{probe}_top1'] < measures[f'{probe}_top5'] <= 1
    assert all(type(value) is float for value in measures.values())


def test_the_same_bits_when_asked_again():
    assert online(TRAIN, VALIDATION) == online(TRAIN, VALIDATION)


_PROCESS = """
import numpy as np, sys, json
from ssljax.evaluate.features import Features
from ssljax.evaluate.online import online
rng = np.random.default_rng(0)
labels = np.arange(1500) % 10
x = rng.normal(size=(10, 256))[labels] + 4 * rng.normal(size=(1500, 256))
train, validation = (Features.of(x[s], labels[s]) for s in (slice(1000), slice(1000, 1500)))
print(json.dumps({k: v.hex() for k, v in online(train, validation).items()}))
"""


@pytest.mark.slow
def test_the_same_bits_in_another_process():
    environment = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    command = [sys.executable, '-c', _PROCESS]
    outputs = {
        subprocess.run(command, check=True, capture_output=True, env=environment).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1


def test_better_features_score_better():
    scores = [online(clusters(600, 1, noise), clusters(201, 2, noise)) for noise in (4.0, 2.0, 0.5)]
    for name in ('knn_top1', 'linear_top1'):
        values = [s[name] for s in scores]
        assert values == sorted(values)
        assert values[0] + 0.2 < values[-1]


def test_the_fixed_iterations_reach_the_optimum_to_a_percent():
    c = 1 / (3e-3 * 600)
    quick = LogisticProbe(cs=(c,), tolerance=0.0, iterations=30).fit(TRAIN)
    exact = LogisticProbe(cs=(c,)).fit(TRAIN)
    assert quick.iterations <= 30
    assert quick.objective == pytest.approx(exact.objective, rel=0.01)
    measured = online(TRAIN, VALIDATION)['linear_top1']
    assert measured == quick.classifier.accuracy(VALIDATION).top1
    assert abs(measured - linear(TRAIN, VALIDATION)[0].top1) < 0.1


def test_without_labels_only_the_spread_is_measured():
    assert set(online(Features.of(TRAIN.features), Features.of(VALIDATION.features))) == SPREAD


def test_fewer_examples_than_neighbours_all_vote():
    assert online(TRAIN, VALIDATION, k=10_000) == online(TRAIN, VALIDATION, k=600)


def test_collapsed_features_ring():
    same = Features.of(np.ones((201, 24)) + 1e-6 * VALIDATION.features, VALIDATION.labels)
    assert len(alarms(spread(same), 24)) == 2
    assert alarms(spread(VALIDATION), 24) == ()


def test_features_that_are_not_numbers_score_nothing_and_ring():
    broken = Features.of(np.full((201, 24), np.nan), VALIDATION.labels)
    measures = online(TRAIN, broken)
    assert measures['knn_top1'] == measures['linear_top5'] == 0
    assert len(alarms(measures, 24)) == 2


def test_two_views_add_their_alignment():
    x = VALIDATION.features
    assert spread(VALIDATION, (x, -x))['alignment'] == pytest.approx(4.0)
    assert spread(VALIDATION, (x, x))['alignment'] == pytest.approx(0.0, abs=1e-9)


def test_json_takes_the_measures():
    measures = online(TRAIN, VALIDATION)
    assert json.loads(json.dumps(measures)) == measures
