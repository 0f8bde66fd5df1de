"""Has the representation collapsed? Spread, rank, alignment and uniformity of features."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssljax.evaluate.accuracy import tiles
from ssljax.evaluate.knn import unit

_TILE = 1024


@jax.jit
def feature_std(features: Float[Array, 'n d']) -> Float[Array, '']:
    """Standard deviation of the l2-normalised features, mean over dimensions.

    1/sqrt(d) where directions are spread evenly over the sphere, 0 where all features are the same.

    Reference:
        Chen, He 2020, "Exploring Simple Siamese Representation Learning", arXiv:2011.10566,
        section 4.1.
    """
    return jnp.mean(jnp.std(unit(features), axis=0))


@jax.jit
def effective_rank(features: Float[Array, 'n d']) -> Float[Array, '']:
    """exp of the entropy of the normalised singular values, between 1 and min(n, d).

    The features are taken as they are, neither centred nor normalised. RankMe's small constant
    inside the logarithm is left out: 0 log 0 is 0. Features that are all zero have rank 1.

    Reference:
        Roy, Vetterli 2007, "The effective rank"; Garrido et al. 2022, "RankMe",
        arXiv:2210.02885.
    """
    # Not by the eigenvalues of the Gram matrix: squaring in float32 lifts every vanishing singular
    # value to 3e-4 of the largest, which hundreds of dimensions add up to a false rank.
    values = jnp.linalg.svd(features, compute_uv=False)
    share = values / jnp.maximum(jnp.sum(values), jnp.finfo(values.dtype).tiny)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


@functools.partial(jax.jit, static_argnames='alpha')
def alignment(
    a: Float[Array, 'n d'], b: Float[Array, 'n d'], *, alpha: float = 2.0
) -> Float[Array, '']:
    """Mean distance to the power `alpha` between the unit features of two views of an image.

    0 where the views agree; 2 (alpha 2) where they are unrelated and spread evenly.

    Args:
        a: features of the first views.
        b: features of the second views of the same examples.
        alpha: exponent, > 0; the paper's value is 2.

    Reference:
        Wang, Isola 2020, arXiv:2005.10242, section 4.1.1.
    """
    return jnp.mean(jnp.linalg.norm(unit(a) - unit(b), axis=1) ** alpha)


@functools.partial(jax.jit, static_argnames=('t', 'tile'))
def uniformity(
    features: Float[Array, 'n d'], *, t: float = 2.0, tile: int = _TILE
) -> Float[Array, '']:
    """log of the mean of exp(-t |x - y|^2) over all pairs of different examples, unit features.

    0 where all features are the same, lower where they are spread.

    Args:
        features: at least two examples.
        t: scale, > 0; the paper's value is 2.
        tile: rows compared with all others at a time, which bounds memory.

    Reference:
        Wang, Isola 2020, arXiv:2005.10242, section 4.1.2.
    """
    x = unit(features)
    n = x.shape[0]
    squares = jnp.sum(x**2, 1)
    rows = tiles(x, min(tile, n))
    positions = tiles(jnp.arange(n), min(tile, n))
    real = tiles(jnp.ones(n, bool), min(tile, n))

    def one(item):
        block, position, real = item
        # A feature of zeros has no direction and stays zero: its square is not 1.
        product = jnp.matmul(block, x.T, precision='highest')
        distance = jnp.sum(block**2, 1)[:, None] + squares - 2 * product
        pairs = real[:, None] & (position[:, None] != jnp.arange(n))
        return jnp.sum(jnp.where(pairs, jnp.exp(-t * distance), 0))

    return jnp.log(jnp.sum(jax.lax.map(one, (rows, positions, real))) / (n * (n - 1)))


def alarms(measures: Mapping[str, float], dimensions: int) -> tuple[str, ...]:
    """What in the measures points at a collapsed representation, in words; empty if nothing.

    The thresholds are for the outputs a loss acts on. Features of a random ReLU network are all
    alike as well (a common positive mean), so an alarm before training means nothing.

    Args:
        measures: any of `feature_std` and `effective_rank`.
        dimensions: width d of the features.

    Returns:
        A sentence per alarm: spread below 0.2/sqrt(d), effective rank below 5 (below d/2 where
        that is less), or a measure that is not a number.
    """
    limits = {'feature_std': 0.2 / dimensions**0.5, 'effective_rank': min(5.0, dimensions / 2)}
    return tuple(
        f'{name} {measures[name]:.4g} is below {limit:.4g}: the representation has collapsed or '
        f'is about to (d = {dimensions})'
        for name, limit in limits.items()
        if name in measures and not measures[name] >= limit
    )
