"""Instance discrimination: which row of a memory bank is this example's?

Every example is a class of its own, whose weight vector is its row of the bank: P(i|v) is
exp(M_i . v / temperature) / Z, the sum Z running over all rows. `instance_softmax` computes it; as
there are as many classes as examples, `nce` and `sampled_softmax` estimate it from a few rows drawn
at random, of which `similarities` gives M . v / temperature. Where the whole bank is less to go
through than the rows drawn for a batch, `similarities_to_all` and `counts`, how often each row was
drawn, come to the same. Computed in at least float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssljax.losses.arguments import at_least_float32, check
from ssljax.losses.contrastive import unit
from ssljax.losses.tiling import by_rows, log_sum_exp, matmul


def instance_softmax(
    v: Float[Array, 'n d'],
    bank: Float[Array, 'm d'],
    index: Int[Array, 'n'],
    *,
    temperature: float | Float[Array, ''],
    tile: int | None = None,
) -> Float[Array, '']:
    """The non-parametric softmax over the whole bank: the mean of -log P(index_i | v_i).

    Args:
        v: one vector per example, of any length; a zero vector has similarity 0 to all rows.
        bank: a row for each example of the data set, taken as it lies (unit vectors).
        index: each example's own row, in [0, m).
        temperature: positive; the paper has 0.07.
        tile: rows of the n x m matrix of similarities to hold at a time: the same loss and gradient
            to rounding, computed once more in the backward pass. None holds the matrix.

    Returns:
        The loss, a scalar of at least float32; ln m where all rows are alike.

    Raises:
        ValueError: if temperature or tile are not positive.

    Reference:
        Wu, Xiong, Yu, Lin (2018), arXiv:1805.01978, equations 2 and 3.
    """
    check(temperature, tile)
    v, bank = at_least_float32(v, bank)
    x = unit(v) / temperature
    positive = jnp.sum(x * bank[index], axis=1)
    return jnp.mean(log_sum_exp(x, bank, None, tile) - positive)


def similarities(
    v: Float[Array, 'n d'],
    bank: Float[Array, 'm d'],
    rows: Int[Array, 'n k'],
    *,
    temperature: float | Float[Array, ''],
    tile: int | None = None,
) -> Float[Array, 'n k']:
    """s_ij = bank[rows_ij] . v_i / (|v_i| temperature), for rows of each example's own choice.

    Args:
        v: one vector per example, of any length.
        bank: taken as it lies (unit vectors).
        rows: in [0, m).
        temperature: positive.
        tile: examples whose rows are held at a time, k x d numbers each, forward and backward. None
            holds those of all.

    Returns:
        The similarities, in at least float32.

    Raises:
        ValueError: if temperature or tile are not positive.
    """
    check(temperature, tile)
    v, bank = at_least_float32(v, bank)

    def of_examples(block, bank):
        x, rows = block
        return jnp.einsum('nd,nkd->nk', x, bank[rows], precision=jax.lax.Precision.HIGHEST)

    block = (unit(v) / temperature, rows)
    if tile is None:
        return of_examples(block, bank)
    # Without the checkpoint the rows of every block would wait for the backward pass.
    return by_rows(jax.checkpoint(of_examples), block, bank, tile)


def similarities_to_all(
    v: Float[Array, 'n d'], bank: Float[Array, 'm d'], *, temperature: float | Float[Array, '']
) -> Float[Array, 'n m']:
    """s_ij = bank_j . v_i / (|v_i| temperature), arguments and errors as of `similarities`."""
    check(temperature, None)
    v, bank = at_least_float32(v, bank)
    return matmul(unit(v) / temperature, bank.T)


def counts(rows: Int[Array, 'n k'], m: int) -> Float[Array, 'n m']:
    """How often each of m rows is among those of each example.

    For `times` of the losses: a sum over all rows, weighted by it, is the sum over the rows drawn.
    Unlike a choice of similarities its gradient adds up nothing by index, which accelerators do in
    any order; the counts are whole numbers, to which the order does not matter.
    """
    count = lambda rows: jnp.zeros(m, jnp.int32).at[rows].add(1)
    return jax.vmap(count)(rows).astype(jnp.float32)


def log_partition(
    positive: Float[Array, 'n'],
    noise: Float[Array, 'n k'],
    rows: int,
    times: Float[Array, 'n k'] | None = None,
) -> Float[Array, '']:
    """The logarithm of Z, estimated as rows x the mean of exp(s) over all that is given.

    Args:
        positive: similarity of each example to its own row.
        noise: similarities to rows drawn uniformly from the bank.
        rows: of the bank.
        times: how often each of `noise` was drawn, see `counts`; None: once.

    Reference:
        Wu, Xiong, Yu, Lin (2018), arXiv:1805.01978, equation 7; the authors' code averages over
        positives and noise of the first batch, and keeps the constant from there on.
    """
    times = jnp.ones_like(noise) if times is None else times
    every = jnp.concatenate([positive[:, None], noise], axis=1)
    weight = jnp.concatenate([jnp.ones_like(positive)[:, None], times.astype(noise.dtype)], axis=1)
    return jax.nn.logsumexp(every, b=weight) + jnp.log(rows) - jnp.log(jnp.sum(weight))


def nce(
    positive: Float[Array, 'n'],
    noise: Float[Array, 'n k'],
    log_z: Float[Array, ''] | float,
    *,
    rows: int,
    times: Float[Array, 'n k'] | None = None,
) -> Float[Array, '']:
    """Noise-contrastive estimation: is this row the example's own, or one of k noise rows?

    With P = exp(s) / Z and noise drawn uniformly, P_n = 1 / rows, the chance of being the example's
    own is h = P / (P + k P_n), k being the sum of `times` where these are given, and the mean over
    the examples is taken of

        -log h(positive) - sum_k log(1 - h(noise_k)).

    Args:
        positive: similarity s of each example to its own row, divided by the temperature.
        noise: likewise, to k rows drawn uniformly, with replacement, from all rows.
        log_z: the logarithm of Z, a constant, see `log_partition`.
        rows: of the bank, as many as there are examples.
        times: how often each of `noise` was drawn, see `counts`; None: once.

    Returns:
        The loss; ln(k + 1) + k ln(1 + 1 / k) where every P is 1 / rows.

    Reference:
        Wu, Xiong, Yu, Lin (2018), arXiv:1805.01978, equations 4 to 6; Gutmann, Hyvarinen (2010).
    """
    # log P - log(k P_n) is the logit of h: nothing is divided, so no epsilon is needed.
    times = jnp.ones_like(noise) if times is None else times.astype(noise.dtype)
    bias = log_z + jnp.log(jnp.sum(times, axis=1) / rows)
    own = jax.nn.softplus(bias - positive)
    others = jnp.sum(times * jax.nn.softplus(noise - bias[:, None]), axis=1)
    return jnp.mean(own + others)


def sampled_softmax(
    positive: Float[Array, 'n'],
    noise: Float[Array, 'n k'],
    times: Float[Array, 'n k'] | None = None,
) -> Float[Array, '']:
    """Cross-entropy of each example's own row among itself and k noise rows.

    With all other rows of the bank for noise it is the full softmax.

    Args:
        positive: similarity of each example to its own row, divided by the temperature.
        noise: likewise, to k rows drawn from all rows.
        times: how often each of `noise` was drawn, see `counts`; None: once.

    Returns:
        The loss, a non-negative scalar; ln(k + 1) where all similarities are equal, k being the sum
        of `times` where these are given.
    """
    times = None if times is None else times.astype(noise.dtype)
    return jnp.mean(jax.nn.softplus(jax.nn.logsumexp(noise, axis=1, b=times) - positive))
