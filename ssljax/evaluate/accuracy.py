"""Top-1 and top-5 accuracy in which every example counts exactly once."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares of examples whose class was the first, or among the first five.

    Attributes:
        top1: share in [0, 1].
        top5: share in [0, 1].
        count: number of examples scored.
    """

    top1: float
    top5: float
    count: int

    @classmethod
    def of(cls, ranks: Int[np.ndarray, ' n'] | Int[Array, ' n']) -> 'Accuracy':
        """From the rank of every example's own class (`rank`)."""
        ranks = np.asarray(ranks)
        return cls(float(np.mean(ranks < 1)), float(np.mean(ranks < 5)), len(ranks))


def rank(scores: Float[Array, 'n c'], labels: Int[Array, ' n']) -> Int[Array, ' n']:
    """How many classes are placed before an example's own class; 0 is a top-1 hit.

    Equal scores are placed by class id, as argmax does. An example whose scores are not all
    numbers, or whose label is not one of the classes (-1), is placed last, never first: NaN
    features must not pass for perfect ones.

    Args:
        scores: one score per class, any scale.
        labels: column of the example's own class, or -1.
    """
    classes = scores.shape[1]
    own = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)
    earlier = jnp.arange(classes) < labels[:, None]
    ahead = jnp.sum((scores > own) | ((scores == own) & earlier), axis=1)
    bad = (labels < 0) | jnp.any(jnp.isnan(scores), axis=1)
    return jnp.where(bad, max(classes, 5), ahead)


def tiles(x: Array, size: int) -> Array:
    """Cuts the first axis into tiles, padded at the end: [n, ...] -> [t, size, ...]."""
    count = -(-x.shape[0] // size)
    padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])


def by_tiles(function: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """Applies a row-wise function to `size` rows at a time and drops the padding again."""
    n = arrays[0].shape[0]
    out = jax.lax.map(lambda a: function(*a), tuple(tiles(a, min(size, n)) for a in arrays))
    return out.reshape(-1, *out.shape[2:])[:n]
