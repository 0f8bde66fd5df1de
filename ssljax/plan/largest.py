"""The largest batch that fits: doubling, then bisection."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], unit: int, limit: int, start: int = 1) -> int | None:
    """The largest multiple of `unit` up to `limit` for which `fits` holds; None if none does.

    What fits is taken to fit with fewer as well. The number of trials grows with the logarithm of
    the result over `unit`; the last interval is searched to a sixteenth of its lower end, at least
    to one unit: a compilation takes minutes and batches that close are all one.

    Args:
        fits: tried on multiples of `unit`.
        unit: images that the devices can share evenly and the method can part as it needs.
        limit: images there are.
        start: images to begin with; close to the result saves trials.
    """
    most = limit // unit
    low, high = 0, max(1, min(start // unit, most))
    while high <= most and fits(high * unit):
        low, high = high, 2 * high
    if high > most:
        if low == most or (most and fits(most * unit)):
            return most * unit or None
        high = most
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit or None
