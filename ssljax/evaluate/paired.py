"""Features of two augmented views of the same images, for the measures that compare them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssljax.core import Tree, with_keys
from ssljax.data.pipeline import Stream, batches
from ssljax.data.sources import Source
from ssljax.evaluate.online import Views
from ssljax.train.session import Session

IMAGES = 1_000
"""Images, evenly spaced, that views are made of at most."""

Encode = Callable[..., Float[Array, 'n d']]
"""Weights, and images as the recipe normalises them -> features."""


def paired(
    encode: Encode, weights: tuple[Tree, ...], session: Session, source: Source, batch: int
) -> Views | None:
    """Features of the first two views of images, made as in training; None if there is one view.

    Args:
        encode: `(*weights, images) -> features`; is put under jit.
        weights: its first arguments.
        session: whose recipe and seed make the views.
        source: of which an even sample is taken, every image of it at most once.
        batch: images at a time. What does not fill a batch is left out.
    """
    experiment = session.experiment
    (name, (count, _)), *_ = experiment.recipe.views().items()
    if count < 2:
        return None
    sample = source.spread(IMAGES)
    size = min(batch, sample.examples)
    stream = Stream(batch=size, seed=experiment.seed, max_corrupt=experiment.data.max_corrupt)

    @jax.jit
    def both(weights, arrays, key):
        views = experiment.recipe.on_device(with_keys(arrays, key))[name]
        return encode(*weights, views[:, 0]), encode(*weights, views[:, 1])

    found = []
    steps = sample.examples // size
    for step, arrays in enumerate(batches(sample, experiment.recipe, stream, start=0, stop=steps)):
        key = jax.random.fold_in(jax.random.key(experiment.seed), step)
        found.append(jax.device_get(both(weights, jax.tree.map(jnp.asarray, dict(arrays)), key)))
    first, second = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second)
