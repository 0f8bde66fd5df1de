"""A state as named arrays and back: what lies between a pytree and a file format.

Storage sees a flat dict of plain arrays: typed keys as their words, arrays without elements left
out, names made of the paths. So a state may be built of any containers (named tuples of optax,
dataclasses), and another structure is told in words before any file is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding

from ssljax.core import Tree


def named(tree: Tree) -> dict[str, Any]:
    """The leaves by path, `params/encoder/stem/kernel`.

    Raises:
        ValueError: a leaf is no array, or two paths read the same.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {}
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if not hasattr(leaf, 'dtype') or not hasattr(leaf, 'shape'):
            raise ValueError(f'{name} is {leaf!r}, a state holds arrays only; make it an array')
        if name in leaves:
            raise ValueError(f'two leaves of the state are called {name}; rename one')
        leaves[name] = leaf
    return leaves


def describe(leaves: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Shapes and dtypes by name, and which generator each typed key belongs to; plain JSON."""
    keys = {name: str(jax.random.key_impl(x)) for name, x in leaves.items() if _is_key(x)}
    return {'leaves': {name: _described(x) for name, x in leaves.items()}, 'keys': keys}


def differences(saved: Mapping[str, str], like: Tree) -> list[str]:
    """What `like` has otherwise than a saved state, in the order of `like`; [] if nothing.

    Args:
        saved: the entry `leaves` of `describe`.
        like: the tree wanted.
    """
    wanted = {name: _described(leaf) for name, leaf in named(like).items()}
    found = []
    for name, description in wanted.items():
        if name not in saved:
            found.append(f'{name} ({description}) is not in it')
        elif saved[name] != description:
            found.append(f'{name} is {saved[name]} in it and {description} here')
    found.extend(f'{name} ({saved[name]}) is only in it' for name in saved if name not in wanted)
    return found


def not_finite(leaves: Mapping[str, Any]) -> list[str]:
    """Names of the floating-point leaves that hold a NaN or an infinity. Waits for the devices.

    Each process looks at its own share of sharded leaves. Shard by shard, since one program for the
    whole tree takes seconds to compile, and one with a collective for each leaf can lock up: on CPU
    devices those of many programs in flight wait for one another's threads.
    """
    finite = {
        name: [_finite(part) for part in _parts(leaf)]
        for name, leaf in leaves.items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    return [name for name, parts in jax.device_get(finite).items() if not all(parts)]


def listed(items: Sequence[str], what: str, most: int = 5) -> str:
    """The first few of `items`, and how many there are besides."""
    rest = len(items) - most
    return '; '.join(items[:most]) + (f'; and {rest} more {what}' if rest > 0 else '')


def to_save(leaves: Mapping[str, Any]) -> Any:
    """Orbax's arguments for saving the leaves."""
    import orbax.checkpoint as ocp

    plain = {n: jax.random.key_data(x) if _is_key(x) else x for n, x in leaves.items() if x.size}
    return ocp.args.PyTreeSave({name: _one_copy(x) for name, x in plain.items()})


def load(reader: Any, path: epath.Path, keys: Mapping[str, str], like: Tree) -> Tree:
    """The saved leaves in the form of `like`, each placed as it says there.

    Args:
        reader: Orbax's checkpointer.
        path: where it saved what `to_save` gave.
        keys: the entry `keys` of `describe`.
        like: a tree of shapes, dtypes and shardings equal to the saved ones in the first two.
    """
    import orbax.checkpoint as ocp

    leaves = named(like)
    plain = {name: _stored(leaf) for name, leaf in leaves.items()}
    full = {name: x for name, x in plain.items() if x.size}
    places = {
        name: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
        for name, x in full.items()
    }
    arrays = reader.restore(path, args=ocp.args.PyTreeRestore(full, restore_args=places))
    for name, x in plain.items():
        if not x.size:
            arrays[name] = jnp.zeros(x.shape, x.dtype, device=x.sharding)
        if name in keys:
            arrays[name] = jax.random.wrap_key_data(arrays[name], impl=keys[name])
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])


@jax.jit
def _finite(x: Any) -> jax.Array:
    return jnp.isfinite(x).all()


def _parts(array: Any) -> list[Any]:
    if not isinstance(array, jax.Array):
        return [array]
    return [shard.data for shard in array.addressable_shards if shard.replica_id == 0]


def _one_copy(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return np.array(array)  # whose owner may change it while it is written
    if array.is_fully_addressable and array.is_fully_replicated:
        # Of copies on several devices Orbax takes a slice of each: more programs, no gain here.
        return array.addressable_data(0)
    return array


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'


def _stored(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding: Sharding = getattr(leaf, 'sharding', None) or SingleDeviceSharding(jax.devices()[0])
    plain = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if _is_key(leaf):
        plain = jax.eval_shape(jax.random.key_data, plain)
    # The sharding of keys holds for their words: the last axis is the words of one key.
    return jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=sharding)
