"""The curves of a study: validation on the way, a line for every run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.study import Run
from ssljax.sweep.figure import INK

PANELS = {'linear_top1': 'linear', 'knn_top1': 'kNN'}
"""What is drawn: names in `metrics.jsonl`, and titles."""

MOST = 10
"""Variants that can be told apart by their colours."""


def draw(title: str, found: Sequence[tuple[Run, Mapping[str, Any]]]) -> bytes | None:
    """A PNG with a panel for every online score, by images drawn; seeds share a colour.

    Args:
        title: above all panels.
        found: runs with their results, whose `curve` has a mapping for every look at validation:
            `images`, and scores in [0, 1] by name. Results of before there were curves have none.

    Returns:
        None where no run has looked twice, or where there are more than 10 variants.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    runs = [(run, result['curve']) for run, result in found if len(result.get('curve', ())) > 1]
    names = list(dict.fromkeys(run.variant.name for run, _ in runs))
    if not names or len(names) > MOST:
        return None
    figure = Figure(figsize=(4.6 * len(PANELS), 3.4), layout='constrained')
    for axis, (key, panel) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        named = set()
        for run, curve in runs:
            name = run.variant.name
            points = [(look['images'], 100 * float(look[key])) for look in curve if key in look]
            if points:
                label = '_' if name in named else name  # matplotlib leaves out what begins so
                colour = colormaps['tab10'](names.index(name))
                axis.plot(*zip(*points, strict=True), '.-', color=colour, label=label)
                named.add(name)
        axis.set_title(f'{panel}, online', fontsize=9, color=INK)
        axis.set_xlabel('images drawn', fontsize=9)
        axis.set_ylabel('top-1 on validation, %', fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
        if named:
            axis.legend(fontsize=8, frameon=False, loc='lower right')
    figure.suptitle(title, fontsize=11, color=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=150, metadata={'Software': None})
    return buffer.getvalue()
