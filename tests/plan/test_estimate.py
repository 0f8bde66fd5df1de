"""The roofline and what follows from it, in closed form."""

import math

import pytest

from ssljax.core import Signature
from ssljax.plan.chips import CHIPS, KINDS, Chip, known
from ssljax.plan.estimate import roofline, whole
from ssljax.plan.host import RATES, host
from ssljax.plan.work import Work

CHIP = Chip('c', flops=100.0, hbm=1e9, bandwidth=10.0, interconnect=4.0, source='')


@pytest.mark.parametrize(
    ('flops', 'hbm', 'sent', 'bound'),
    [(900.0, 10.0, 4.0, 'compute'), (100.0, 90.0, 4.0, 'HBM'), (0.0, 0.0, 36.0, 'interconnect')],
)
def test_the_slowest_of_the_three_bounds_the_step(flops, hbm, sent, bound):
    times = roofline(Work(flops, accessed=1e12, hbm=hbm), sent, CHIP)
    assert (times.compute, times.hbm, times.interconnect) == (flops / 100, hbm / 10, sent / 4)
    assert times.bound == bound and times.best == 9.0
    assert times.apart == flops / 100 + hbm / 10 + sent / 4


def test_totals_of_a_run():
    total = whole(0.5, batch=4096, steps=7200, chips=16, price=1.2)
    assert total.images == 8192
    assert (total.hours, total.chip_hours) == (1.0, 16.0)
    assert total.cost == pytest.approx(19.2)
    assert whole(0.5, 4096, 7200, 16, None).cost is None


def test_chips_that_exchange_nothing_do_not_wait():
    alone = Chip('c', 100.0, 1e9, 10.0, math.inf, '')
    assert roofline(Work(1.0, 1.0, 1.0), 0.0, alone).interconnect == 0.0


def test_the_table_agrees_with_itself():
    for name, chip in CHIPS.items():
        assert chip.name == name and chip.source.endswith(f'/tpu/docs/{name}')
        # A chip computes hundreds of operations for a byte of memory, and reads its memory faster
        # than it sends: figures in the wrong unit (bits, GFLOP/s) break this.
        assert 100 < chip.flops / chip.bandwidth < 1000
        assert 2 < chip.bandwidth / chip.interconnect < 10
    assert set(KINDS.values()) == set(CHIPS)
    assert known('TPU v5 lite') is CHIPS['v5e'] and known('cpu') is None


def test_the_input_of_a_chip():
    two = Signature((('image', (2, 224)),), 3, 1000, 1000)
    fed = host(two, batch=4096, chips=16, images=16 * 900.0, rate=450.0)
    assert fed.bytes == 256 * 2 * 224 * 224 * 3
    assert fed.cores == 2.0
    assert host(two, 4096, 16, 1.0, None).rate == RATES['photographs']
    crops = Signature((('image', (2, 224)), ('local', (6, 96))), 3, 1000, 1000)
    fed = host(crops, 16, 16, 1.0, None)
    assert fed.bytes == 3 * (2 * 224**2 + 6 * 96**2)
    assert fed.rate == pytest.approx(RATES['photographs'] / (1 + 6 * 96**2 / (2 * 224**2)))
    one = Signature((('image', (1, 224)),), 3, 1000, 1000)
    assert host(one, 16, 16, 1.0, None).rate == RATES['photographs']
    small = Signature((('image', (2, 28)),), 1, 10, 1000)
    assert host(small, 16, 16, 1.0, None).rate == RATES['small']
