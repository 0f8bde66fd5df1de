"""Predictive coding: the future of a sequence, told from all other moments of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssljax.losses.tiling import log_sum_exp


def log_bilinear(
    context: Float[Array, 'n t c'],
    targets: Float[Array, 'n t d'],
    weights: Float[Array, 'k d c'],
    *,
    first_step: int = 1,
    tile: int | None = None,
) -> Float[Array, '']:
    """CPC's InfoNCE with f_k(z, c) = exp(z^T W_k c), summed over the steps k.

    For every sequence m, every position i and every step k = first_step, first_step + 1, ... (one
    for each of the weights) with i + k inside the sequence, the target k positions ahead is told
    from all targets of the batch, those of the same sequence and those of all others:

        -log( f_k(z_{m,i+k}, c_{m,i}) / sum_{m',i'} f_k(z_{m',i'}, c_{m,i}) ).

    The mean over m and i, then the sum over k.

    Args:
        context: of n sequences of t positions; c_i summarises what lies at i and before.
        targets: what is predicted, at every position.
        weights: one matrix per step.
        first_step: how far ahead the first of the weights predicts, at least 1.
        tile: rows of a step's matrix of scores, [n (t - k), n t], to hold at a time: the same loss
            and gradient to rounding, computed once more in the backward pass. None holds the
            matrix. On a sharded batch take a multiple of the devices and trace under
            `jax.set_mesh`.

    Returns:
        The loss, a non-negative scalar of at least float32; k ln(n t) where all scores are equal.

    Raises:
        ValueError: if there are no weights, the last step reaches beyond the sequence, or
            first_step or tile are not positive.

    Reference:
        van den Oord, Li, Vinyals (2018), arXiv:1807.03748, equations 3 and 4.
    """
    n, t, _ = context.shape
    steps = range(first_step, first_step + len(weights))
    if first_step < 1 or not steps or steps[-1] >= t:
        raise ValueError(
            f'{len(weights)} step(s) from first_step {first_step} on do not fit into sequences of '
            f'{t} positions; use at least one step, all of them from 1 to {t - 1}'
        )
    if tile is not None and tile < 1:
        raise ValueError(f'tile is {tile} rows, expected at least 1; None computes all at once')
    dtype = jnp.promote_types(jnp.result_type(context, targets, weights), jnp.float32)
    c, z, w = (a.astype(dtype) for a in (context, targets, weights))

    def of_step(k: int, w: Float[Array, 'd c']) -> Float[Array, '']:
        highest = jax.lax.Precision.HIGHEST
        predicted = jnp.einsum('dc,ntc->ntd', w, c[:, :-k], precision=highest)
        # Row for row the own target: left out of the sum, so that in log(1 + sum / own) nothing
        # cancels once targets are told apart well. The first k targets are nobody's own.
        own, rest = z[:, k:], z[:, :k]
        rows = predicted.reshape(-1, w.shape[0])
        others = jnp.logaddexp(
            log_sum_exp(rows, own.reshape(rows.shape), 1, tile),
            log_sum_exp(rows, rest.reshape(n * k, -1), 0, tile),
        )
        score = jnp.sum(predicted * own, axis=2).reshape(-1)
        return jnp.mean(jax.nn.softplus(others - score))

    return sum(of_step(k, w[i]) for i, k in enumerate(steps))
