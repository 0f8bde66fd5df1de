"""Configurations as JSON and back: type paths and fields, and nothing that could execute.

`{"type": "ssljax.nets.resnet.ResNet", "fields": {"depth": 50, ...}}` stands for a dataclass. A
run's folder holds its experiment in this form; `evaluate`, `export` and `report` rebuild it there.
"""

import dataclasses
import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from flax import linen as nn

PACKAGE = 'ssljax'
"""The package whose dataclasses may be rebuilt from data."""


def encode(value: Any) -> Any:
    """The JSON form of a configuration: every field, defaults included.

    Args:
        value: None, bool, int, float, str, a tuple of these (a JSON list), a frozen dataclass or a
            Linen module, nested to any depth.

    Returns:
        What `json.dumps(..., allow_nan=False)` takes and `decode` turns back into an equal value.

    Raises:
        ValueError: for anything else, naming the field that holds it.
    """
    return _encode(value, '')


def decode(data: Any, allow: Iterable[ModuleType] = ()) -> Any:
    """The configuration that `encode` was given.

    Only dataclasses defined in `ssljax` are built, and only their own constructors run.

    Args:
        data: the JSON form.
        allow: modules already imported, such as the user's experiment file, whose dataclasses may
            be built too.

    Raises:
        ValueError: a type from elsewhere, a type that is no dataclass, or a field that is unknown
            or missing, with its path and near names.
    """
    return _decode(data, '', {module.__name__: module for module in allow})


def diff(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """What differs between two encoded configurations, as `(path, in a, in b)`.

    Objects of the same type are compared field by field (`method.encoder.depth`), a field that one
    side lacks being None there; objects of different types, and tuples of plain values, as a whole.
    """
    return list(_differences(a, b, ''))


def _encode(value: Any, path: str) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {'float': repr(value)}  # JSON has no infinity
    if type(value) is tuple:
        return [_encode(item, _join(path, str(i))) for i, item in enumerate(value)]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(
            f'{_where(path)} is {value!r} of type {type(value).__name__}, which a configuration '
            'cannot hold; use None, bool, int, float, str, a tuple of these, a frozen dataclass or '
            'a Linen module'
        )
    kind = type(value)
    if not (isinstance(value, nn.Module) or kind.__dataclass_params__.frozen):
        raise ValueError(f'{_where(path)} is a {kind.__name__}, which is not frozen; freeze it')
    if '.' in kind.__qualname__:
        raise ValueError(
            f'{_where(path)} is of type {kind.__qualname__}, which cannot be found again by its '
            'name; define it at the top level of its module'
        )
    if getattr(value, 'name', None) is not None and isinstance(value, nn.Module):
        raise ValueError(
            f'{_where(path)} is a module named {value.name!r}; names are not stored, so give none: '
            'the field that holds the module names its parameters'
        )
    fields = {name: _encode(getattr(value, name), _join(path, name)) for name in field_names(kind)}
    return {'type': f'{kind.__module__}.{kind.__qualname__}', 'fields': fields}


def _decode(data: Any, path: str, allowed: dict[str, ModuleType]) -> Any:
    if data is None or type(data) in (bool, int, float, str):
        return data
    if isinstance(data, list):
        return tuple(_decode(item, _join(path, str(i)), allowed) for i, item in enumerate(data))
    if isinstance(data, dict) and data.keys() == {'float'}:
        if data['float'] not in ('inf', '-inf', 'nan'):
            raise ValueError(f'{_where(path)} is {data!r}; "float" is one of inf, -inf and nan')
        return float(data['float'])
    if (
        not isinstance(data, dict)
        or data.keys() != {'type', 'fields'}
        or not isinstance(data['fields'], dict)
    ):
        raise ValueError(
            f'{_where(path)} is {data!r}; expected a plain value, a list, or an object with '
            'exactly "type" and "fields"'
        )
    kind = _find(data['type'], path, allowed)
    wanted = field_names(kind)
    _check_fields(f'{_where(path)} ({kind.__name__})', set(data['fields']), wanted)
    return kind(**{n: _decode(data['fields'][n], _join(path, n), allowed) for n in wanted})


def _check_fields(where: str, given: set[str], wanted: tuple[str, ...]) -> None:
    """Raises, naming near names, unless exactly the fields `wanted` are given."""
    problems = []
    for name in sorted(given.difference(wanted)):
        near = difflib.get_close_matches(name, wanted)
        problems.append(
            f'unknown field {name!r}' + (f' (did you mean {" or ".join(near)}?)' if near else '')
        )
    # A default is not filled in: it may have changed since the configuration was written.
    problems += [f'missing field {name!r}' for name in wanted if name not in given]
    if problems:
        raise ValueError(f'{where}: {"; ".join(problems)}; its fields are {", ".join(wanted)}')


def _find(name: Any, path: str, allowed: dict[str, ModuleType]) -> type:
    """The dataclass of that name, from `ssljax` or an allowed module; imports nothing else."""
    if not isinstance(name, str):
        raise ValueError(f'{_where(path)}: the type is {name!r}; expected "module.Class"')
    home, _, label = name.rpartition('.')
    module = allowed.get(home)
    if module is None:
        parts = home.split('.')
        # Underscores: importing `__main__` would run a program.
        if parts[0] != PACKAGE or any(p.startswith('_') or not p.isidentifier() for p in parts):
            raise ValueError(
                f'{_where(path)}: the type {name} is not from the package {PACKAGE}, so it is not '
                'loaded; if it is yours, name the file that defines it: --definition FILE'
            )
        try:
            module = importlib.import_module(home)
        except ModuleNotFoundError as error:
            if not home.startswith(error.name or home):  # the module is there; what it needs is not
                raise
            raise ValueError(f'{_where(path)}: there is no module {home} in {PACKAGE}') from error
    kind = vars(module).get(label)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        names = [n for n, v in vars(module).items() if dataclasses.is_dataclass(v)]
        near = difflib.get_close_matches(label, names)
        raise ValueError(
            f'{_where(path)}: {name} is not a dataclass of that module'
            + (f'; did you mean {" or ".join(near)}?' if near else '')
        )
    origin = kind.__module__
    if origin not in allowed and origin.split('.')[0] != PACKAGE:
        raise ValueError(f'{_where(path)}: {name} is {origin}.{label}, not from {PACKAGE}')
    return kind


def _differences(a: Any, b: Any, path: str) -> Iterable[tuple[str, Any, Any]]:
    if _is_object(a) and _is_object(b) and a['type'] == b['type']:
        old, new = a['fields'], b['fields']
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _differences(old.get(name), new.get(name), _join(path, name))
    elif _is_sequence(a) and _is_sequence(b) and len(a) == len(b):
        for i, (old, new) in enumerate(zip(a, b, strict=True)):
            yield from _differences(old, new, _join(path, str(i)))
    elif a != b:
        yield path, a, b


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and 'type' in value


def _is_sequence(value: Any) -> bool:
    """Whether this is a list of objects, worth comparing one by one."""
    return isinstance(value, list) and any(_is_object(item) for item in value)


def field_names(kind: type) -> tuple[str, ...]:
    """The fields a dataclass is constructed from, without the `parent` and `name` of Linen."""
    internal = ('parent', 'name') if issubclass(kind, nn.Module) else ()
    fields = dataclasses.fields(kind)
    return tuple(f.name for f in fields if f.init and f.name not in internal)


def _join(path: str, name: str) -> str:
    return f'{path}.{name}' if path else name


def _where(path: str) -> str:
    return path or 'the configuration'
