"""Batches of views as the pipeline and the step make them."""

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from ssljax.core import with_keys
from ssljax.data.picture import Picture


def batch_of(recipe, examples=4, channels=3, side=24):
    """A batch for the device half of a recipe, and the pictures it came from."""
    pictures = np.random.default_rng(0).integers(0, 256, (examples, side, side, channels), np.uint8)
    views = [
        recipe.on_host(Picture(tf.constant(p), channels), tf.constant([0, i]))['image']
        for i, p in enumerate(pictures)
    ]
    batch = {'image': jnp.asarray(np.stack(views)), 'index': jnp.arange(examples)}
    return with_keys(batch, jax.random.key(1)), pictures
