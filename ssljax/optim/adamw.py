"""AdamW: Adam with decoupled weight decay."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ssljax.core import Tree
from ssljax.optim.optimizer import Optimizer, add_weight_decay, require


class MomentsState(NamedTuple):
    """Updates of each parameter, and the running moments of its gradient."""

    count: Tree
    first: Tree
    second: Tree


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay: w <- w - rate * (adam(g) + weight_decay * w).

    Attributes:
        learning_rate: the base rate.
        weight_decay: beside the adapted gradient, times the learning rate.
        betas: decay of the first and second moment, each in [0, 1).
        epsilon: added to the root of the second moment.

    Reference: Loshchilov, Hutter 2019, arXiv 1711.05101, algorithm 2.
    """

    learning_rate: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        good = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(good, 'betas', self.betas, 'two numbers in [0, 1)')
        require(self.epsilon > 0, 'epsilon', self.epsilon, 'above 0')

    def rule(
        self, schedule: optax.Schedule, weight_decay: optax.Schedule
    ) -> optax.GradientTransformation:
        """Moments, then weight decay, then the learning rate."""
        return optax.chain(
            scale_by_moments(self.betas, self.epsilon),
            add_weight_decay(weight_decay, self.included),
            optax.scale_by_learning_rate(schedule),
        )


def scale_by_moments(betas: tuple[float, float], epsilon: float) -> optax.GradientTransformation:
    """Adam's direction, as `optax.scale_by_adam` but with a count for every parameter.

    The bias of zero moments is corrected by the number of updates that a parameter has had: one
    that was frozen at first (`freeze`) starts like any other, where a common count would make its
    first step (1 - beta1) / sqrt(1 - beta2) times too long, 3.2 for 0.9 and 0.999.
    """
    b1, b2 = betas

    def init(params: Tree) -> MomentsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        # Floats, so that an update that is skipped leaves them as it leaves the moments: integers
        # count steps, and go on.
        counts = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        return MomentsState(counts, zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads: Tree, state: MomentsState, params: Tree = None) -> tuple[Tree, MomentsState]:
        def direction(n: Array, m: Array, v: Array) -> Array:
            n = n.astype(jnp.int32)
            return (m / (1 - b1**n) / (jnp.sqrt(v / (1 - b2**n)) + epsilon)).astype(m.dtype)

        count = jax.tree.map(lambda n: n + 1, state.count)
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.second, grads)
        return jax.tree.map(direction, count, first, second), MomentsState(count, first, second)

    return optax.GradientTransformation(init, update)
