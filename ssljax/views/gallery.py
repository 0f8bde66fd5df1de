"""Views as the network sees them, as one picture."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from ssljax.core import Batch
from ssljax.views.recipe import Recipe

GAP = 2
"""White pixels between images."""


def contact_sheet(batch: Batch, recipe: Recipe, columns: int = 12) -> UInt8[np.ndarray, 'h w 3']:
    """Draws the views of a few examples, one column per example, with the normalisation undone.

    Args:
        batch: with `image` float [n, v, h, w, c], as `recipe.on_device` returns it.
        recipe: made the views.
        columns: number of examples to show, at most.

    Returns:
        An RGB picture. Images of neither one nor three channels are shown by their mean.
    """
    views = np.asarray(jax.device_get(recipe.denormalize(jnp.asarray(batch['image'][:columns]))))
    if views.shape[-1] != 3:
        views = np.repeat(views.mean(axis=-1, keepdims=True), 3, axis=-1)
    pixels = np.rint(255 * np.clip(views, 0, 1)).astype(np.uint8)
    space = [(0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0)]
    sheet = rearrange(np.pad(pixels, space, constant_values=255), 'n v h w c -> (v h) (n w) c')
    return np.pad(sheet, [(0, GAP), (0, GAP), (0, 0)], constant_values=255)
