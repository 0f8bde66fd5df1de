"""Losses that compare a reconstruction with what was hidden.

They compute in at least float32 and let gradients flow to every argument.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

EPSILON = 1e-6
"""Added to the variance of a patch that is normalised, as in the MAE code."""


def masked_mse(
    prediction: Float[Array, 'n t d'],
    target: Float[Array, 'n t d'],
    mask: Bool[Array, 'n t'],
    *,
    normalize: bool,
) -> Float[Array, '']:
    """The squared error per value, the mean over the masked patches of the batch.

    With y = target of a patch, or (y - mean y) / sqrt(var y + 1e-6) of the patch's own values if
    `normalize`, var being the unbiased variance (d - 1 in its denominator),

        loss = mean over masked patches of (1 / d) |prediction - y|^2.

    Predicting 0 of normalised patches costs (d - 1) / d.

    Args:
        prediction: of the d values of each of t patches.
        target: their values, in the same order.
        mask: which patches were hidden; the others cost nothing and get no gradient.
        normalize: whether each target is brought to mean 0 and variance 1.

    Returns:
        The loss, a scalar >= 0 of at least float32; 0 if nothing is masked.

    Reference:
        He, Chen, Xie, Li, Dollar, Girshick (2021), arXiv:2111.06377, section 3.
    """
    dtype = jnp.promote_types(jnp.result_type(prediction, target), jnp.float32)
    prediction, target, weight = (x.astype(dtype) for x in (prediction, target, mask))
    if normalize:
        target = normalized(target)
    error = jnp.mean(jnp.square(prediction - target), axis=-1)
    return jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight), 1)


def normalized(patches: Float[Array, '*batch d']) -> Float[Array, '*batch d']:
    """Patches of mean 0 and unbiased variance 1; those of one value only become 0."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + EPSILON)
