"""The figures of a report, as data URIs: a page of one file, readable without a network."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INK, ACCENT, SECOND = '#1f2937', '#2563eb', '#d97706'
FEW = 8
"""Points up to which a curve shows each: a line through one point is nothing."""


def curves(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss, learning rate, spread of embeddings, validation scores and gradient norm by epoch.

    Args:
        records: lines of `metrics.jsonl`.

    Returns:
        An SVG data URI, or None if nothing was recorded.
    """
    steps = [r for r in records if 'loss' in r]
    if not steps:
        return None
    per_step = steps[-1]['epoch'] / steps[-1]['step']
    checks = [
        {**r['validation'], 'epoch': r['step'] * per_step} for r in records if 'validation' in r
    ]
    panels = [
        ('loss', [('loss', steps, 'loss')]),
        ('learning rate', [('learning rate', steps, 'learning_rate')]),
        ('embedding', [('std x sqrt(d)', steps, 'std'), ('agreement', steps, 'agreement')]),
        (
            'validation top-1',
            [('kNN', checks, 'knn_top1'), ('linear', checks, 'linear_top1')],
        ),
        ('gradient norm', [('gradient norm', steps, 'grad_norm')]),
    ]
    panels = [
        (title, lines)
        for title, lines in panels
        if any(key in r for _, rows, key in lines for r in rows)
    ]
    figure, axes = _plot(1, len(panels), (3.4 * len(panels), 2.7))
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for (label, rows, key), colour in zip(lines, (ACCENT, SECOND), strict=False):
            points = [(r['epoch'], float(r[key])) for r in rows if key in r]
            if points:
                x, y = np.array(points).T
                marker = 'o' if len(points) <= FEW else None
                axis.plot(x, y, color=colour, label=label, linewidth=1.6, marker=marker)
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel('epoch', fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
        if len(lines) > 1:
            axis.legend(fontsize=8, frameon=False)
    return _svg(figure)


def embedding_map(
    features: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None
) -> str | None:
    """Features in the plane by t-SNE, coloured by class.

    Args:
        features: [n, d].
        labels: [n] class numbers, or None.
        names: of the classes, or None.

    Returns:
        The picture; None of features that have no map: not finite, all alike, too few or too short.
    """
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # scikit-learn would divide by their spread, and crash.
    shaped = len(unit) > 3 and unit.shape[1] > 1 and np.isfinite(unit).all()
    if not shaped or np.ptp(unit, axis=0).max() < 1e-6:
        return None
    perplexity = min(30.0, max(2.0, (len(unit) - 1) / 3))
    at = TSNE(perplexity=perplexity, random_state=0, init='pca').fit_transform(unit)
    figure, (axis,) = _plot(1, 1, (7.0, 5.0))
    if labels is None:
        axis.scatter(*at.T, s=6, color=ACCENT)
    else:
        dots, said = [], []
        for k in np.unique(labels).tolist():
            dots.append(axis.scatter(*at[labels == k].T, s=6, color=_colour(k)))
            # Matplotlib would set what stands between dollars as mathematics.
            said.append(str(k) if names is None else names[k].replace('$', r'\$'))
        if len(dots) <= 20:
            place = {'markerscale': 2.5, 'bbox_to_anchor': (1, 1)}
            axis.legend(dots, said, fontsize=8, frameon=False, **place)
    axis.set_axis_off()
    return _svg(figure)


def picture(image: np.ndarray, scale: int = 1) -> str:
    """A uint8 image [h, w, c] (c = 1 or 3) as a PNG data URI, enlarged by whole pixels."""
    from PIL import Image

    pixels = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, 'PNG')
    return _uri('image/png', buffer.getvalue())


def _plot(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout='constrained')
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel()


def _colour(k: int):
    from matplotlib import colormaps

    return colormaps['tab20'](int(k) % 20)


def _svg(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None})
    return _uri('image/svg+xml', buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'
