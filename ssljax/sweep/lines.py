"""The lines of a study's table: variants and references, each over seeds."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.study import Measure, Run, Study

SHARE: dict[Measure, tuple[str, str]] = {
    'linear': ('linear', 'top1'),
    'few': ('few', 'mean'),
    'knn': ('knn', 'top1'),
}
"""Where the measures are in a row of a result."""

COLUMNS: dict[Measure, str] = {
    'linear': 'linear',
    'few': 'linear, few labels',
    'knn': 'kNN',
}
"""What the measures are called."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: one encoder over seeds.

    Attributes:
        name: of the variant or the reference.
        factors: of the variant; none for a reference.
        rows: of a result each, by seed.
        results: that they are from.
        reference: whether it is one.
    """

    name: str
    factors: Mapping[str, str | int | float]
    rows: tuple[Mapping[str, Any], ...]
    results: tuple[Mapping[str, Any], ...]
    reference: bool = False

    def values(self, measure: Measure) -> tuple[float, ...]:
        """A measure in per cent, by seed; empty where the data does not allow it."""
        return tuple(100 * v for row in self.rows if (v := share(row, measure)) is not None)


def lines(study: Study, found: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[Line]:
    """The lines of variants with a result, then of random weights, then of raw pixels."""
    trained, random, pixels = [], [], []
    for variant in study.variants:
        results = tuple(result for run, result in found if run.variant.name == variant.name)
        if not results:
            continue
        rows = tuple(result['rows']['trained'] for result in results)
        trained.append(Line(variant.name, dict(variant.factors), rows, results))
        if not study.has_references(variant):
            continue
        rows = tuple(r['rows']['random'] for r in results if 'random' in r['rows'])
        random.append(Line(f'{variant.name} at random', {}, rows, results, True))
        # Pixels have no seed and know no method: every run that has them has the same.
        rows = tuple(r['rows']['pixels'] for r in results if 'pixels' in r['rows'])[:1]
        pixels.append(Line('raw pixels', {}, rows, results[:1], True))
    return [line for line in (*trained, *random, *pixels[:1]) if line.rows]


def share(row: Mapping[str, Any], measure: Measure) -> float | None:
    """A measure of one row, in [0, 1]; None where the data has too few labels for it."""
    part, field = SHARE[measure]
    return row[part] and row[part][field]


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1 in the denominator; None for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def cell(values: Sequence[float]) -> str:
    """`84.1`, or `84.1 ± 0.3` over several seeds; `-` of no value."""
    if not values:
        return '-'
    mean, std = mean_std(values)
    return f'{mean:.1f}' + ('' if std is None else f' ± {std:.1f}')


def scores(row: Mapping[str, Any]) -> str:
    """The measures of one row, for a line of a log."""
    known = {m: value for m in SHARE if (value := share(row, m)) is not None}
    return '; '.join(f'{COLUMNS[m]} {100 * value:.1f}' for m, value in known.items())
