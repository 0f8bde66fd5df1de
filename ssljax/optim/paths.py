"""Parameters by their paths: `encoder/stem/conv/kernel`."""

import re
from collections.abc import Sequence

import jax

from ssljax.core import Tree

BIASES_AND_NORMS = '(^|/)(bias|scale)$'
"""Biases, and the scale and shift of normalisation layers, as Linen names them."""


def matches(patterns: Sequence[str], tree: Tree) -> Tree:
    """For every leaf, whether one of the regular expressions is found in its path."""
    found = [any(re.search(pattern, path) for pattern in patterns) for path in paths(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def paths(tree: Tree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in flat]


def check_pattern(pattern: str) -> None:
    """Raises ValueError unless this is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f'{pattern!r} is not a regular expression: {error}') from error
