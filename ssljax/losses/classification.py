"""Cross-entropy with whole numbers for classes."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    scores: Float[Array, '*batch k'], labels: Int[Array, '*batch']
) -> Float[Array, '*batch']:
    """-log softmax(scores)[label] of each example, in nats: ln k where all scores are equal.

    As `optax.losses.softmax_cross_entropy_with_integer_labels`, but for its gradient: that picks
    the label's score by index, and so adds gradients up by index, which a GPU does in any order, or
    one by one where it has to repeat itself to the bit.

    Scores of less than float32 are taken in float32.

    Args:
        scores: of the classes along the last axis.
        labels: each in [0, k).
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    wanted = jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    return optax.losses.softmax_cross_entropy(scores, wanted)
