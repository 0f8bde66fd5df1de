"""The search for the largest batch."""

import pytest

from ssljax.plan.largest import largest


@pytest.mark.parametrize('true', [8, 16, 24, 56, 64, 72, 1000, 4096, 5000])
def test_it_is_found_to_a_sixteenth(true):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= true

    found = largest(fits, 8, 10**6)
    assert found % 8 == 0 and found <= true
    assert found + max(8, found // 16) >= true
    assert found in tried and len(tried) == len(set(tried)) < 20


def test_small_batches_are_found_exactly():
    assert [largest(lambda b, t=t: b <= t, 4, 1000) for t in (4, 7, 8, 31, 60)] == [4, 4, 8, 28, 60]


@pytest.mark.parametrize('start', [1, 8, 100, 4096, 10**7])
def test_wherever_it_begins_it_ends_there(start):
    assert largest(lambda batch: batch <= 56, 8, 10**6, start) == 56
    assert largest(lambda batch: False, 8, 10**6, start) is None
    assert largest(lambda batch: True, 8, 1001, start) == 1000


def test_a_good_start_saves_trials():
    tried = []
    assert largest(lambda b: not tried.append(b) and b <= 5000, 8, 10**6, 4096) == 4864
    assert tried[:2] == [4096, 8192] and len(tried) == 6


def test_none_fits():
    assert largest(lambda batch: False, 16, 1000) is None
    assert largest(lambda batch: True, 16, 15) is None


@pytest.mark.parametrize('limit', [100, 96, 64, 8, 15])
def test_there_are_no_more_images_than_there_are(limit):
    assert largest(lambda batch: True, 8, limit) == limit - limit % 8


def test_between_the_last_doubling_and_the_limit():
    assert largest(lambda batch: batch <= 80, 8, 100) == 80
