"""The figure of a study: a heat map where two factors span a grid, points with error bars else."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ssljax.sweep.lines import Line

NARROWEST = 2.0
"""Points of accuracy that an axis spans at least, so that noise does not look like a difference."""

INK, ACCENT, SECOND, PALE = '#1f2937', '#2563eb', '#d97706', '#93b4f5'

Panel = Sequence[tuple[Line, tuple[float, ...]]]
"""The lines of a table, each with one measure by seed, in per cent."""

Grid = Mapping[str, tuple[str | int | float, ...]]
"""Two factors and their values."""


def draw(title: str, panels: Mapping[str, Panel], grid: Grid | None = None) -> bytes:
    """A PNG with one panel for every measure.

    Args:
        title: above all panels.
        panels: what they show, by name.
        grid: the values of two factors: the first is drawn downwards, the second to the right, and
            lines without factors are named above. None draws a row of points for every line.
    """
    from matplotlib.figure import Figure

    if grid is not None:
        ys, xs = grid.values()
        width, height = 1.6 + 0.85 * len(xs), 1.7 + 0.6 * len(ys)
    else:
        width, height = 4.6, 1.3 + 0.3 * len(next(iter(panels.values())))
    figure = Figure(figsize=(max(3.6, width) * len(panels), height), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        if grid is None:
            _points(axis, name, panel)
        else:
            _heat_map(axis, name, panel, grid)
    figure.suptitle(title, fontsize=11, color=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=150, metadata={'Software': None})
    return buffer.getvalue()


def cells(panel: Panel, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations over seeds, both [first factor, second factor].

    NaN is what has not been run or is not in the study, and the deviation of a single seed.
    """
    (first, ys), (second, xs) = grid.items()
    means, stds = np.full((2, len(ys), len(xs)), np.nan)
    for line, values in panel:
        if line.factors:
            at = ys.index(line.factors[first]), xs.index(line.factors[second])
            means[at] = np.mean(values)
            stds[at] = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return means, stds


def _heat_map(axis, name: str, panel: Panel, grid: Grid) -> None:
    from matplotlib import colormaps

    means, stds = cells(panel, grid)
    some = means[np.isfinite(means)]
    low, high = (some.min(), max(some.max(), some.min() + 1e-6)) if some.size else (0.0, 1.0)
    axis.imshow(means, cmap='viridis', vmin=low, vmax=high, aspect='auto')
    for i, j in np.argwhere(np.isfinite(means)):
        colour = colormaps['viridis']((means[i, j] - low) / (high - low))
        light = np.dot(colour[:3], (0.3, 0.59, 0.11)) > 0.5
        text = f'{means[i, j]:.1f}' + (f'\n± {stds[i, j]:.1f}' if np.isfinite(stds[i, j]) else '')
        axis.text(j, i, text, ha='center', va='center', fontsize=8, color=INK if light else 'white')
    (first, ys), (second, xs) = grid.items()
    axis.set_xticks(range(len(xs)), [str(x) for x in xs], fontsize=8)
    axis.set_yticks(range(len(ys)), [str(y) for y in ys], fontsize=8)
    axis.set_xlabel(second, fontsize=9)
    axis.set_ylabel(first, fontsize=9)
    axis.spines[:].set_visible(False)
    others = [f'{line.name} {np.mean(v):.1f}' for line, v in panel if not line.factors]
    rows = [', '.join(others[i : i + 2]) for i in range(0, len(others), 2)]
    axis.set_title('\n'.join([f'{name}, %', *rows]), fontsize=8, color=INK)


def _points(axis, name: str, panel: Panel) -> None:
    own = [(line, values) for line, values in panel if not line.reference]
    for i, (_, values) in enumerate(own):
        axis.plot(values, [i] * len(values), 'o', color=PALE, markersize=4)
        error = np.std(values, ddof=1) if len(values) > 1 else math.nan
        axis.errorbar(np.mean(values), i, xerr=error, fmt='o', color=ACCENT, capsize=3)
    references = [(line, values) for line, values in panel if line.reference]
    for (line, values), style in zip(references, _styles(), strict=False):
        label = f'{line.name} {np.mean(values):.1f}'
        axis.axvline(np.mean(values), color=SECOND, linestyle=style, linewidth=1.2, label=label)
    axis.set_yticks(range(len(own)), [line.name for line, _ in own], fontsize=8)
    axis.margins(y=0.5 / max(1, len(own)))
    left, right = axis.get_xlim()
    room = max(0.0, NARROWEST - (right - left)) / 2
    axis.set_xlim(left - room, right + room)
    axis.invert_yaxis()
    axis.set_xlabel('top-1 on test, %', fontsize=9)
    axis.set_title(name, fontsize=9, color=INK)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[['top', 'right']].set_visible(False)
    if references:
        axis.legend(fontsize=7, frameon=False, loc='best')


def _styles():
    while True:
        yield from ('--', ':', '-.', (0, (1, 1)))
