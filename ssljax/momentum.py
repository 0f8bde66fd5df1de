"""Momentum encoders: the exponential moving average of a tree, and how its momentum moves."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssljax.core import Now, Tree


@dataclasses.dataclass(frozen=True)
class Momentum:
    """The momentum m of an average t <- m t + (1 - m) s, over a run.

    Attributes:
        start: m at step 0, in [0, 1].
        schedule: `constant`; `cosine`, from start to 1 as 1 - (1 - start) (1 + cos(pi k / K)) / 2
            at step k of K; or `linear`, from start to 1.

    Reference: He et al. 2019, arXiv 1911.05722 (constant, 0.999); Grill et al. 2020, arXiv
        2006.07733 (cosine from 0.996); Assran et al. 2023, arXiv 2301.08243 (linear from 0.996).
    """

    start: float = 0.996
    schedule: Literal['constant', 'cosine', 'linear'] = 'cosine'

    def __post_init__(self):
        if not 0 <= self.start <= 1:
            raise ValueError(
                f'momentum {self.start} is outside [0, 1]; 0 copies the encoder, 1 keeps the target'
            )
        if self.schedule not in ('constant', 'cosine', 'linear'):
            raise ValueError(
                f"momentum schedule is {self.schedule!r}; use 'constant', 'cosine' or 'linear'"
            )

    def at(self, now: Now) -> Float[Array, '']:
        """m at a step."""
        left = {
            'constant': 1.0,
            'cosine': (1 + jnp.cos(jnp.pi * now.progress)) / 2,
            'linear': 1 - now.progress,
        }[self.schedule]
        return jnp.asarray(1 - (1 - self.start) * left)


def average(target: Tree, source: Tree, momentum: Float[Array, ''] | float) -> Tree:
    """`momentum * target + (1 - momentum) * source`, leaf by leaf.

    For parameters only: batch statistics of a target network are its own (methods: MoCo, BYOL).
    0 copies `source` and 1 keeps `target`, bit for bit.
    """

    def mix(t: Array, s: Array) -> Array:
        m = jnp.asarray(momentum, t.dtype)
        return m * t + (1 - m) * s

    return jax.tree.map(mix, target, source)
