"""How well a missing region is painted in."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def region_mse(
    prediction: Float[Array, 'n h w c'],
    target: Float[Array, 'n h w c'],
    weight: Float[Array, 'n h w'],
) -> Float[Array, '']:
    """Squared error over a region of each image, some of its pixels counting more.

        mean over n of   sum_p weight_p |prediction_p - target_p|^2 / (c * pixels in the region)

    The region is where the weight is above 0. Weights of 1 give the mean square over the region;
    ones of 10 in a rim add to it, as in the authors' code, and are not divided out again. A mean
    over examples: an image with a small region counts as much as one with a large one.

    Args:
        prediction: any values.
        target: the image.
        weight: 0 or more; an image whose weights are all 0 costs nothing.

    Returns:
        The loss, 0 or more, in at least float32.

    Reference: Pathak, Krahenbuhl, Donahue, Darrell, Efros 2016, arXiv 1604.07379, equation 1 (its
    "normalised" L2) and section 4 (the rim).
    """
    dtype = jnp.promote_types(jnp.result_type(prediction, target), jnp.float32)
    prediction, target, weight = (a.astype(dtype) for a in (prediction, target, weight))
    error = jnp.mean(jnp.square(prediction - target), axis=-1)
    pixels = jnp.sum(weight > 0, axis=(1, 2), dtype=dtype)
    return jnp.mean(jnp.sum(weight * error, axis=(1, 2)) / jnp.maximum(pixels, 1))
