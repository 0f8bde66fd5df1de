"""Features of a million images fill the memory once: nothing that is done with them copies them."""

import tracemalloc

import jax
import numpy as np
import pytest

from ssljax.evaluate import knn, sgd
from ssljax.evaluate.classifier import Moments
from ssljax.evaluate.features import Features, extract

N, D, BATCH = 40_000, 64, 500
SIZE = 4 * N * D
CENTRES = np.random.default_rng(0).normal(size=(5, D)).astype(np.float32)
LABELS = np.arange(N, dtype=np.int32) % 5
TRAIN = Features.of(CENTRES[LABELS], LABELS)
FEW = TRAIN.take(np.arange(50))
PROBE = sgd.SGDProbe(batch=200, epochs=2)


def batches():
    for start in range(0, N, BATCH):
        index = np.arange(start, start + BATCH, dtype=np.int32)
        yield {'image': index, 'index': index, 'valid': np.ones(BATCH, bool)}


def peak(work):
    """Bytes that a second call takes on the host at most, beside those there are."""
    work()
    tracemalloc.start()
    result = work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, result


def test_features_are_held_once_where_their_number_is_known():
    embed = lambda index: TRAIN.features[index]
    found, features = peak(lambda: extract(embed, batches(), N))
    assert SIZE < found < 1.3 * SIZE
    np.testing.assert_array_equal(features.features, TRAIN.features)
    assert peak(lambda: extract(embed, batches()))[0] > 1.5 * SIZE


@pytest.mark.parametrize('examples', [0, 7, N, 2 * N])
def test_the_number_promised_changes_no_feature(examples):
    features = extract(lambda index: TRAIN.features[index], batches(), examples)
    np.testing.assert_array_equal(features.features, TRAIN.features)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts as small beside these features as the real ones are beside those of a million."""
    monkeypatch.setattr('ssljax.evaluate.classifier._TILE', 400)
    monkeypatch.setattr(sgd, '_SENT', 1000 * D)
    monkeypatch.setattr(knn, '_BANK_TILE', 1000)
    bounded = lambda query, bank, **named: NEAREST(query, bank, bank_tile=1000, **named)
    monkeypatch.setattr(knn, 'nearest', bounded)


NEAREST = knn.nearest
WORK = {
    'moments': (Moments, 'of', lambda: Moments.of(TRAIN.features)),
    'neighbours': (knn, '_merged', lambda: knn.knn(TRAIN, FEW, ks=(5,))),
    'probe': (sgd, '_train', lambda: PROBE.fit(TRAIN)),
}


@pytest.mark.parametrize('name', WORK)
def test_no_copy_is_made_on_the_host(small_parts, name):
    assert peak(WORK[name][2])[0] < SIZE / 4


@pytest.mark.parametrize('name', ['neighbours', 'probe'])
def test_the_device_holds_a_part_at_a_time(small_parts, monkeypatch, name):
    module, inner, work = WORK[name]
    function, held = getattr(module, inner), []

    def watched(*arguments, **named):
        held.append(sum(array.nbytes for array in jax.live_arrays()))
        return function(*arguments, **named)

    before = sum(array.nbytes for array in jax.live_arrays())
    monkeypatch.setattr(module, inner, watched)
    work()
    assert len(held) >= 40
    assert max(held) - before < SIZE / 4


def test_parts_change_nothing(monkeypatch):
    whole, losses = PROBE.fit(TRAIN)
    monkeypatch.setattr(sgd, '_SENT', 3 * 200 * D)
    parts, others = PROBE.fit(TRAIN)
    np.testing.assert_allclose(parts.kernel, whole.kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(others, losses, rtol=1e-5)


def test_moments_are_those_of_float64_whatever_the_parts():
    x = np.random.default_rng(1).normal(1000.0, 0.1, (9000, 3)).astype(np.float32)
    x[:, 1] = 0.1
    moments = Moments.of(x)
    exact = np.float64(x)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.std, [exact[:, 0].std(), 1, exact[:, 2].std()], rtol=1e-5)
