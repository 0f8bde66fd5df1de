"""Sums over the rows of a matrix of logits that is never held whole.

The logits are s_ik = x_i . y_k + bias. `log_sum_exp` and `sum_softplus` return one sum a row and
take `tile`: None computes the matrix at once, an integer in blocks of at most so many rows, forward
and backward. What is kept for the backward pass is the inputs and one number a row; the logits are
computed again from them.

On a sharded batch, trace under `jax.set_mesh(mesh)`: the columns are then gathered once, every
device keeps to its own rows and holds its share of a block, tile / devices rows and at least one.
Without a mesh in sight values are the same, but XLA may communicate inside the loop over blocks.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

# Logits are similarities over a temperature: the default precision of TPUs (bfloat16 products) and
# of recent GPUs (tf32) would shift them by up to 0.04 at a temperature of 0.1.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# The logit of what is left out. Finite, so that a row with nothing in it has a finite gradient.
LEFT_OUT = -1e30

Apart = tuple[Int[Array, 'n'], Int[Array, 'm']] | None
"""A number for every row and for every column: a row leaves out the columns of its own number. None
leaves out nothing."""


class Sum(NamedTuple):
    """What is summed over a row, and its derivative to every logit, given the logits and the sum.

    The derivative takes the sum as it broadcasts against the logits.
    """

    over: Callable
    slope: Callable


LOG_SUM_EXP = Sum(
    over=lambda logits: jax.nn.logsumexp(logits, axis=1),
    slope=lambda logits, total: jnp.exp(logits - total),
)
SUM_SOFTPLUS = Sum(
    over=lambda logits: jnp.sum(jax.nn.softplus(logits), axis=1),
    slope=lambda logits, total: jax.nn.sigmoid(logits),
)


def log_sum_exp(
    x: Float[Array, 'n d'], y: Float[Array, 'm d'], apart: Apart, tile: int | None
) -> Float[Array, 'n']:
    """The rows' `log sum_k exp(x_i . y_k)`.

    Args:
        x: one vector per row.
        y: one vector per column, of the same dtype.
        apart: what each row leaves out.
        tile: rows of the n x m matrix to hold at a time, at least 1; None for all.

    Returns:
        One number per row of `x`; about -1e30 where all was left out.
    """
    return _sum(LOG_SUM_EXP, x, y, jnp.zeros((), x.dtype), apart, tile)


def sum_softplus(
    x: Float[Array, 'n d'],
    y: Float[Array, 'm d'],
    bias: Float[Array, ''],
    apart: Apart,
    tile: int | None,
) -> Float[Array, 'n']:
    """The rows' `sum_k log(1 + exp(x_i . y_k + bias))`.

    Args:
        x: one vector per row.
        y: one vector per column, of the same dtype.
        bias: of all logits, of the same dtype.
        apart: what each row leaves out.
        tile: rows of the n x m matrix to hold at a time, at least 1; None for all.

    Returns:
        One number per row of `x`; 0 where all was left out.
    """
    return _sum(SUM_SOFTPLUS, x, y, bias, apart, tile)


def log_sum_exp_self(
    x: Float[Array, 'n d'], number: Int[Array, 'n'], tile: int | None
) -> Float[Array, 'n']:
    """`log_sum_exp(x, x, (number, number), tile)`, at three fifths of its work with tiles.

    Args:
        x: one vector per row, and per column.
        number: row i leaves out the columns of the same number, itself among them.
        tile: rows of the n x n matrix to hold at a time, at least 1; None for all.

    Returns:
        One number per row of `x`; about -1e30 where all was left out.
    """
    if tile is None:
        return log_sum_exp(x, x, (number, number), None)
    return _tiled_self(x, _computed_everywhere(number), tile)


def log_sum_exp_of_groups(
    x: Float[Array, 'g n d'],
    y: Float[Array, 'g m d'],
    apart: tuple[Int[Array, 'n'], Int[Array, 'm']],
    tile: int | None,
) -> Float[Array, 'g n']:
    """`log_sum_exp` of every group for itself: an equal share of the rows on every device.

    Rows stay where they are, as long as the devices share all groups' rows in their order. A group
    that several devices hold rows of has its columns copied to each of them, once.

    Args:
        x: the rows of each group.
        y: the columns of each group, of the same dtype.
        apart: what each row leaves out, the same in all groups.
        tile: rows of all groups' matrices to hold at a time, at least one of each group; None for
            all. Of no effect up to m = 3 d, where the matrix is no larger than the copies that
            tiles need of what goes in (they were seen to need the same at m = 2.2 d to 3.8 d), and
            takes 3 products to their 5.

    Returns:
        One number per row of `x`; about -1e30 where all was left out.
    """
    g, n, d = x.shape
    axes, devices = _devices()
    # The fewest equal parts of a group of which all devices get as many.
    parts = devices // math.gcd(devices, g)
    if n % parts:
        parts, axes = 1, ()
    if tile is not None:
        tile = None if y.shape[1] <= 3 * d else max(1, tile // (g * parts))

    def of_parts(x, y, of_x, of_y):
        part = lambda x, y, of_x: log_sum_exp(x, y, (of_x, of_y), tile)
        return jax.vmap(part)(x, y, of_x)

    if axes:
        # By hand: with groups that devices cannot share evenly XLA was seen to compute all of them
        # on several devices, or to move rows in every pass of the loop over tiles.
        split = P(axes)
        of_parts = jax.shard_map(
            of_parts,
            in_specs=(split, split, split, P()),
            out_specs=split,
            axis_names=set(axes),
            check_vma=False,
        )
    of_x, of_y = apart
    x = x.reshape(g * parts, n // parts, d)
    of_x = jnp.tile(of_x.reshape(parts, -1), (g, 1))
    return of_parts(x, jnp.repeat(y, parts, axis=0), of_x, of_y).reshape(g, n)


def _sum(kind, x, y, bias, apart, tile):
    apart = _computed_everywhere(apart)
    if tile is not None:
        return _tiled(x, y, bias, apart, kind, tile)
    return kind.over(_logits(x, y, bias, apart))


def _logits(x, y, bias, apart):
    """Products of all x with all y, at `LEFT_OUT` where their numbers are the same."""
    logits = matmul(x, y.T) + bias
    if apart is None:
        return logits
    of_x, of_y = apart
    # Added, not chosen: the gradient of a sum needs no copy of the mask.
    return logits + jnp.where(of_x[:, None] == of_y, LEFT_OUT, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _tiled(x, y, bias, apart, kind, tile):
    return _tiled_forward(x, y, bias, apart, kind, tile)[0]


def _tiled_forward(x, y, bias, apart, kind, tile):
    def over(block, every):
        x, of_x = block
        y, bias, of_y = every
        return kind.over(_logits(x, y, bias, _pair(of_x, of_y)))

    of_x, of_y = apart or (None, None)
    columns = _everywhere(y)
    total = by_rows(over, (x, of_x), (columns, bias, of_y), tile)
    return total, (x, y, columns, bias, apart, total)


def _tiled_backward(kind, tile, saved, g):
    """From the slopes w_ik = g_i d total_i / d s_ik.

    dx_i = sum_k w_ik y_k, dy_k = sum_i w_ik x_i, and the bias gets the sum of all.
    """
    x, y, columns, bias, apart, total = saved
    of_x, of_y = apart or (None, None)

    def to_x(block, every):
        x, of_x, total, g = block
        y, bias, of_y = every
        logits = _logits(x, y, bias, _pair(of_x, of_y))
        slopes = g[:, None] * kind.slope(logits, total[:, None])
        return matmul(slopes, y), jnp.sum(slopes, axis=1)

    def to_y(block, every):
        y, of_y = block
        x, total, g, bias, of_x = every
        logits = _logits(y, x, bias, _pair(of_y, of_x))
        return matmul(g * kind.slope(logits, total), x)

    # The gradient to y goes by rows of the transposed matrix, as many as fill the same memory: no
    # sum to carry (and to reduce across devices) from block to block, and where nobody asks for it,
    # as with MoCo's queue, the whole loop is dead code.
    transposed = max(1, tile * len(y) // len(x))
    dx, to_bias = by_rows(to_x, (x, of_x, total, g), (columns, bias, of_y), tile)
    dy = by_rows(to_y, (y, of_y), (*_everywhere((x, total, g)), bias, of_x), transposed)
    return dx, dy, jnp.sum(to_bias), None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _pair(of_x, of_y):
    return None if of_x is None else (of_x, of_y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiled_self(x, number, tile):
    return _tiled_self_forward(x, number, tile)[0]


def _tiled_self_forward(x, number, tile):
    apart = (number, number)
    total, saved = _tiled_forward(x, x, jnp.zeros((), x.dtype), apart, LOG_SUM_EXP, tile)
    return total, (x, saved[2], number, total)


def _tiled_self_backward(tile, saved, g):
    """Row i of a symmetric matrix has all that x_i does, as a row and as a column.

    With softmax P_ik = exp(s_ik - total_i): dx_i = sum_k (g_i P_ik + g_k P_ki) x_k, s_ki = s_ik.
    """
    x, columns, number, total = saved

    def to_x(block, every):
        x, number, row_total, row_g = block
        y, numbers, total, g = every
        logits = _logits(x, y, 0, (number, numbers))
        as_row = row_g[:, None] * jnp.exp(logits - row_total[:, None])
        as_column = g * jnp.exp(logits - total)
        return matmul(as_row + as_column, y)

    every = (columns, number, *_everywhere((total, g)))
    return by_rows(to_x, (x, number, total, g), every, tile), None


_tiled_self.defvjp(_tiled_self_forward, _tiled_self_backward)


def by_rows(function: Callable, rows, every, tile: int):
    """`function(block of rows, every)` for one block of at most `tile` rows after the other.

    Every device of the mesh in sight goes through rows of its own, tile / devices of them (at least
    one) in each block, so that no row moves; the last of a device's rows is repeated to fill its
    last block. `every` is what all rows need whole.
    """
    n = len(jax.tree.leaves(rows)[0])
    axes, devices = _devices()
    if n % devices:
        axes, devices = (), 1
    own = n // devices
    blocks = -(-own // max(1, tile // devices))
    size = -(-own // blocks)

    def split(a):
        a = a.reshape(devices, own, *a.shape[1:])
        padding = [(0, 0), (0, size * blocks - own)] + [(0, 0)] * (a.ndim - 2)
        a = jnp.pad(a, padding, mode='edge')
        a = a.reshape(devices, blocks, size, *a.shape[2:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(a, P(None, axes)) if axes else a

    def join(a):
        a = a.swapaxes(0, 1).reshape(devices, blocks * size, *a.shape[3:])
        return a[:, :own].reshape(n, *a.shape[2:])

    def of_block(block):
        block = jax.tree.map(lambda a: a.reshape(devices * size, *a.shape[2:]), block)
        # Said again inside the loop: XLA was seen to split the columns there and to move the rows.
        out = function(block, _everywhere(every))
        return jax.tree.map(lambda a: a.reshape(devices, size, *a.shape[1:]), out)

    return jax.tree.map(join, jax.lax.map(of_block, jax.tree.map(split, rows)))


def _devices() -> tuple[tuple[str, ...], int]:
    """The axes that the partitioner splits arrays over, and the number of their devices."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in mesh.axis_names if name in _automatic(mesh))
    return axes, math.prod(mesh.shape[name] for name in axes)


def _automatic(mesh) -> set[str]:
    """The axes of a mesh that the partitioner splits arrays over."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind == AxisType.Auto}


def _computed_everywhere(numbers):
    """Numbers of rows and columns follow from shapes: computing them whole beats gathering them."""
    if not _automatic(jax.sharding.get_abstract_mesh()):
        return numbers
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, P()), numbers)


def _everywhere(tree):
    """Asks for a copy of every array on every device; the identity where no mesh is in sight."""
    if not _automatic(jax.sharding.get_abstract_mesh()):
        return tree

    def replicated(x):
        # XLA moves a lone constraint up to what computed `x`, which would then run in full on
        # every device (seen: the whole forward pass); the free one in between stops it there.
        free = jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * x.ndim))
        return jax.lax.with_sharding_constraint(free, P())

    return jax.tree.map(replicated, tree)
