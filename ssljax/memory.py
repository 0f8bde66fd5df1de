"""Memories of embeddings: plain arrays in a method's state, and the pure functions on them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssljax.core import Tree


@dataclasses.dataclass(frozen=True)
class Queue:
    """The last `length` rows pushed, first in, first out; rows are unit vectors.

    Its state is `{'rows': [length, d], 'next': int32}`: the rows lie in a ring, and `next` is the
    place of the oldest, which the next push overwrites first. Any length from one push on will do:
    it need not be a multiple of the pushes.

    Attributes:
        length: rows held. MoCo: 65,536.

    Reference: He, Fan, Wu, Xie, Girshick 2019, arXiv 1911.05722, section 3.2.
    """

    length: int = 65_536

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f'queue length is {self.length}; it must be at least 1')

    def check(self, batch: int, keys: int = 1) -> None:
        """Raise ValueError if the queue cannot take what one step pushes.

        Args:
            batch: global batch size in examples.
            keys: rows pushed for each example.
        """
        rows = batch * keys
        if self.length < rows:
            each = '' if keys == 1 else f' with {keys} keys an example'
            raise ValueError(
                f'queue length {self.length} is shorter than the global batch {batch}{each}; '
                f'use a queue of at least one batch, {rows}'
            )

    def init(self, key: PRNGKeyArray, width: int) -> Tree:
        """A queue full of random directions: Gaussian rows of `width` numbers at unit length."""
        rows = _directions(key, self.length, width)
        return {'rows': rows, 'next': jnp.zeros((), jnp.int32)}

    def read(self, state: Tree) -> Float[Array, 'k d']:
        """All rows, as constants to any gradient; the oldest lies at `next`, the newest before it.

        Not put in order: to a loss that sums over them it makes no difference, and moving 32 MiB
        a step would cost.
        """
        return jax.lax.stop_gradient(state['rows'])

    def push(self, state: Tree, rows: Float[Array, 'n d']) -> Tree:
        """The state with `rows` in place of the oldest, the first of them oldest among them.

        Args:
            state: of `init` or `push`.
            rows: at most `length` unit vectors; no gradient flows to them.

        Raises:
            ValueError: if there are more rows than the queue holds.
        """
        n = rows.shape[0]
        self.check(n)
        places = (state['next'] + jnp.arange(n, dtype=jnp.int32)) % self.length
        rows = jax.lax.stop_gradient(rows).astype(state['rows'].dtype)
        return {
            'rows': state['rows'].at[places].set(rows, unique_indices=True),
            'next': (state['next'] + n) % self.length,
        }

    def smoke(self) -> 'Queue':
        """The same queue for a few steps of a small batch."""
        return Queue(min(self.length, 64))


@dataclasses.dataclass(frozen=True)
class Bank:
    """One row for every training example, looked up by its index: what it last looked like.

    Its state is an array [examples, d] of unit vectors. Read before `update` within a step: what an
    example is compared with is older than the step.

    Attributes:
        momentum: share of the old row that is kept, in [0, 1]. Paper: 0.5.

    Reference: Wu, Xiong, Yu, Lin 2018, arXiv 1805.01978, section 3.1 (the momentum is in the
        authors' code).
    """

    momentum: float = 0.5

    def __post_init__(self):
        if not 0 <= self.momentum <= 1:
            raise ValueError(
                f'bank momentum {self.momentum} is outside [0, 1]; 0 takes the new vectors, 1 '
                'keeps the old ones'
            )

    def init(self, key: PRNGKeyArray, examples: int, width: int) -> Float[Array, 'm d']:
        """A random direction of `width` numbers for each of `examples` rows."""
        return _directions(key, examples, width)

    def read(self, state: Float[Array, 'm d']) -> Float[Array, 'm d']:
        """All rows, as constants to any gradient."""
        return jax.lax.stop_gradient(state)

    def update(
        self, state: Float[Array, 'm d'], index: Int[Array, 'n'], rows: Float[Array, 'n d']
    ) -> Float[Array, 'm d']:
        """The state with m old + (1 - m) new, at unit length, in the rows named by `index`.

        Args:
            state: of `init` or `update`.
            index: positions in the data set, in [0, m). Of examples that come more than once the
                last is taken.
            rows: their unit vectors; no gradient flows to them.
        """
        m, n = self.momentum, index.shape[0]
        rows = jax.lax.stop_gradient(rows).astype(state.dtype)
        mixed = m * state[index] + (1 - m) * rows
        length = jnp.linalg.norm(mixed, axis=1, keepdims=True)
        # Opposite vectors of equal weight leave nothing: that row is zero until the next update.
        mixed = mixed / jnp.where(length > 0, length, 1)
        # What does not count goes beyond the end, each to a place of its own, and is dropped.
        places = jnp.where(_is_last(index), index, state.shape[0] + jnp.arange(n))
        return state.at[places].set(mixed, mode='drop', unique_indices=True)


def _directions(key: PRNGKeyArray, count: int, width: int) -> Float[Array, 'n d']:
    """Random directions: Gaussian rows at unit length."""
    rows = jax.random.normal(key, (count, width), jnp.float32)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def _is_last(index: Int[Array, 'n']) -> Array:
    """Whether no later entry is the same. By sorting: no n x n matrix."""
    order = jnp.argsort(index, stable=True)
    ordered = index[order]
    last = jnp.append(ordered[1:] != ordered[:-1], True)
    return jnp.zeros_like(last).at[order].set(last, unique_indices=True)
