"""k-means over a whole data set, and how alike two clusterings are."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

TILE = 2**24
"""Distances held at a time: 64 MiB of float32."""

PERTURBATION = 1 / 1024
"""Share by which a copied centroid is moved off the one it was copied from; that of faiss."""


class Clustering(NamedTuple):
    """What k-means found.

    Attributes:
        centroids: where the last iteration put them: means, or next to one where none was near.
        assignment: the nearest centroid of every row, int32.
        inertia: the mean squared distance to it: before the first iteration and after each.
    """

    centroids: Float[Array, 'k d']
    assignment: Int[Array, 'n']
    inertia: Float[Array, 'iterations']


@functools.partial(jax.jit, static_argnames=('clusters', 'iterations', 'tile'))
def kmeans(
    key: PRNGKeyArray,
    rows: Float[Array, 'n d'],
    *,
    clusters: int,
    iterations: int,
    tile: int = TILE,
) -> Clustering:
    """Lloyd's k-means from centroids at randomly chosen rows, by Euclidean distance.

    A cluster that has lost all its rows takes over a part of a large one, as in faiss: its
    centroid becomes a copy of the other's, moved off it a little; which, is drawn with
    probabilities that grow with the size. Unlike there the other stays where it is, so that the
    inertia falls in every iteration or stays. A cluster may still be empty at the end, and is
    where there are fewer distinct rows than clusters.

    Args:
        key: of the first centroids and of what is split; the same key, the same clusters.
        rows: what is clustered, at least as many rows as clusters.
        clusters: their number k.
        iterations: how often centroids move to the means of their clusters.
        tile: of the n x k distances no more than so many (and at least k) are held at a time.

    Raises:
        ValueError: if there are fewer rows than clusters, or a number is below 1.

    Reference:
        Lloyd (1982), Least squares quantization in PCM; Johnson, Douze, Jégou (2017),
        arXiv:1702.08734 (faiss).
    """
    n = len(rows)
    if not 1 <= clusters <= n:
        raise ValueError(
            f'{clusters} clusters of {n} rows; use at least 1, and at most as many as rows'
        )
    if iterations < 1 or tile < 1:
        raise ValueError(f'iterations is {iterations} and tile {tile}; both must be at least 1')
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    first, splits = jax.random.split(key)
    start = rows[jax.random.choice(first, n, (clusters,), replace=False)]
    blocks = _blocks(rows, max(1, min(n, tile // clusters)))

    def move(centroids: Float[Array, 'k d'], key: PRNGKeyArray):
        _, sums, sizes, inertia = _assign(blocks, centroids)
        means = sums / jnp.maximum(sizes, 1)[:, None]
        return _split(key, means, sizes), inertia

    centroids, inertia = jax.lax.scan(move, start, jax.random.split(splits, iterations))
    assignment, _, _, last = _assign(blocks, centroids)
    return Clustering(centroids, assignment[:n], jnp.append(inertia, last) / n)


def _blocks(rows: Float[Array, 'n d'], size: int) -> tuple[Array, Array]:
    """Rows as [blocks, size, d], the last block filled up; and which of them are real."""
    n = len(rows)
    count = -(-n // size)
    filled = jnp.pad(rows, ((0, count * size - n), (0, 0)))
    return filled.reshape(count, size, -1), (jnp.arange(count * size) < n).reshape(count, size)


def _assign(blocks: tuple[Array, Array], centroids: Float[Array, 'k d']):
    """The nearest centroid of every row, filling included; of clusters the sums and the sizes.

    Returns:
        `(assignment, sums, sizes, inertia)`, inertia being the sum of all squared distances.
    """
    k, d = centroids.shape
    precise = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    halves = jnp.sum(jnp.square(centroids), axis=1) / 2

    def one(total, block):
        rows, real = block
        # |x - c|^2 / 2 = |x|^2 / 2 - x . c + |c|^2 / 2, of which the first is the same for all c.
        nearest = jnp.argmin(halves - precise(rows, centroids.T), axis=1)
        off = jnp.where(real[:, None], rows - centroids[nearest], 0)
        # A product, not a scatter: the same bits on every run, on accelerators too.
        member = jax.nn.one_hot(nearest, k, dtype=rows.dtype) * real[:, None]
        new = (precise(member.T, rows), jnp.sum(member, axis=0), jnp.sum(jnp.square(off)))
        return jax.tree.map(jnp.add, total, new), nearest.astype(jnp.int32)

    dtype = centroids.dtype
    nothing = (jnp.zeros((k, d), dtype), jnp.zeros(k, dtype), jnp.zeros((), dtype))
    (sums, sizes, inertia), assignment = jax.lax.scan(one, nothing, blocks)
    return assignment.reshape(-1), sums, sizes, inertia


def _split(
    key: PRNGKeyArray, means: Float[Array, 'k d'], sizes: Float[Array, 'k']
) -> Float[Array, 'k d']:
    """The means, and for empty clusters copies of those of large ones, each copied once at most."""
    k, d = means.shape
    # Gumbel's trick: in this order they are drawn without replacement, by size - 1.
    drawn = jnp.log(jnp.maximum(sizes - 1, 0)) + jax.random.gumbel(key, (k,), sizes.dtype)
    donors = jnp.argsort(-drawn)
    empty = sizes == 0
    donor = donors[jnp.cumsum(empty) - 1]
    signs = jnp.where(jnp.arange(d) % 2 == 0, 1 + PERTURBATION, 1 - PERTURBATION)
    return jnp.where(empty[:, None], means[donor] * signs, means)


def mutual_information(a: Int[Array | np.ndarray, 'n'], b: Int[Array | np.ndarray, 'n']) -> float:
    """How alike two clusterings are, whatever their clusters are called: NMI.

    I(a; b) / sqrt(H(a) H(b)) of the clusters that a random row has in both: 1 where one is the
    other under other names, about 0 where they are independent, 0 where one is a single cluster.

    Args:
        a: the cluster of every row, from 0.
        b: likewise, of the same rows.

    Reference:
        Strehl, Ghosh (2002), Cluster ensembles, equation 3; Caron et al. (2018), arXiv:1807.05520,
        section 4.1.
    """
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    pairs = a * (b.max() + 1) + b
    h_a, h_b, h_both = (_entropy(np.unique(x, return_counts=True)[1]) for x in (a, b, pairs))
    if min(h_a, h_b) <= 0:
        return 0.0
    return float(np.clip((h_a + h_b - h_both) / np.sqrt(h_a * h_b), 0, 1))


def _entropy(counts: Int[np.ndarray, 'k']) -> float:
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log(shares)))
