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
from ssljax.evaluate.classifier import Moments
from ssljax.evaluate.features import Features

CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200)
"""Values of k that `choose_k` tries; 10 to 200 are those DINO reports (arXiv:2104.14294)."""

_QUERY_TILE = 512
_BANK_TILE = 8192
_CLASS_TILE = 64


def unit(x: Float[Array, 'n d']) -> Float[Array, 'n d']:
    """Rows scaled to length 1; a row of zeros stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


Best = tuple[Float[Array, 't q k'], Int[Array, 't q k']]
"""Cosines and rows of the bank, nearest first, of queries in tiles."""


def nearest(
    query: Float[np.ndarray, 'm d'],
    bank: Float[np.ndarray, 'n d'],
    *,
    k: int,
    moments: Moments | None = None,
    query_tile: int = _QUERY_TILE,
    bank_tile: int = _BANK_TILE,
) -> tuple[Float[Array, 'm k'], Int[Array, 'm k']]:
    """The k nearest rows of the bank by cosine, nearest first; equal ones by position.

    Exact: all pairs are compared, `query_tile` x `bank_tile` at a time. The bank stays on the host:
    one tile of it after the other is on the device, so that memory grows neither with the number of
    pairs nor with the bank.

    Args:
        query: what neighbours are looked for.
        bank: what they are looked for in.
        k: how many, at most n.
        moments: statistics that both are standardised by; None: taken as they are.
        query_tile: queries at a time.
        bank_tile: rows of the bank at a time.

    Returns:
        `(similarity, position)`: cosines in [-1, 1] and rows of the bank.
    """
    m, n = len(query), len(bank)
    moments = Moments.identity(bank.shape[1]) if moments is None else moments
    rows = _directions(query, moments, tile=min(query_tile, m))
    best = (
        jnp.full((*rows.shape[:2], k), -jnp.inf, rows.dtype),
        jnp.zeros((*rows.shape[:2], k), jnp.int32),
    )
    size = min(bank_tile, n)
    for start in range(0, n, size):
        block = bank[start : start + size]
        if len(block) < size:
            block = np.pad(block, ((0, size - len(block)), (0, 0)))
        before, best = best, _merged(best, rows, block, moments, (start, n))
        # Or all of the bank would soon be on the device, waiting.
        jax.block_until_ready(before)
    similarity, position = (found.reshape(-1, k)[:m] for found in best)
    return similarity, position


@functools.partial(jax.jit, static_argnames='tile')
def _directions(x: Float[Array, 'n d'], moments: Moments, *, tile: int) -> Float[Array, 't q d']:
    return tiles(unit(moments.standardise(x)), tile)


@jax.jit
def _merged(
    best: Best,
    rows: Float[Array, 't q d'],
    block: Float[Array, 'b d'],
    moments: Moments,
    place: tuple[int | Int[Array, ''], int | Int[Array, '']],
) -> Best:
    """The best of those so far and of a block of the bank: `place` is its start and the end."""
    start, end = place
    keys = unit(moments.standardise(block))
    real = start + jnp.arange(len(block)) < end

    def merge(item):
        rows, similarity, position = item
        k = similarity.shape[1]
        cosine = jnp.matmul(rows, keys.T, precision='highest')
        # The best so far stand first: top_k keeps the first of equals.
        both = jnp.concatenate([similarity, jnp.where(real, cosine, -jnp.inf)], axis=1)
        top, at = jax.lax.top_k(both, k)
        kept = jnp.take_along_axis(position, jnp.minimum(at, k - 1), axis=1)
        return top, jnp.where(at < k, kept, start + at - k)

    return jax.lax.map(merge, (rows, *best))


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

    def votes(some: Int[Array, 'b']) -> Float[Array, 'm b']:
        hit = neighbour[:, :, None] == some
        return jnp.sum(jnp.where(hit, weight[:, :, None], 0), axis=1)

    if classes <= _CLASS_TILE:
        return votes(jnp.arange(classes))
    # m x k numbers for each class at a time: of ImageNet's 21,841 classes all would be 9 GB.
    every = jax.lax.map(votes, tiles(jnp.arange(classes), _CLASS_TILE))
    return jnp.moveaxis(every, 0, 1).reshape(len(similarity), -1)[:, :classes]


@functools.partial(jax.jit, static_argnames=('ks', 'classes', 'temperature'))
def _ranks(similarity, neighbour, target, *, ks, classes, temperature):
    def score(k):
        def one(similarity, neighbour, target):
            votes = vote(similarity, neighbour, classes=classes, temperature=temperature)
            return rank(votes, target)

        # A cosine of -inf has no weight.
        nearer = jnp.where(jnp.arange(max(ks)) < k, similarity, -jnp.inf)
        return by_tiles(one, _QUERY_TILE, nearer, neighbour, target)

    return jax.lax.map(score, jnp.array(ks))


def knn(
    bank: Features,
    query: Features,
    *,
    ks: Sequence[int] = (200,),
    temperature: float = 0.07,
    moments: Moments | None = None,
) -> dict[int, Accuracy]:
    """Weighted kNN accuracy, for several k at the cost of the largest.

    Args:
        bank: features with labels whose classes vote.
        query: features with labels that are scored.
        ks: numbers of neighbours, each at most the size of the bank.
        temperature: of the weights exp(cosine / temperature), > 0.
        moments: statistics that features are standardised by; None: taken as they are.

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
    similarity, position = nearest(query.features, bank.features, k=max(ks), moments=moments)
    ranks = _ranks(
        similarity,
        jnp.asarray(labels)[position],
        targets,
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
    moments: Moments | None = None,
) -> tuple[int, dict[int, Accuracy]]:
    """The k with the best top-1 on validation; of equals the smallest.

    Candidates larger than the bank are left out.

    Returns:
        `(k, accuracy by k)`.

    Raises:
        ValueError: no candidate fits the bank, or as in `knn`.
    """
    fitting = tuple(sorted({k for k in candidates if k <= len(bank)}))
    ks = fitting or tuple(candidates)
    accuracy = knn(bank, validation, ks=ks, temperature=temperature, moments=moments)
    best = int(np.argmax([accuracy[k].top1 for k in fitting]))
    return fitting[best], accuracy
