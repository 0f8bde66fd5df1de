"""Freezing: leaving chosen parameters alone until a step."""

import difflib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ssljax.core import Tree
from ssljax.optim.paths import check_pattern, matches, paths


class FrozenState(NamedTuple):
    """Steps taken, and the state of the wrapped transformation."""

    count: Int[Array, '']
    inner: Tree


def freeze(
    transform: optax.GradientTransformation, pattern: str, until_step: int
) -> optax.GradientTransformation:
    """`transform`, leaving the parameters whose path matches alone until a step.

    A zero gradient would not do: weight decay and momentum still move such a parameter. Here it
    keeps its bits; its gradient counts in no global norm; its moments stay as they were initialised
    and start fresh at `until_step`, where the learning rate is the one of that step.

    Args:
        transform: keeps its moments in trees of the form of the parameters.
        pattern: a regular expression, searched in paths such as `head/prototypes/kernel`.
        until_step: the first step that updates them.

    Raises:
        ValueError: if the pattern is not a regular expression or the step is negative; when
            initialised, if no parameter matches.

    Reference: Caron et al. 2020, arXiv 2006.09882 (SwAV's prototypes); Caron et al. 2021, arXiv
    2104.14294 (DINO's last layer); Chen, Xie, He 2021, arXiv 2104.02057 (MoCo v3's patches).
    """
    check_pattern(pattern)
    if until_step < 0:
        raise ValueError(f'until_step is {until_step}; it must be 0 or more')

    def init(params: Tree) -> FrozenState:
        names = paths(params)
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, cutoff=0.3) or names[:3]
            raise ValueError(
                f'no parameter matches {pattern!r}, so nothing would be frozen; near paths are '
                f'{", ".join(near)}'
            )
        return FrozenState(jnp.zeros((), jnp.int32), transform.init(params))

    def update(grads: Tree, state: FrozenState, params: Tree) -> tuple[Tree, FrozenState]:
        chosen, form = matches([pattern], params), jax.tree.structure(params)
        early = state.count < until_step

        def instead(frozen: Tree, free: Tree) -> Tree:
            """`free`, but while it is early `frozen` at the chosen leaves."""

            def pick(choose: bool, a: Array, b: Array) -> Array:
                return jnp.where(early, a, b) if choose else b

            return jax.tree.map(pick, chosen, frozen, free)

        def like_params(tree: Tree) -> bool:
            return jax.tree.structure(tree) == form

        grads = instead(jax.tree.map(jnp.zeros_like, grads), grads)
        updates, inner = transform.update(grads, state.inner, params)
        # Minus zero: the only number that leaves every number, zeros of both signs too, as it is.
        updates = instead(jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates), updates)
        inner = jax.tree.map(
            lambda old, new: instead(old, new) if like_params(old) else new,
            state.inner,
            inner,
            is_leaf=like_params,
        )
        return updates, FrozenState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)
