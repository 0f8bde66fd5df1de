"""Losses that regress one embedding onto another: agreement alone, without negatives.

They normalise their inputs themselves, compute in at least float32, and let gradients flow to every
argument; where a method stops one (BYOL's target), the method says so.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ssljax.losses.contrastive import unit


def negative_cosine(
    prediction: Float[Array, '*batch d'], target: Float[Array, '*batch d']
) -> Float[Array, '']:
    """The squared distance of two unit vectors, the mean over the batch of 2 - 2 cos.

    With u = prediction / |prediction| and w = target / |target| it is |u - w|^2 = 2 - 2 u . w: 0
    where they are aligned, 2 where orthogonal, 4 where opposite. BYOL adds two of these, one per
    direction. The mean of - u . w, of which SimSiam takes the average of two directions, is half of
    this, minus 1.

    Args:
        prediction: vectors of any length along the last axis; a zero vector has cosine 0 to
            everything, costs 2 and gets no gradient.
        target: what each of them is to be, likewise.

    Returns:
        The loss, a scalar in [0, 4] (to rounding) of at least float32.

    Reference:
        Grill et al. (2020), arXiv:2006.07733, equation 2; Chen, He (2020), arXiv:2011.10566,
        equation 1.
    """
    dtype = jnp.promote_types(jnp.result_type(prediction, target), jnp.float32)
    cosine = jnp.sum(unit(prediction.astype(dtype)) * unit(target.astype(dtype)), axis=-1)
    return jnp.mean(2 - 2 * cosine)
