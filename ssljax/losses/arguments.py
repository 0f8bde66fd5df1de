"""What the losses of similarities ask of their arguments."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(*arrays: Float[Array, '...']) -> tuple[Float[Array, '...'], ...]:
    """The arrays as a tuple, in their common dtype, or in float32 if that is shorter."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(a.astype(dtype) for a in arrays)


def check(temperature: float | Float[Array, ''], tile: int | None) -> None:
    """Raise ValueError for a temperature or tile that is not positive; traced ones pass."""
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f'temperature is {temperature}, expected > 0; papers use 0.07 to 1')
    check_tile(tile)


def check_tile(tile: int | None) -> None:
    """Raise ValueError for a tile that is not positive."""
    if tile is not None and tile < 1:
        raise ValueError(f'tile is {tile} rows, expected at least 1; None computes all at once')
