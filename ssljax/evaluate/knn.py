"""Weighted k-nearest-neighbour classification of frozen features: exact, in bounded memory.

Reference:
    Wu, Xiong, Yu, Lin 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", arXiv:1805.01978, section 3.4 (k = 200, temperature 0.07).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssljax.evaluate.accuracy import Accuracy, by_tiles, rank, tiles
from ssljax.evaluate.features import Features

CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200)
"""Values of k that `choose_k` tries; 10 to 200 are those DINO reports (arXiv:2104.14294)."""

_QUERY_TILE = 512
_BANK_TILE = 8192


def unit(x: Float[Array, 'n d']) -> Float[Array, 'n d']:
    """Rows scaled to length 1; a row of zeros stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=('k', 'query_tile', 'bank_tile'))
def nearest(
    query: Float[Array, 'm d'],
    bank: Float[Array, 'n d'],
    *,
    k: int,
    query_tile: int = _QUERY_TILE,
    bank_tile: int = _BANK_TILE,
) -> tuple[Float[Array, 'm k'], Int[Array, 'm k']]:
    """The k nearest rows of the bank by cosine, nearest first; equal ones by position.

    Exact: all pairs are compared, `query_tile` x `bank_tile` at a time, so that memory does not
    grow with the number of pairs.

    Returns:
        `(similarity, position)`: cosines in [-1, 1] and rows of the bank.
    """
    size = min(bank_tile, bank.shape[0])
    blocks = tiles(unit(bank), size)
    starts = jnp.arange(len(blocks), dtype=jnp.int32) * size

    def one(rows):
        def merge(best, item):
            block, start = item
            similarity = jnp.matmul(rows, block.T, precision='highest')
            real = start + jnp.arange(size) < bank.shape[0]
            # The best so far stand first: top_k keeps the first of equals.
            both = jnp.concatenate([best[0], jnp.where(real, similarity, -jnp.inf)], axis=1)
            top, at = jax.lax.top_k(both, k)
            kept = jnp.take_along_axis(best[1], jnp.minimum(at, k - 1), axis=1)
            return (top, jnp.where(at < k, kept, start + at - k)), None

        none = (
            jnp.full((len(rows), k), -jnp.inf, rows.dtype),
            jnp.zeros((len(rows), k), jnp.int32),
        )
        return jax.lax.scan(merge, none, (blocks, starts))[0]

    m = query.shape[0]
    similarity, position = jax.lax.map(one, tiles(unit(query), min(query_tile, m)))
    return similarity.reshape(-1, k)[:m], position.reshape(-1, k)[:m]


def vote(
    similarity: Float[Array, 'm k'],
    neighbour: Int[Array, 'm k'],
    *,
    classes: int,
    temperature: float,
) -> Float[Array, 'm c']:
    """Class scores: the sum of exp(similarity / temperature) over the neighbours of a class.

    Relative to the nearest neighbour's weight, which keeps small temperatures from overflowing.
    """
    weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
    hit = neighbour[:, :, None] == jnp.arange(classes)
    return jnp.sum(jnp.where(hit, weight[:, :, None], 0), axis=1)


@functools.partial(jax.jit, static_argnames=('ks', 'classes', 'temperature'))
def _ranks(query, bank, *, ks, classes, temperature):
    (rows, target), (keys, labels) = query, bank
    similarity, position = nearest(rows, keys, k=max(ks))

    def score(k):
        def one(similarity, neighbour, target):
            votes = vote(similarity, neighbour, classes=classes, temperature=temperature)
            return rank(votes, target)

        # A cosine of -inf has no weight.
        nearer = jnp.where(jnp.arange(max(ks)) < k, similarity, -jnp.inf)
        return by_tiles(one, _QUERY_TILE, nearer, labels[position], target)

    return jax.lax.map(score, jnp.array(ks))


def knn(
    bank: Features, query: Features, *, ks: Sequence[int] = (200,), temperature: float = 0.07
) -> dict[int, Accuracy]:
    """Weighted kNN accuracy, for several k at the cost of the largest.

    Args:
        bank: features with labels whose classes vote.
        query: features with labels that are scored.
        ks: numbers of neighbours, each at most the size of the bank.
        temperature: of the weights exp(cosine / temperature), > 0.

    Returns:
        The accuracy by k.

    Raises:
        ValueError: labels are missing, a k does not fit the bank, or the widths differ.

    Reference:
        Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    ks = tuple(int(k) for k in ks)
    if not ks or min(ks) < 1 or max(ks) > len(bank):
        raise ValueError(
            f'k of {ks} for a bank of {len(bank)} examples; every k must lie between 1 and the '
            'size of the bank: lower k or give more examples'
        )
    if bank.features.shape[1] != query.features.shape[1]:
        raise ValueError(
            f'the bank has {bank.features.shape[1]} features an example, the queries '
            f'{query.features.shape[1]}; both must come from the same encoder and layer'
        )
    labels, targets = bank.targets(), query.targets()
    ranks = _ranks(
        (query.features, targets),
        (bank.features, labels),
        ks=ks,
        classes=int(max(labels.max(), targets.max())) + 1,
        temperature=temperature,
    )
    return {k: Accuracy.of(r) for k, r in zip(ks, ranks, strict=True)}


def choose_k(
    bank: Features,
    validation: Features,
    *,
    candidates: Sequence[int] = CANDIDATES,
    temperature: float = 0.07,
) -> tuple[int, dict[int, Accuracy]]:
    """The k with the best top-1 on validation; of equals the smallest.

    Candidates larger than the bank are left out.

    Returns:
        `(k, accuracy by k)`.

    Raises:
        ValueError: no candidate fits the bank, or as in `knn`.
    """
    fitting = tuple(sorted({k for k in candidates if k <= len(bank)}))
    accuracy = knn(bank, validation, ks=fitting or tuple(candidates), temperature=temperature)
    best = int(np.argmax([accuracy[k].top1 for k in fitting]))
    return fitting[best], accuracy
