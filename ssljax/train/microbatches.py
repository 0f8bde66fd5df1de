"""Batches larger than memory: the networks see them in parts, the loss is that of the whole.

Gradient caching, for every method, none of which knows of it: `forward` runs on one micro-batch
after the other and keeps only outputs, `objective` once on all of them, so that a contrastive loss
keeps all its negatives; then each micro-batch runs forward again and backward from the gradient of
its outputs. Memory is that of one micro-batch plus the outputs, time that of one more forward pass.
Gao, Zhang, Han, Callan 2021, arXiv 2101.06983.

Plain accumulation, for methods whose loss is a mean over examples (`Method.mean_over_examples`):
the gradient is the mean of the micro-batches' own, and no forward pass runs twice.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Tree

Gradient = Callable[..., tuple[tuple[Array, tuple[Tree, dict[str, Array]]], Tree]]


def value_and_grad(method: Method, on_device: Callable[[Batch], Batch], parts: int) -> Gradient:
    """A function `(params, carried, batch, key, now) -> ((loss, (state, metrics)), gradient)`.

    With more than one part BatchNorm sees a micro-batch at a time, and every micro-batch starts
    from the same running statistics, whose new values are averaged. For networks without BatchNorm
    and dropout value and gradient are those of the whole batch. Loss, state and metrics are those
    that the method's objective makes of all outputs, in any case.

    Args:
        method: whose loss is wanted.
        on_device: the device half of the views; runs inside the micro-batch, in every pass.
        parts: micro-batches, a divisor of the batch; 1 is the plain gradient.
    """
    if parts == 1:
        return _whole(method, on_device)
    gradient_of = _accumulated if method.mean_over_examples else _cached

    def gradient(params: Tree, carried: Tree, batch: Batch, key: PRNGKeyArray, now: Now):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))

        def forward(params: Tree, piece: tuple[Batch, PRNGKeyArray]) -> tuple[Tree, Tree]:
            return method.forward(params, carried, on_device(piece[0]), piece[1])

        def objective(params: Tree, outputs: Tree, stats: Tree):
            return method.objective(params, outputs, {**carried, 'stats': stats}, now)

        return gradient_of(forward, objective, params, (split(batch, parts), keys))

    return gradient


def _cached(forward: Callable, objective: Callable, params: Tree, pieces: Tree):
    outputs, stats = jax.lax.map(lambda piece: forward(params, piece), pieces)
    floats, rest = _by_kind(merge(outputs))

    def of_outputs(params: Tree, floats: Tree):
        return objective(params, _together(floats, rest), _mean(stats))

    out, (direct, slopes) = jax.value_and_grad(of_outputs, argnums=(0, 1), has_aux=True)(
        params, floats
    )

    def accumulate(total: Tree, piece: tuple[tuple[Batch, PRNGKeyArray], Tree]):
        _, backward = jax.vjp(lambda params: _by_kind(forward(params, piece[0])[0])[0], params)
        return jax.tree.map(jnp.add, total, backward(piece[1])[0]), None

    parts = len(jax.tree.leaves(pieces)[0])
    total, _ = jax.lax.scan(accumulate, direct, (pieces, split(slopes, parts)))
    return out, total


def _accumulated(forward: Callable, objective: Callable, params: Tree, pieces: Tree):
    parts = len(jax.tree.leaves(pieces)[0])

    def share(params: Tree, piece: tuple[Batch, PRNGKeyArray]):
        outputs, stats = forward(params, piece)
        return objective(params, outputs, stats)[0] / parts, (outputs, stats)

    def accumulate(total: Tree, piece: tuple[Batch, PRNGKeyArray]):
        grads, kept = jax.grad(share, has_aux=True)(params, piece)
        return jax.tree.map(jnp.add, total, grads), kept

    zero = jax.tree.map(jnp.zeros_like, params)
    total, (outputs, stats) = jax.lax.scan(accumulate, zero, pieces)
    # Once more on all outputs, for what is no mean: queues, centres, spreads.
    return objective(params, merge(outputs), _mean(stats)), total


def split(tree: Tree, parts: int) -> Tree:
    """Leaves [n, ...] as [parts, n / parts, ...]: micro-batch j has examples j, j + parts, ...

    Strided, so that each device of a sharded batch finds examples of its own in every micro-batch
    and none moves.
    """
    return jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), tree)


def merge(tree: Tree) -> Tree:
    """The inverse of `split`."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), tree)


def _whole(method: Method, on_device: Callable[[Batch], Batch]) -> Gradient:
    def gradient(params: Tree, carried: Tree, batch: Batch, key: PRNGKeyArray, now: Now):
        def loss(params: Tree):
            outputs, stats = method.forward(params, carried, on_device(batch), key)
            return method.objective(params, outputs, {**carried, 'stats': stats}, now)

        return jax.value_and_grad(loss, has_aux=True)(params)

    return gradient


def _mean(stats: Tree) -> Tree:
    """Of the micro-batches' running statistics."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0).astype(leaf.dtype), stats)


def _by_kind(tree: Tree) -> tuple[Tree, Tree]:
    """What has a gradient, and what has none (indices, masks, labels): None where the other is."""
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return (
        jax.tree.map(lambda leaf: leaf if floating(leaf) else None, tree),
        jax.tree.map(lambda leaf: None if floating(leaf) else leaf, tree),
    )


def _together(floats: Tree, rest: Tree) -> Tree:
    empty = lambda leaf: leaf is None
    return jax.tree.map(lambda a, b: b if a is None else a, floats, rest, is_leaf=empty)
