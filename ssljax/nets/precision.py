"""In which type a network computes."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Precision = Literal['float32', 'bfloat16']
"""`float32`: at least float32, by promotion, so that a float64 input with float64 parameters stays
float64. `bfloat16`: convolutions, products and activations in bfloat16; parameters, batch
statistics and what comes out stay float32."""


def compute_dtype(precision: Precision) -> Any:
    """The `dtype` field of Linen modules: None means "promote inputs and parameters".

    Raises:
        ValueError: for another name.
    """
    if precision not in ('float32', 'bfloat16'):
        raise ValueError(f"dtype is {precision!r}; use 'float32' or 'bfloat16'")
    return jnp.bfloat16 if precision == 'bfloat16' else None


def at_least_float32(x: Float[Array, '...']) -> Float[Array, '...']:
    """`x` in float32, or in its own type if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
