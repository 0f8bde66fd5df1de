"""Memories of embeddings: plain arrays in a method's state, and the pure functions on them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

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
        rows = jax.random.normal(key, (self.length, width), jnp.float32)
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
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
