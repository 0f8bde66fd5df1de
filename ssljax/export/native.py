"""The project's own format: `model.safetensors` beside `config.json`, from which both come back.

`config.json` names the module by type and fields and holds the digest of the weights. It is written
last: an export that was cut short has none, and one whose parts do not fit together is refused.
Nothing in either file can execute: only dataclasses and modules from `ssljax` are built.
"""

import hashlib
import json
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from flax.core import unfreeze

from ssljax.config import decode, encode
from ssljax.core import Tree
from ssljax.export import tensors

FORMAT = 'ssljax-encoder-1'
WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'


def save(
    folder: epath.PathLike, module: nn.Module, variables: Tree, meta: dict[str, Any]
) -> epath.Path:
    """Writes an encoder, replacing an export that is already there.

    Args:
        folder: made if it is missing; may be a `gs://` path. Only one process may write.
        module: a Linen module of `ssljax`.
        variables: nested dicts of arrays, as `module.apply` takes them.
        meta: what goes along (normalisation, step, ...): what JSON holds.

    Returns:
        The folder.

    Raises:
        ValueError: if module, variables or meta cannot be written.
    """
    folder = epath.Path(folder)
    arrays, empty = _flat(variables)
    weights = tensors.pack(arrays, {'format': FORMAT})
    config = {
        'format': FORMAT,
        'module': encode(module),
        'meta': meta,
        'empty': empty,
        'sha256': hashlib.sha256(weights).hexdigest(),
    }
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f'meta cannot be written as JSON ({error}): {meta!r}') from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    tensors.write(folder / WEIGHTS, weights)
    tensors.write(folder / CONFIG, text.encode())
    return folder


def load(
    folder: epath.PathLike, allow: Iterable[ModuleType] = ()
) -> tuple[nn.Module, Tree, dict[str, Any]]:
    """What `save` was given: `(module, variables, meta)`, the arrays on the host, bit for bit.

    Args:
        folder: what `save` returned.
        allow: modules already imported whose own Linen modules may be built too.

    Raises:
        ValueError: if there is no whole export, or one from elsewhere, naming the file.
    """
    folder = epath.Path(folder)
    config = _config(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f'{folder} has no {WEIGHTS}; export it again') from error
    if hashlib.sha256(weights).hexdigest() != config['sha256']:
        raise ValueError(
            f'{folder / WEIGHTS} is not the file that {CONFIG} was written for (its SHA-256 '
            'differs): it was damaged or exchanged; export it again'
        )
    module = _module(config['module'], folder / CONFIG, allow)
    leaves = tensors.unpack(weights, folder / WEIGHTS) | {name: {} for name in config['empty']}
    return module, traverse_util.unflatten_dict(leaves, sep='/'), config['meta']


def _module(data: dict[str, Any], path: epath.Path, allow: Iterable[ModuleType]) -> nn.Module:
    try:
        module = decode(data, allow)
    except (ValueError, TypeError) as error:  # TypeError: a field of the wrong type
        raise ValueError(f'{path} names no encoder that can be built: {error}') from error
    if not isinstance(module, nn.Module):
        raise ValueError(f'{path}: module is a {type(module).__name__}, not a Linen module')
    return module


def _config(folder: epath.Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(
            f'{folder} has no {CONFIG}: it is not a native export, or its writing was cut short; '
            'name the folder that `ssljax export` wrote'
        ) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f'{path} is not JSON ({error}); export it again') from error
    if not isinstance(config, dict) or config.get('format') != FORMAT:
        raise ValueError(
            f'{path} does not say "format": "{FORMAT}", so it is not a native export of this '
            'version; name the folder that `ssljax export` wrote'
        )
    kinds = {'module': dict, 'meta': dict, 'empty': list, 'sha256': str}
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
    if wrong or not all(isinstance(name, str) for name in config['empty']):
        raise ValueError(
            f'{path} lacks {", ".join(wrong or ["the names of empty"])}; export it again'
        )
    return config


def _flat(variables: Tree) -> tuple[dict[str, np.ndarray], list[str]]:
    """The leaves by path, on the host, and the paths of empty dicts."""
    arrays, empty = {}, []
    plain = unfreeze(variables)
    for path, leaf in traverse_util.flatten_dict(plain, keep_empty_nodes=True).items():
        name = '/'.join(path)
        if any('/' in part for part in path):
            raise ValueError(f'the variable {path} has a slash in its name; rename it')
        if leaf is traverse_util.empty_node:
            empty.append(name)
        elif isinstance(leaf, jax.Array | np.ndarray) and not _is_key(leaf):
            arrays[name] = np.asarray(jax.device_get(leaf))
        else:
            raise ValueError(f'{name} is a {type(leaf).__name__}; only arrays can be exported')
    return arrays, empty


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
