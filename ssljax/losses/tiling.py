"""Log-sum-exps over the rows of a similarity matrix that is never held whole.

Both functions return `log sum_k exp(x_i . y_k)` for every row i and take `tile`: None computes the
matrix at once, an integer in blocks of at most so many rows, forward and backward. What is kept for
the backward pass is the inputs and one number a row; the softmax is computed again from them.

On a sharded batch, trace under `jax.set_mesh(mesh)`: the columns are then gathered once and every
device keeps to its own rows. Without a mesh in sight values are the same, but XLA may communicate
inside the loop over blocks.
"""

import functools
from collections.abc import Callable

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


def log_sum_exp(
    x: Float[Array, 'n d'], y: Float[Array, 'm d'], own: int, tile: int | None
) -> Float[Array, 'n']:
    """The rows' `log sum_k exp(x_i . y_k)`.

    Args:
        x: one vector per row.
        y: one vector per column, of the same dtype.
        own: row i leaves out the columns k with `k // own == i // own`; 0 leaves out nothing.
        tile: rows of the n x m matrix to hold at a time, at least 1; None for all.

    Returns:
        One number per row of `x`; about -1e30 where all was left out.
    """
    if tile is not None:
        return _tiled(x, y, own, tile)
    return _of_rows((x, _first_left_out(x, own)), y, own)


def log_sum_exp_self(x: Float[Array, 'n d'], own: int, tile: int | None) -> Float[Array, 'n']:
    """`log_sum_exp(x, x, own, tile)`, at three fifths of its work with tiles.

    Args:
        x: one vector per row, and per column.
        own: row i leaves out the columns k with `k // own == i // own`.
        tile: rows of the n x n matrix to hold at a time, at least 1; None for all.

    Returns:
        One number per row of `x`; about -1e30 where all was left out.
    """
    return log_sum_exp(x, x, own, None) if tile is None else _tiled_self(x, own, tile)


def _first_left_out(x: Float[Array, 'n d'], own: int) -> Int[Array, 'n']:
    """For each row the first of the `own` columns it leaves out."""
    return jnp.arange(len(x)) // max(own, 1) * own


def _logits(block, columns, own):
    """Products of a block of rows with all columns, at `LEFT_OUT` where the row leaves it out."""
    rows, first = block
    logits = matmul(rows, columns.T)
    if not own:
        return logits
    # What a row leaves out is known to the row alone: nothing about columns has to be gathered.
    offset = jnp.arange(len(columns)) - first[:, None]
    # Added, not chosen: the gradient of a sum needs no copy of the mask.
    return logits + jnp.where((offset >= 0) & (offset < own), LEFT_OUT, 0)


def _of_rows(block, columns, own):
    return jax.nn.logsumexp(_logits(block, columns, own), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _tiled(x, y, own, tile):
    return _tiled_forward(x, y, own, tile)[0]


def _tiled_forward(x, y, own, tile):
    columns = _everywhere(y)
    rows = (x, _first_left_out(x, own))
    out = by_rows(functools.partial(_of_rows, own=own), rows, columns, tile)
    return out, (x, y, columns, out)


def _tiled_backward(own, tile, saved, g):
    """From the softmax P_ik = exp(S_ik - out_i).

    dx_i = g_i sum_k P_ik y_k and dy_k = sum_i g_i P_ik x_i.
    """
    x, y, columns, out = saved

    def to_x(block, columns):
        rows, out, g = block
        softmax = jnp.exp(_logits(rows, columns, own) - out[:, None])
        return matmul(g[:, None] * softmax, columns)

    def to_y(block, every):
        x, out, g = every
        return matmul(g * jnp.exp(_logits(block, x, own) - out), x)

    # The gradient to y goes by rows of the transposed matrix, as many as fill the same memory: no
    # sum to carry (and to reduce across devices) from block to block, and where nobody asks for it,
    # as with MoCo's queue, the whole loop is dead code.
    transposed = max(1, tile * len(y) // len(x))
    dx = by_rows(to_x, ((x, _first_left_out(x, own)), out, g), columns, tile)
    dy = by_rows(to_y, (y, _first_left_out(y, own)), _everywhere((x, out, g)), transposed)
    return dx, dy


_tiled.defvjp(_tiled_forward, _tiled_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _tiled_self(x, own, tile):
    return _tiled_self_forward(x, own, tile)[0]


def _tiled_self_forward(x, own, tile):
    columns = _everywhere(x)
    rows = (x, _first_left_out(x, own))
    out = by_rows(functools.partial(_of_rows, own=own), rows, columns, tile)
    return out, (x, columns, out)


def _tiled_self_backward(own, tile, saved, g):
    """Row i of a symmetric matrix has all that x_i does, as a row and as a column.

    With softmax P_ik = exp(S_ik - out_i): dx_i = sum_k (g_i P_ik + g_k P_ki) x_k, and S_ki = S_ik.
    """
    x, columns, out = saved

    def to_x(block, every):
        rows, row_out, row_g = block
        x, out, g = every
        logits = _logits(rows, x, own)
        as_row = row_g[:, None] * jnp.exp(logits - row_out[:, None])
        as_column = g * jnp.exp(logits - out)
        return matmul(as_row + as_column, x)

    every = (columns, *_everywhere((out, g)))
    return (by_rows(to_x, ((x, _first_left_out(x, own)), out, g), every, tile),)


_tiled_self.defvjp(_tiled_self_forward, _tiled_self_backward)


def by_rows(function: Callable, rows, every, tile: int) -> Array:
    """`function(block of rows, every)` for one block of at most `tile` rows after the other.

    Block j holds the rows j, j + blocks, j + 2 blocks, ...: each device of a sharded batch finds
    rows of its own in every block, so no row moves. A number of blocks that divides the rows is
    taken if there is one below twice the least number; else the last row is repeated to fill up.
    `every` is what all rows need whole.
    """
    n = len(jax.tree.leaves(rows)[0])
    least = -(-n // tile)
    blocks = next((count for count in range(least, 2 * least) if n % count == 0), least)
    size = -(-n // blocks)

    def split(a):
        filled = jnp.pad(a, [(0, size * blocks - n)] + [(0, 0)] * (a.ndim - 1), mode='edge')
        return filled.reshape(size, blocks, *a.shape[1:]).swapaxes(0, 1)

    # Said again inside the loop: XLA was seen to split the columns there and to move the rows.
    out = jax.lax.map(lambda block: function(block, _everywhere(every)), jax.tree.map(split, rows))
    return out.swapaxes(0, 1).reshape(size * blocks, *out.shape[2:])[:n]


def _everywhere(tree):
    """Asks for a copy of every array on every device; the identity where no mesh is in sight."""
    if AxisType.Auto not in jax.sharding.get_abstract_mesh().axis_types:
        return tree

    def replicated(x):
        # XLA moves a lone constraint up to what computed `x`, which would then run in full on
        # every device (seen: the whole forward pass); the free one in between stops it there.
        free = jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * x.ndim))
        return jax.lax.with_sharding_constraint(free, P())

    return jax.tree.map(replicated, tree)
