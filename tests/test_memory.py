"""The queue: first in, first out, whatever its length. The bank: every example has its row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.memory import Bank, Queue

WIDTH = 4


def rows(first, n):
    """Rows that can be told apart: constant, and counted from `first`."""
    numbers = jnp.arange(first, first + n, dtype=jnp.float32)
    return jnp.broadcast_to(numbers[:, None], (n, WIDTH))


def numbers(queue, state):
    """The numbers of the rows held, oldest first."""
    return np.roll(np.asarray(queue.read(state))[:, 0], -int(state['next']))


@pytest.mark.parametrize(('length', 'batch'), [(8, 4), (12, 4), (4, 4), (10, 4), (7, 5), (9, 1)])
def test_holds_the_last_rows_in_the_order_they_came(length, batch):
    queue = Queue(length)
    state = queue.init(jax.random.key(0), WIDTH)
    push = jax.jit(queue.push)
    for step in range(3 * length):
        state = push(state, rows(step * batch, batch))
        pushed = (step + 1) * batch
        held = min(pushed, length)
        newest = numbers(queue, state)[-held:]
        np.testing.assert_array_equal(newest, np.arange(pushed - held, pushed))
        assert state['next'] == pushed % length


def test_a_row_of_the_start_stays_until_its_turn_and_not_longer():
    queue = Queue(12)
    start = queue.init(jax.random.key(0), WIDTH)
    state = start
    for step in range(12 // 4):
        np.testing.assert_array_equal(state['rows'][4 * step :], start['rows'][4 * step :])
        state = queue.push(state, rows(100 + 4 * step, 4))
    assert not np.isin(np.asarray(state['rows']), np.asarray(start['rows'])).any()


def test_starts_with_random_directions_of_unit_length():
    start = Queue(4096).init(jax.random.key(0), 16)
    directions = np.asarray(start['rows'])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(directions.mean(0), 0, atol=0.02)  # a Gaussian has no preferred one
    np.testing.assert_allclose(directions.T @ directions / 4096, np.eye(16) / 16, atol=0.01)
    assert start['next'] == 0 and start['next'].dtype == jnp.int32
    other = Queue(4096).init(jax.random.key(1), 16)['rows']
    assert not np.array_equal(directions, other)


def test_no_gradient_reaches_the_queue_or_what_was_pushed():
    queue = Queue(6)
    start = queue.init(jax.random.key(0), WIDTH)

    def through(held, new):
        state = queue.push({**start, 'rows': held}, new)
        return jnp.sum(jnp.square(queue.read(state)))

    def pushed(new):
        return jnp.sum(jnp.square(queue.push(start, new)['rows']))

    for slope in (
        *jax.grad(through, (0, 1))(start['rows'], rows(1, 4)),
        jax.grad(pushed)(rows(1, 4)),
    ):
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_keeps_its_own_types(x64, dtype):
    queue = Queue(6)
    state = queue.init(jax.random.key(0), WIDTH)
    state = {**state, 'rows': state['rows'].astype(dtype)}
    after = jax.eval_shape(queue.push, state, jax.ShapeDtypeStruct((4, WIDTH), jnp.float64))
    assert after['rows'].dtype == dtype and after['next'].dtype == jnp.int32


def test_a_queue_shorter_than_the_batch_is_refused():
    message = (
        'queue length 100 is shorter than the global batch 256; use a queue of at least one batch'
    )
    queue = Queue(100)
    with pytest.raises(ValueError, match=message):
        queue.check(256)
    with pytest.raises(ValueError, match=message):
        queue.push(queue.init(jax.random.key(0), WIDTH), rows(0, 256))
    queue.check(100)
    with pytest.raises(ValueError, match=r'batch 64 with 2 keys an example; .* one batch, 128'):
        queue.check(64, keys=2)
    with pytest.raises(ValueError, match='queue length is 0'):
        Queue(0)


def test_shrinks_for_a_smoke_run_but_never_grows():
    assert Queue(65_536).smoke() == Queue(64)
    assert Queue(20).smoke() == Queue(20)


# The bank


def bank(examples=10, momentum=0.5):
    held = Bank(momentum)
    return held, held.init(jax.random.key(0), examples, WIDTH)


def directions(n, seed=1):
    rows = np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_a_bank_moves_the_rows_of_the_batch_and_no_other():
    held, start = bank()
    index, new = jnp.asarray([7, 0, 3], jnp.int32), directions(3)
    after = np.asarray(jax.jit(held.update)(start, index, new))
    others = np.setdiff1d(np.arange(10), index)
    np.testing.assert_array_equal(after[others], start[others])
    want = 0.5 * np.asarray(start)[index] + 0.5 * np.asarray(new)
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(after[index], want, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-6)


def test_momentum_1_keeps_the_row_and_0_takes_the_vector():
    index, new = jnp.asarray([7, 0, 3], jnp.int32), directions(3)
    held, start = bank(momentum=1.0)
    np.testing.assert_allclose(held.update(start, index, new), start, atol=1e-6)
    held, start = bank(momentum=0.0)
    np.testing.assert_allclose(held.update(start, index, new)[index], new, atol=1e-6)


def test_of_the_same_row_twice_the_last_is_taken():
    held, start = bank(momentum=0.0)
    index = jnp.asarray([4, 1, 4, 9, 4, 1], jnp.int32)
    new = directions(6)
    after = jax.jit(held.update)(start, index, new)
    np.testing.assert_allclose(
        after[jnp.asarray([4, 1, 9])], new[jnp.asarray([4, 5, 3])], rtol=1e-6
    )
    rest = jnp.asarray([0, 2, 3, 5, 6, 7, 8])
    np.testing.assert_array_equal(after[rest], start[rest])


def test_opposite_vectors_leave_a_row_that_recovers():
    held, start = bank()
    index = jnp.asarray([2], jnp.int32)
    empty = held.update(start, index, -start[index])
    np.testing.assert_array_equal(empty[2], 0)
    after = held.update(empty, index, directions(1))
    np.testing.assert_allclose(after[2], directions(1)[0], rtol=1e-6)


def test_a_bank_starts_with_random_directions_and_passes_no_gradient():
    held, start = bank(4096)
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(start.T @ start / 4096, np.eye(WIDTH) / WIDTH, atol=0.02)
    index = jnp.arange(3, dtype=jnp.int32)

    def through(rows, new):
        return jnp.sum(held.read(rows)) + jnp.sum(held.update(start, index, new) ** 3)

    for slope in jax.grad(through, (0, 1))(start, directions(3)):
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_a_bank_keeps_its_own_type(x64, dtype):
    held, start = bank()
    index = jax.ShapeDtypeStruct((3,), jnp.int32)
    after = jax.eval_shape(
        held.update, start.astype(dtype), index, jax.ShapeDtypeStruct((3, WIDTH), jnp.float64)
    )
    assert after.dtype == dtype


def test_a_bank_is_the_same_on_one_and_eight_devices(mesh8):
    held, start = bank(50)
    index, new = jnp.asarray([7, 0, 3, 7, 12, 49, 3, 20], jnp.int32), directions(8)
    split, whole = (NamedSharding(mesh8, PartitionSpec(*axes)) for axes in (('data',), ()))
    with jax.set_mesh(mesh8):
        eight = jax.jit(held.update, in_shardings=(whole, split, split))(start, index, new)
    np.testing.assert_allclose(eight, held.update(start, index, new), atol=1e-6)


def test_a_momentum_outside_of_0_and_1_is_refused():
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match='outside'):
            Bank(momentum)
