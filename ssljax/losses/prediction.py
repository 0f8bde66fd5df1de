"""Predictive coding: the future of a sequence, told from all other moments of the batch."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssljax.losses.arguments import at_least_float32, check_tile
from ssljax.losses.tiling import log_sum_exp, log_sum_exp_of_groups


def log_bilinear(
    context: Float[Array, 'n t c'],
    targets: Float[Array, 'n t d'],
    weights: Float[Array, 'k d c'],
    *,
    first_step: int = 1,
    group: int | None = None,
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
        group: sequences whose targets are candidates for each other, the first `group` of them, the
            next, and so on, a divisor of n: the mean of the groups' losses, at group / n of the
            work. None: all are candidates for all, as above. Devices share the groups' rows evenly.
        tile: rows of the matrix of scores, [sum_k n (t - k), n t] or, with groups, [.., group t],
            to hold at a time (at least one of each group): the same loss and gradient to rounding,
            computed once more in the backward pass. None holds the matrix. With groups it pays
            where they are large, group t > 3 d, and is of no effect where they are not: there the
            matrix takes no more memory than tiles would. On a sharded batch trace under
            `jax.set_mesh`: each device then holds its share of the rows.

    Returns:
        The loss, a non-negative scalar of at least float32; k ln(n t) where all scores are equal,
        or k ln(group t).

    Raises:
        ValueError: if there are no weights, the last step reaches beyond the sequence, group does
            not divide n, or first_step, group or tile are not positive.

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
    check_tile(tile)
    group = n if group is None else group
    if group < 1 or n % group:
        raise ValueError(
            f'groups of {group} sequences cannot be made of {n}; use a divisor of {n}, or None for '
            'one group of all'
        )
    c, z, w = at_least_float32(context, targets, weights)
    # The steps side by side along the positions, which no device shares with another: the batch's
    # targets are then gathered once for all steps.
    along = lambda parts: jnp.concatenate(list(parts), axis=1)
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    predicted = along(einsum('dc,ntc->ntd', w[i], c[:, :-k]) for i, k in enumerate(steps))
    scores = jnp.sum(predicted * along(z[:, k:] for k in steps), axis=2)
    # The own target is left out of the sum, so that in log(1 + sum / own) nothing cancels once
    # targets are told apart well.
    place = jnp.arange(group * t).reshape(group, t)
    apart = (along(place[:, k:] for k in steps).reshape(-1), place.reshape(-1))
    rows, columns = (a.reshape(n // group, -1, z.shape[2]) for a in (predicted, z))
    if group == n:
        others = log_sum_exp(rows[0], columns[0], apart, tile)
    else:
        others = log_sum_exp_of_groups(rows, columns, apart, tile)
    others = others.reshape(scores.shape)
    weight = along(jnp.full((1, t - k), 1 / (n * (t - k)), z.dtype) for k in steps)
    return jnp.sum(weight * jax.nn.softplus(others - scores))
