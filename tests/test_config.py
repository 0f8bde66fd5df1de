import dataclasses
import json
import math
import sys
from typing import Any

import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from ssljax import config
from ssljax.core import Run, Signature

HERE = sys.modules[__name__]


class Net(nn.Module):
    depth: int = 18
    widths: tuple[int, ...] = (64, 128)


class Head(nn.Module):
    trunk: nn.Module = Net()
    width: int = 2048


@dataclasses.dataclass(frozen=True)
class Method:
    encoder: nn.Module = dataclasses.field(default_factory=Net)
    temperature: float = 0.1
    tile: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    method: Method = Method()
    scale: tuple[float, float] = (0.08, 1.0)
    extra: tuple[Any, ...] = ()
    note: str = ''
    on: bool = True


class Outer:
    @dataclasses.dataclass(frozen=True)
    class Inner:
        k: int = 1


@dataclasses.dataclass
class Mutable:
    k: int = 1


def through_json(value):
    return json.loads(json.dumps(config.encode(value), allow_nan=False))


def refused(data, *words, allow=()):
    with pytest.raises(ValueError) as caught:
        config.decode(data, allow)
    for word in words:
        assert word in str(caught.value)


_plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('a1."\\\n é€')
)
_values = st.recursive(_plain, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=12)


@settings(max_examples=200, deadline=None, database=None)
@given(_values)
def test_any_plain_value_comes_back_with_its_type(value):
    def same(a, b):
        if type(a) is tuple:
            return type(b) is tuple and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and repr(a) == repr(b)

    assert same(value, config.decode(through_json(value)))


def test_nan_comes_back():
    assert math.isnan(config.decode(through_json(float('nan'))))


def test_nested_dataclasses_and_modules_come_back_equal():
    plan = Plan(
        method=Method(encoder=Net(depth=50, widths=(1, 2, 3)), tile=128),
        extra=((1, 'a'), Head(trunk=Net(depth=34)), (True, None, 0.5)),
        note='it costs 3 € "quoted"',
    )
    back = config.decode(through_json(plan), allow=(HERE,))
    assert back == plan
    assert hash(back) == hash(plan)
    assert isinstance(back.method.encoder, Net)


def test_the_form_is_type_paths_and_every_field():
    assert config.encode(Run(10, 2, 30, 5)) == {
        'type': 'ssljax.core.Run',
        'fields': {'examples': 10, 'batch': 2, 'steps': 30, 'steps_per_epoch': 5},
    }
    assert config.encode(Net()) == {
        'type': f'{__name__}.Net',
        'fields': {'depth': 18, 'widths': [64, 128]},
    }


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (Plan(extra=([1, 2],)), ('extra.0', 'list', 'tuple')),
        (Plan(extra=({'a': 1},)), ('extra.0', 'dict')),
        (Method(encoder=nn.Dense(3)), ('encoder.param_dtype',)),
        (Plan(extra=(Plan,)), ('extra.0', 'type')),
        (Plan(extra=(Mutable(),)), ('extra.0', 'Mutable', 'freeze')),
        (Plan(extra=(Outer.Inner(),)), ('extra.0', 'Outer.Inner', 'top level')),
        (Plan(extra=(Net(name='net'),)), ('extra.0', "'net'")),
    ],
)
def test_what_cannot_come_back_is_refused_with_its_place(value, words):
    with pytest.raises(ValueError) as caught:
        config.encode(value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('os.system', ('os.system', 'not from the package ssljax')),
        ('builtins.eval', ('not from the package ssljax',)),
        ('flax.linen.Dense', ('not from the package ssljax',)),
        ('ssljaxevil.core.Run', ('not from the package ssljax',)),
        ('ssljax.__main__.Run', ('not from the package ssljax',)),
        ('ssljax...core.Run', ('not from the package ssljax',)),
        ('Run', ('not from the package ssljax',)),
        ('', ('not from the package ssljax',)),
        ('ssljax.core.nn', ('not a dataclass',)),
        ('ssljax.core.Batch', ('not a dataclass',)),
        ('ssljax.core.with_keys', ('not a dataclass',)),
        ('ssljax.core.Rum', ('did you mean Run',)),
        ('ssljax.nowhere.Run', ('no module ssljax.nowhere',)),
        ('ssljax.core.nn.Dense', ('no module ssljax.core.nn',)),
        (7, ('type is 7',)),
    ],
)
def test_only_dataclasses_of_the_package_are_built(name, words):
    refused({'type': name, 'fields': {}}, *words)


def test_a_foreign_class_seen_from_inside_the_package_is_refused(monkeypatch):
    from ssljax import core

    monkeypatch.setattr(core, 'Borrowed', Method, raising=False)
    refused({'type': 'ssljax.core.Borrowed', 'fields': {}}, 'not from ssljax')


def test_the_module_of_an_unknown_type_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / 'trap.py').write_text('raise SystemExit("ran")')
    monkeypatch.syspath_prepend(tmp_path)
    refused({'type': 'trap.Thing', 'fields': {}}, 'trap.Thing')


def test_a_users_module_needs_to_be_allowed():
    data = config.encode(Plan())
    refused(data, f'{__name__}.Plan', '--definition FILE')
    assert config.decode(data, allow=(HERE,)) == Plan()
    data['fields']['method']['type'] = f'{__name__}.nn'
    refused(data, 'method', allow=(HERE,))


def test_unknown_and_missing_fields_are_named_with_their_path():
    data = config.encode(Plan())
    method = data['fields']['method']['fields']
    method['temprature'] = method.pop('temperature')
    refused(
        data,
        'method (Method)',
        "unknown field 'temprature' (did you mean temperature?)",
        "missing field 'temperature'",
        allow=(HERE,),
    )


@pytest.mark.parametrize(
    'data',
    [
        {'type': 'ssljax.core.Run'},
        {'type': 'ssljax.core.Run', 'fields': []},
        {'type': 'ssljax.core.Run', 'fields': {}, 'args': [1]},
        {'float': '1e3'},
        {'a': 1},
        {1, 2},
    ],
)
def test_malformed_objects_are_refused(data):
    refused([data], '0 is')


def test_diff_names_the_path_of_every_change():
    a = Plan(extra=(Net(), Net()))
    b = dataclasses.replace(
        a,
        method=Method(encoder=Net(depth=50), temperature=0.2),
        scale=(0.2, 1.0),
        extra=(Net(), Net(depth=34)),
    )
    a, b = config.encode(a), config.encode(b)
    assert config.diff(a, a) == []
    assert config.diff(a, b) == [
        ('method.encoder.depth', 18, 50),
        ('method.temperature', 0.1, 0.2),
        ('scale', [0.08, 1.0], [0.2, 1.0]),
        ('extra.1.depth', 18, 34),
    ]


def test_diff_shows_another_type_and_an_added_field_whole():
    a = config.encode(Method())
    b = config.encode(Method(encoder=Head()))
    assert config.diff(a, b) == [
        ('encoder', config.encode(Net()), config.encode(Head())),
    ]
    wider = {**a, 'fields': {**a['fields'], 'width': 3}}
    assert config.diff(a, wider) == [('width', None, 3)]
    assert config.diff(wider, a) == [('width', 3, None)]


def test_a_run_and_a_signature_of_the_core_come_back():
    signature = Signature((('image', (2, 224)), ('local', (6, 96))), 3, None, 100)
    assert config.decode(through_json(signature)) == signature
