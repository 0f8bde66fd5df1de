"""The two sides of an adversarial game, from the discriminator's logits.

A logit d stands for D = sigmoid(d), the probability that an example is real. Goodfellow et al.
2014, arXiv 1406.2661: min over the generator, max over the discriminator, of

    V = E[log D(real)] + E[log(1 - D(fake))].

A loss takes the logits as they are: which of the two players its gradient reaches is settled where
they are computed, by `stop_gradient` on the other player's output or parameters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def discriminator(real: Float[Array, '*n'], fake: Float[Array, '*m']) -> Float[Array, '']:
    """What the discriminator minimises: -E[log D(real)] - E[log(1 - D(fake))], that is -V.

    Args:
        real: logits of real examples.
        fake: logits of generated ones.

    Returns:
        The loss, 0 or more: 2 ln 2 where D is 1/2 everywhere, in at least float32.
    """
    return jnp.mean(_softplus(-real)) + jnp.mean(_softplus(fake))


def generator(fake: Float[Array, '*n']) -> Float[Array, '']:
    """What a generator minimises in practice: -E[log D(fake)], the non-saturating form.

    Its slope is steepest where the discriminator is sure, and the fixed point that of V:
    arXiv 1406.2661, section 3.

    Args:
        fake: logits of generated examples.

    Returns:
        The loss, 0 or more: ln 2 where D is 1/2, in at least float32.
    """
    return jnp.mean(_softplus(-fake))


def saturating_generator(fake: Float[Array, '*n']) -> Float[Array, '']:
    """The generator's side of V itself: E[log(1 - D(fake))], arXiv 1406.2661, equation 1.

    Args:
        fake: logits of generated examples.

    Returns:
        The loss, 0 or less: -ln 2 where D is 1/2, in at least float32.
    """
    return -jnp.mean(_softplus(fake))


def _softplus(x: Float[Array, '*n']) -> Float[Array, '*n']:
    """log(1 + exp(x)) = -log(1 - sigmoid(x)), in at least float32, without overflow."""
    return jax.nn.softplus(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
