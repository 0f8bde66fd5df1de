"""LARS: layer-wise adaptive rate scaling."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from ssljax.core import Tree
from ssljax.optim.optimizer import Optimizer, norm, require, require_one_of

Form = Literal['C', 'P']


class LARSState(NamedTuple):
    """Steps taken, and the momentum of every parameter."""

    count: Int[Array, '']
    momentum: Tree


@dataclasses.dataclass(frozen=True)
class LARS(Optimizer):
    """SGD with momentum whose rate is adapted to each parameter tensor.

    With u = g + weight_decay * w and r = trust * |w| / |u| (1 where either norm is 0; excluded
    parameters have r = 1 and no decay), the learning rate enters

        form C, before the momentum:   m <- momentum * m + rate * r * u,   w <- w - m
        form P, behind it:             m <- momentum * m + r * u,          w <- w - rate * m

    which is the same only for a constant rate. C is that of the paper (which has |g| +
    weight_decay * |w| for |u|), of SimCLR and of `optax.lars`; P is that of BYOL, Barlow Twins,
    VICReg, MoCo v3 and MAE's probe.

    Attributes:
        learning_rate: the base rate. SimCLR: 0.3 linear or 0.075 sqrt.
        warmup_epochs: epochs of linear warmup. SimCLR: 10.
        weight_decay: part of the gradient. SimCLR: 1e-6.
        form: where the learning rate enters, C or P.
        momentum: in [0, 1).
        trust: the trust coefficient.

    Reference: You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1.
    """

    learning_rate: float = 0.3
    warmup_epochs: float = 10.0
    weight_decay: float = 1e-6
    form: Form = 'C'
    momentum: float = 0.9
    trust: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        require_one_of('form', self.form, Form)
        require(0 <= self.momentum < 1, 'momentum', self.momentum, 'in [0, 1)')
        require(self.trust > 0, 'trust', self.trust, 'above 0')

    def rule(
        self, schedule: optax.Schedule, weight_decay: optax.Schedule
    ) -> optax.GradientTransformation:
        """Form C or P, with the state `LARSState`."""

        def init(params: Tree) -> LARSState:
            return LARSState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

        def adapted(g: Array, w: Array, decay: ArrayLike) -> Array:
            u = g + jnp.asarray(decay, w.dtype) * w
            size_w, size_u = norm(w), norm(u)
            both = (size_w > 0) & (size_u > 0)
            return jnp.where(both, self.trust * size_w / size_u, 1) * u

        def update(grads: Tree, state: LARSState, params: Tree) -> tuple[Tree, LARSState]:
            rate, decay = schedule(state.count), weight_decay(state.count)
            before, behind = (rate, 1.0) if self.form == 'C' else (1.0, rate)

            def push(m: Array, g: Array, w: Array, left_in: bool) -> Array:
                u = adapted(g, w, decay) if left_in else g
                return (self.momentum * m + before * u).astype(m.dtype)

            pushed = jax.tree.map(push, state.momentum, grads, params, self.included(params))
            updates = jax.tree.map(lambda m: (-behind * m).astype(m.dtype), pushed)
            return updates, LARSState(state.count + 1, pushed)

        return optax.GradientTransformation(init, update)
