"""Starting afresh the optimizer's state of chosen parameters, as when a head is drawn anew."""

import re
from collections.abc import Sequence

import jax
import optax

from ssljax.core import Tree
from ssljax.optim.paths import check_pattern, paths


def restart(
    transform: optax.GradientTransformation, opt: Tree, params: Tree, patterns: Sequence[str]
) -> Tree:
    """`opt` with the moments and counts of the matching parameters as `transform.init` makes them.

    What belongs to no single parameter, the step of the schedule above all, goes on.

    Args:
        transform: the optimizer.
        opt: its state.
        params: the parameters it trains.
        patterns: regular expressions, searched in paths such as `head/linear/kernel`.

    Raises:
        ValueError: if a pattern is no regular expression or matches no parameter.
    """
    names = dict(zip((p for p, _ in _flat(params)), paths(params), strict=True))
    for pattern in patterns:
        check_pattern(pattern)
        if not any(re.search(pattern, name) for name in names.values()):
            raise ValueError(
                f'no parameter matches {pattern!r}, so no optimizer state would start afresh; '
                f'there are {", ".join(list(names.values())[:3])}, ...'
            )
    chosen = [p for p, name in names.items() if any(re.search(one, name) for one in patterns)]

    def pick(path: tuple, old: jax.Array, fresh: jax.Array) -> jax.Array:
        # Whatever a transformation wraps its trees in, the path of a parameter ends theirs.
        return fresh if any(path[-len(end) :] == end for end in chosen) else old

    return jax.tree_util.tree_map_with_path(pick, opt, transform.init(params))


def _flat(tree: Tree) -> list[tuple[tuple, jax.Array]]:
    return jax.tree_util.tree_leaves_with_path(tree)
