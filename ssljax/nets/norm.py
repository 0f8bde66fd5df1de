"""Batch normalisation with the constants that SimCLR and torchvision share, whole or in groups."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

MOMENTUM = 0.9
"""Share of the old running statistics that is kept (PyTorch calls the rest, 0.1, momentum)."""

EPSILON = 1e-5


def batch_norm(train: bool, dtype: Any, groups: int = 1, **fields: Any) -> nn.Module:
    """BatchNorm over all axes but the last; under a global jit, over the whole global batch.

    Statistics are taken in at least float32. The running variance is the biased one, of which
    PyTorch keeps the unbiased: the two differ by a factor m / (m - 1), m values a channel.

    Args:
        train: normalise by the batch and update the running statistics, or use these.
        dtype: as in Linen; None promotes.
        groups: parts of the batch that are normalised each by itself, see `GroupedBatchNorm`.
        fields: others of `nn.BatchNorm`, such as `name`, `use_bias`, `scale_init`.
    """
    fields |= {'use_running_average': not train, 'dtype': dtype}
    if groups == 1:
        return nn.BatchNorm(momentum=MOMENTUM, epsilon=EPSILON, param_dtype=jnp.float32, **fields)
    return GroupedBatchNorm(groups, **fields)


def check_groups(groups: int) -> None:
    """Raises ValueError unless there is at least one group."""
    if groups < 1:
        raise ValueError(
            f'norm_groups is {groups}; use 1 to normalise the batch as a whole, or the number of '
            'parts that are normalised each by itself'
        )


class GroupedBatchNorm(nn.Module):
    """BatchNorm of each of `groups` consecutive parts of the batch by itself.

    What BatchNorm does on so many devices that do not synchronise it, but as a function of the
    batch: the same on any number of devices, and without collectives where each holds whole groups.
    The running statistics are the means over the groups. Parameters and statistics have the names
    and shapes of `nn.BatchNorm`, whose variables fit here and the other way round.

    Attributes:
        groups: parts of equal size, at least 1; the batch must be divisible by it.
        use_running_average: normalise by the running statistics, alike for all examples.
        dtype: of the output; None promotes.
        use_scale: whether to multiply each channel by a parameter.
        use_bias: whether to add one to each channel.
        scale_init: the initialiser of the scale.

    Reference: He, Fan, Wu, Xie, Girshick 2019, arXiv 1911.05722, section 3.3 (shuffling BN).
    """

    groups: int
    use_running_average: bool
    dtype: Any = None
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable[..., Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, 'n *space c']) -> Float[Array, 'n *space c']:
        """The normalised `x`.

        Raises:
            ValueError: if the batch cannot be split evenly into the groups.
        """
        shape = x.shape[-1:]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        if self.use_running_average:
            parts, mean, var = x[None], running_mean.value[None], running_var.value[None]
        else:
            parts = split(x, self.groups)
            mean, var = moments(parts)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    old = running.value
                    new = MOMENTUM * old + (1 - MOMENTUM) * jnp.mean(new, axis=0)
                    running.value = new.astype(old.dtype)
        factor = jax.lax.rsqrt(var + EPSILON)
        if self.use_scale:
            factor = factor * self.param('scale', self.scale_init, shape, jnp.float32)
        over_part = lambda a: jnp.expand_dims(a, range(1, parts.ndim - 1))
        y = (parts - over_part(mean)) * over_part(factor)
        if self.use_bias:
            y = y + self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return y.reshape(x.shape).astype(self.dtype or y.dtype)


def split(x: Float[Array, 'n *rest'], groups: int) -> Float[Array, 'g m *rest']:
    """The batch as `groups` consecutive parts.

    Raises:
        ValueError: if they would not be of equal size.
    """
    n = x.shape[0]
    if n % groups:
        raise ValueError(
            f'a batch of {n} cannot be split evenly into {groups} groups for BatchNorm; use a '
            f'multiple of {groups}, or other norm_groups'
        )
    return x.reshape(groups, n // groups, *x.shape[1:])


def moments(
    parts: Float[Array, 'g m *space c'],
) -> tuple[Float[Array, 'g c'], Float[Array, 'g c']]:
    """Mean and biased variance of each group and channel, in at least float32.

    The variance is the mean square less the squared mean, as in Linen: one pass over the values.
    """
    parts = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
    axes = tuple(range(1, parts.ndim - 1))
    mean = jnp.mean(parts, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(parts), axes) - jnp.square(mean), 0)
