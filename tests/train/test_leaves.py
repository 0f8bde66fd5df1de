"""Any tree has names for its leaves; what differs between two trees is told in words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.train import leaves


def test_names_are_paths_through_any_container():
    params = {'net': {'w': jnp.ones(2)}}
    tree = {
        'params': params,
        'opt': optax.sgd(0.1, momentum=0.9).init(params),
        'many': [jnp.ones(1)],
    }
    assert list(leaves.named(tree)) == ['many/0', 'opt/0/trace/net/w', 'params/net/w']


def test_names_that_read_the_same_are_refused():
    with pytest.raises(ValueError, match='two leaves of the state are called a/b'):
        leaves.named({'a': {'b': jnp.ones(1)}, 'a/b': jnp.ones(1)})


def test_equal_structures_have_no_differences():
    tree = {'w': jnp.ones((2, 3), jnp.bfloat16), 'key': jax.random.key(0), 'none': None}
    saved = leaves.describe(leaves.named(tree))
    assert saved['keys'] == {'key': 'threefry2x32'}
    assert leaves.differences(saved['leaves'], jax.eval_shape(lambda: tree)) == []


@pytest.mark.parametrize(
    ('like', 'told'),
    [
        ({'a': jnp.ones(3)}, ['a is float32[2] in it and float32[3] here']),
        ({'a': jnp.ones(2, jnp.int32)}, ['a is float32[2] in it and int32[2] here']),
        ({'a': jnp.ones(2), 'b': jnp.ones(())}, ['b (float32[]) is not in it']),
        ({}, ['a (float32[2]) is only in it']),
        ({'c': jnp.ones(2)}, ['c (float32[2]) is not in it', 'a (float32[2]) is only in it']),
    ],
)
def test_differences_are_told(like, told):
    saved = leaves.describe(leaves.named({'a': jnp.ones(2)}))
    assert leaves.differences(saved['leaves'], like) == told


def test_long_lists_are_cut():
    assert leaves.listed(['a', 'b'], 'things') == 'a; b'
    assert leaves.listed(list('abcdefg'), 'things') == 'a; b; c; d; e; and 2 more things'


@pytest.mark.parametrize(
    ('dtype', 'value'),
    [('float32', np.nan), ('bfloat16', np.inf), ('float16', -np.inf), ('complex64', np.nan)],
)
def test_one_element_that_is_not_finite_is_found_wherever_it_lies(dtype, value, mesh8):
    fine = {
        'ints': jnp.arange(3),
        'key': jax.random.key(0),
        'empty': jnp.zeros((0, 2)),
        'biggest': jnp.array([jnp.finfo(jnp.float32).max]),
        'alone': jnp.ones(3),
        'sharded': jax.device_put(jnp.ones(16), NamedSharding(mesh8, P('data'))),
    }
    assert leaves.not_finite(fine) == []
    spoilt = jax.device_put(jnp.ones(16, dtype).at[11].set(value), NamedSharding(mesh8, P('data')))
    assert leaves.not_finite({**fine, 'w': spoilt, 'v': jnp.ones(3, dtype)}) == ['w']


def test_looking_for_what_is_not_finite_needs_no_collective(mesh8, monkeypatch):
    """Many small programs with collectives in flight lock up on CPU devices."""
    seen = []
    monkeypatch.setattr(leaves, '_finite', lambda x: seen.append(x) or True)
    split = jax.device_put(jnp.arange(32.0), NamedSharding(mesh8, P('data')))
    whole = jax.device_put(jnp.arange(5.0), NamedSharding(mesh8, P()))
    leaves.not_finite({'split': split, 'whole': whole})
    assert {len(x.sharding.device_set) for x in seen} == {1}
    elements = np.sort(np.concatenate([np.asarray(x) for x in seen]))
    np.testing.assert_array_equal(elements, np.sort(np.r_[np.arange(32), np.arange(5)]))
