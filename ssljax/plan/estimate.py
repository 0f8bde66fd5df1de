"""The roofline: the time of a step from what it computes and moves, and what a run comes to."""

import dataclasses
from typing import Literal

from ssljax.plan.chips import Chip
from ssljax.plan.work import Work

Bound = Literal['compute', 'HBM', 'interconnect']


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one chip at its peaks.

    Attributes:
        compute: FLOPs over peak FLOP/s.
        hbm: bytes of main memory over its bandwidth.
        interconnect: bytes sent over that of all links.
    """

    compute: float
    hbm: float
    interconnect: float

    @property
    def bound(self) -> Bound:
        """Which of the three takes longest."""
        times: dict[Bound, float] = {
            'compute': self.compute,
            'HBM': self.hbm,
            'interconnect': self.interconnect,
        }
        return max(times, key=lambda name: times[name])

    @property
    def best(self) -> float:
        """Seconds if the three overlap entirely: no step is quicker."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def apart(self) -> float:
        """Seconds if nothing overlaps, each still at its peak."""
        return self.compute + self.hbm + self.interconnect


def roofline(work: Work, sent: float, chip: Chip) -> Roofline:
    """The times of a step.

    Args:
        work: of one chip.
        sent: bytes that leave one chip.
        chip: whose peaks are taken.
    """
    return Roofline(
        compute=work.flops / chip.flops,
        hbm=work.hbm / chip.bandwidth,
        interconnect=sent / chip.interconnect,
    )


@dataclasses.dataclass(frozen=True)
class Whole:
    """What a run comes to at so many seconds a step.

    Attributes:
        images: by second, over all chips.
        hours: of all steps.
        chip_hours: hours times chips.
        cost: in dollars, None without a price.
    """

    images: float
    hours: float
    chip_hours: float
    cost: float | None


def whole(seconds: float, batch: int, steps: int, chips: int, price: float | None) -> Whole:
    """Totals of a run.

    Args:
        seconds: of a step.
        batch: images a step.
        steps: of the run.
        chips: number of them.
        price: dollars for a chip and hour, or None.
    """
    hours = seconds * steps / 3600
    return Whole(
        images=batch / seconds,
        hours=hours,
        chip_hours=hours * chips,
        cost=None if price is None else hours * chips * price,
    )
