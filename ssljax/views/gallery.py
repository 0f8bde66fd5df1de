"""Views as the network sees them, as one picture."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from ssljax.core import Batch
from ssljax.views.recipe import Recipe

GAP = 2
"""White pixels between images."""


def contact_sheet(batch: Batch, recipe: Recipe, columns: int = 12) -> UInt8[np.ndarray, 'h w 3']:
    """Draws the views of a few examples, one column per example, with the normalisation undone.

    A column is as wide as the widest view; of smaller ones (multi-crop's) as many stand side by
    side as fit.

    Args:
        batch: with the arrays of `recipe.views()`, float [n, v, h, w, c], as `recipe.on_device`
            returns them.
        recipe: made the views.
        columns: number of examples to show, at most.

    Returns:
        An RGB picture. Images of neither one nor three channels are shown by their mean.
    """
    arrays = [_pixels(batch[name][:columns], recipe) for name in recipe.views()]
    width = max(array.shape[3] for array in arrays)
    rows = [rows for array in arrays for rows in _rows(array, width)]
    examples = np.concatenate(rows, axis=1)
    sheet = np.concatenate(list(examples), axis=1)
    return np.pad(sheet, [(0, GAP), (0, GAP), (0, 0)], constant_values=255)


def _pixels(views: Float[jax.Array, 'n v h w c'], recipe: Recipe) -> UInt8[np.ndarray, 'n v h w 3']:
    """Normalised views as RGB."""
    views = np.asarray(jax.device_get(recipe.denormalize(jnp.asarray(views))))
    if views.shape[-1] != 3:
        views = np.repeat(views.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.rint(255 * np.clip(views, 0, 1)).astype(np.uint8)


def _rows(views: UInt8[np.ndarray, 'n v h w 3'], width: int) -> list[np.ndarray]:
    """The views of every example in rows [n, GAP + h, GAP + width, 3], white between them."""
    n, count, height, own, _ = views.shape
    beside = (width + GAP) // (own + GAP)
    rows = []
    for first in range(0, count, beside):
        row = np.full((n, GAP + height, GAP + width, 3), 255, np.uint8)
        for place, k in enumerate(range(first, min(first + beside, count))):
            left = GAP + place * (own + GAP)
            row[:, GAP:, left : left + own] = views[:, k]
        rows.append(row)
    return rows
