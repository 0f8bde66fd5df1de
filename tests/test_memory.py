"""The queue: what goes in first goes out first, whatever its length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.memory import Queue

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
