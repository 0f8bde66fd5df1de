"""Batch normalisation with the constants that SimCLR and torchvision share."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

MOMENTUM = 0.9
"""Share of the old running statistics that is kept (PyTorch calls the rest, 0.1, momentum)."""

EPSILON = 1e-5


def batch_norm(train: bool, dtype: Any, **fields: Any) -> nn.BatchNorm:
    """BatchNorm over all axes but the last; under a global jit, over the whole global batch.

    Statistics are taken in at least float32. The running variance is the biased one, of which
    PyTorch keeps the unbiased: the two differ by a factor m / (m - 1), m values a channel.

    Args:
        train: normalise by the batch and update the running statistics, or use these.
        dtype: as in Linen; None promotes.
        fields: others of `nn.BatchNorm`, such as `name`, `use_bias`, `scale_init`.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=dtype,
        param_dtype=jnp.float32,
        **fields,
    )
