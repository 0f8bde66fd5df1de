"""What the hosts have to do: bytes to the chips, and cores that decode."""

import dataclasses
import math

from ssljax.core import Signature

LARGE = 64
"""Pixels from which views are taken to be cut from photographs (JPEG)."""

RATES = {'photographs': 450.0, 'small': 7_000.0}
"""Images by second and core of the input pipeline, two views each, with some reserve: by `python
benchmarks/pipeline.py` two cores of an AMD EPYC made 981 at 224 px from 500 x 375 JPEGs, and 14,009
to 18,561 at 28 px."""


@dataclasses.dataclass(frozen=True)
class Host:
    """What feeds one chip.

    Attributes:
        bytes: uint8 pixels for one chip and step.
        rate: images by second that one core makes.
        cores: for one chip, at the estimated pace.
    """

    bytes: int
    rate: float
    cores: float


def host(data: Signature, batch: int, chips: int, images: float, rate: float | None) -> Host:
    """The input side of a plan.

    Args:
        data: the views.
        batch: images a step, over all chips.
        chips: number of them.
        images: by second, over all chips.
        rate: images by second that one core makes; None for what was measured of two views of
            the largest size, less in proportion where there are more pixels to make than these.
    """
    pixels = sum(views * size * size for _, (views, size) in data.views)
    side = max(size for _, (_, size) in data.views)
    if rate is None:
        # An image is decoded once, so that a single view does not take half the time.
        rate = RATES['photographs' if side >= LARGE else 'small'] / max(1, pixels / (2 * side**2))
    return Host(
        bytes=pixels * data.channels * math.ceil(batch / chips),
        rate=rate,
        cores=images / chips / rate,
    )
