"""The second table of the page: what an evaluation measured besides top-1."""

from collections.abc import Mapping
from typing import Any

HEADER = (
    'encoder',
    'dimensions',
    'linear, top-5',
    'kNN, top-5',
    'k',
    'std · √d',
    'effective rank',
    'uniformity',
    'alignment',
)


def measures(evaluation: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """A line of cells, as in `HEADER`, per row of an evaluation's table; - for what is not there.

    Args:
        evaluation: the content of `evaluation.json`.
    """
    return tuple(
        _line(row, evaluation.get('collapse', {}).get(row['name'], {}))
        for row in evaluation.get('table', {}).get('rows', ())
    )


def _line(row: Mapping[str, Any], spread: Mapping[str, float]) -> tuple[str, ...]:
    width = row['dimensions']
    std = spread.get('feature_std')
    return (
        row['name'],
        f'{width:,}',
        *(_percent(row[probe]) for probe in ('linear', 'knn')),
        f'{row["k"]}',
        '-' if std is None else f'{std * width**0.5:.2f}',
        *(
            f'{spread[name]:.{digits}f}' if name in spread else '-'
            for name, digits in (('effective_rank', 1), ('uniformity', 2), ('alignment', 3))
        ),
    )


def _percent(accuracy: Mapping[str, float] | None) -> str:
    return '-' if accuracy is None else f'{100 * accuracy["top5"]:.1f}'
