"""What is worth watching in every step of a method of several views: is it collapsing?"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def of_views(z: Float[Array, 'n v d']) -> dict[str, Float[Array, '']]:
    """Spread and agreement of embeddings, on the unit sphere.

    Args:
        z: embeddings of v views of n examples, of any norm.

    Returns:
        `std`, the mean over dimensions of the standard deviation over examples, times sqrt(d): 1
        when spread evenly over the sphere, 0 when collapsed; and `agreement`, the mean cosine of
        the first two views.
    """
    z = jax.lax.stop_gradient(z).astype(jnp.promote_types(z.dtype, jnp.float32))
    unit = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    return {
        'std': jnp.mean(jnp.std(unit[:, 0], axis=0)) * z.shape[-1] ** 0.5,
        'agreement': jnp.mean(jnp.sum(unit[:, 0] * unit[:, 1], axis=-1)),
    }
