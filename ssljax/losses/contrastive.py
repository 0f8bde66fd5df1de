"""Contrastive losses: a view's positive is told apart from the negatives by cosine similarity.

All are functions of the whole batch: under `jit` with a sharded batch the negatives are those of
every device. They normalise their inputs themselves, compute in at least float32, and let gradients
flow to every argument; where a method stops one (MoCo's keys), the method says so.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssljax.losses.arguments import at_least_float32, check, check_tile
from ssljax.losses.tiling import LEFT_OUT, log_sum_exp, log_sum_exp_self, sum_softplus


def nt_xent(
    z: Float[Array, 'n v d'], *, temperature: float | Float[Array, ''], tile: int | None = None
) -> Float[Array, '']:
    """SimCLR's normalised temperature-scaled cross entropy, the mean over all positive pairs.

    With u = z / |z| and s_ik = u_i . u_k / temperature over all n v views, a positive pair (two
    different views i, j of one example, in this order) costs

        l(i, j) = -log( exp(s_ij) / sum_{k != i} exp(s_ik) ).

    For v > 2 the mean runs over all n v (v - 1) ordered pairs, and every denominator still holds
    everything but i itself, the other positives of i included. SimCLR's published code returns
    twice this mean.

    Args:
        z: embeddings, n examples in v >= 2 views, vectors of any length; a zero vector has
            similarity 0 to everything and gets no gradient.
        temperature: positive; the paper has 0.1 on ImageNet, 0.5 on CIFAR-10.
        tile: rows of the [n v, n v] matrix of similarities to hold at a time: the same loss and
            gradient to rounding in memory O(n v tile), computed once more in the backward pass.
            None holds the matrix. On a sharded batch trace under `jax.set_mesh`: each device then
            holds its share of the rows.

    Returns:
        The loss, a non-negative scalar of at least float32.

    Raises:
        ValueError: if there are fewer than two views, or temperature or tile are not positive.

    Reference:
        Chen, Kornblith, Norouzi, Hinton (2020), arXiv:2002.05709, equation 1.
    """
    n, v, d = z.shape
    if v < 2:
        raise ValueError(
            f'z has {v} view(s) per example, shape {z.shape}; a positive pair needs two: '
            'pass embeddings as [n, v, d] with v >= 2'
        )
    check(temperature, tile)
    # Both factors of u_i . u_k carry a square root of the temperature.
    x = unit(at_least_float32(z)[0]) / jnp.sqrt(temperature)
    # The views of one example stay neighbours: this reshape moves no data between devices.
    example = jnp.arange(n * v) // v
    negatives = log_sum_exp_self(x.reshape(n * v, d), example, tile).reshape(n, v)
    s = jnp.einsum('nid,njd->nij', x, x, precision=jax.lax.Precision.HIGHEST)
    # l(i, j) = log(1 + sum_{k != i, j} exp(s_ik - s_ij)). So written, nothing cancels once pairs
    # are told apart well: the gradient to s_ij is not 1 minus a softmax close to 1.
    same = jnp.eye(v, dtype=bool)
    views = jnp.where(same[:, None, :] | same[None, :, :], LEFT_OUT, s[:, :, None, :])
    rest = jnp.logaddexp(negatives[:, :, None], jax.nn.logsumexp(views, axis=3))
    losses = jnp.where(same, 0, jax.nn.softplus(rest - s))
    return jnp.sum(losses) / (n * v * (v - 1))


def info_nce(
    query: Float[Array, 'n d'],
    key: Float[Array, 'n d'],
    negatives: Float[Array, 'm d'] | None = None,
    *,
    temperature: float | Float[Array, ''],
    tile: int | None = None,
) -> Float[Array, '']:
    """InfoNCE as MoCo has it: each query finds its key among the negatives, by cosine similarity.

    With s(q, k) = q . k / (|q| |k| temperature), the mean over the queries of

        -log( exp(s(q_i, k_i)) / (exp(s(q_i, k_i)) + sum_j exp(s(q_i, negative_j))) ).

    Args:
        query: one vector per example, of any length; here as in the other two a zero vector has
            similarity 0 to everything and gets no gradient.
        key: each query's positive, in the same order.
        negatives: shared by all queries (MoCo's queue), m >= 1; None: the other keys of the batch.
        temperature: positive; MoCo has 0.07 (v1) and 0.2 (v2).
        tile: rows of the matrix of similarities (one row per query) to hold at a time: the same
            loss and gradient to rounding, computed once more in the backward pass. None holds the
            matrix. On a sharded batch trace under `jax.set_mesh`: each device then holds its share
            of the rows.

    Returns:
        The loss, a non-negative scalar of at least float32.

    Raises:
        ValueError: if negatives are empty, or temperature or tile are not positive.

    Reference:
        He, Fan, Wu, Xie, Girshick (2019), arXiv:1911.05722, equation 1; van den Oord, Li, Vinyals
        (2018), arXiv:1807.03748, equation 4.
    """
    check(temperature, tile)
    if negatives is None:
        query, key = at_least_float32(query, key)
    elif len(negatives):
        query, key, negatives = at_least_float32(query, key, negatives)
    else:
        raise ValueError(
            'negatives has 0 rows, expected at least 1; pass None to tell each key '
            'from the other keys of the batch'
        )
    q, k = unit(query) / temperature, unit(key)
    if negatives is None:
        number = jnp.arange(len(q))
        rest = log_sum_exp(q, k, (number, number), tile)
    else:
        rest = log_sum_exp(q, unit(negatives), None, tile)
    # log(1 + sum_j exp(s_ij - s_i)), in which nothing cancels when the loss is small.
    return jnp.mean(jax.nn.softplus(rest - jnp.sum(q * k, axis=1)))


def sigmoid_pairs(
    a: Float[Array, 'n d'],
    b: Float[Array, 'n d'],
    *,
    log_temperature: float | Float[Array, ''],
    bias: float | Float[Array, ''],
    tile: int | None = None,
) -> Float[Array, '']:
    """SigLIP's sigmoid loss: each of the n x n pairs of a and b is told to match or not, by itself.

    With x = a / |a|, y = b / |b|, t = exp(log_temperature) and the logit z_ij = t x_i . y_j + bias,

        -(1/n) sum_i sum_j log sigmoid(s_ij z_ij),   s_ij = 1 where i = j, -1 elsewhere:

    a sum over the row, a mean over its examples.

    Args:
        a: one vector per example (the paper's images), of any length; a zero vector has similarity
            0 to everything and gets no gradient.
        b: each example's match (its text), in the same order.
        log_temperature: t' of the paper, trained, ln 10 at first: here a temperature multiplies.
        bias: trained, -10 at first, so that the n - 1 negatives of each positive cost little.
        tile: rows of the n x n matrix of logits to hold at a time: the same loss and gradient to
            rounding, computed once more in the backward pass. None holds the matrix. On a sharded
            batch trace under `jax.set_mesh`: each device then holds its share of the rows.

    Returns:
        The loss, a positive scalar of at least float32.

    Raises:
        ValueError: if tile is not positive.

    Reference:
        Zhai, Mustafa, Kolesnikov, Beyer (2023), arXiv:2303.15343, section 3.2; the bias has the
        sign of their algorithm 1.
    """
    check_tile(tile)
    a, b = at_least_float32(a, b)
    t = jnp.exp(jnp.asarray(log_temperature, a.dtype))
    bias = jnp.asarray(bias, a.dtype)
    x, y = t * unit(a), unit(b)
    number = jnp.arange(len(x))
    negatives = sum_softplus(x, y, bias, (number, number), tile)
    positives = jax.nn.softplus(-jnp.sum(x * y, axis=1) - bias)
    return jnp.mean(positives + negatives)


def unit(x: Float[Array, '*batch d']) -> Float[Array, '*batch d']:
    """The vectors of `x` (its last axis) divided by their lengths; zero vectors stay zero.

    No epsilon: the length may be any that the dtype can hold, 1e-30 or 1e30 in float32. The
    gradient to a zero vector is zero.

    Args:
        x: vectors along the last axis.

    Returns:
        Vectors of length 1 or 0, in the dtype of `x`.
    """
    # Squares of very short or long vectors leave the range of floats, so the largest entry goes
    # first. The result does not depend on that factor: it is a constant to the gradient.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    # Not `> 0`: a NaN stays one, for the loss to show.
    nonzero = largest != 0
    # A guard before the division and the root as well: the branch not taken must have a gradient.
    x = x / jnp.where(nonzero, largest, 1)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(nonzero, x / jnp.sqrt(jnp.where(nonzero, squares, 1)), 0)
