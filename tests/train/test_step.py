"""The step: what it changes, what it leaves, and what it does with a bad batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.core import Method, Run, TrainState
from ssljax.train.step import make_init, make_step
from ssljax.views.recipe import Recipe

RUN = Run(examples=40, batch=4, steps=10, steps_per_epoch=10)
BATCH = {
    'image': jnp.arange(4 * 2 * 2 * 2 * 1, dtype=jnp.uint8).reshape(4, 1, 2, 2, 2)[..., :1],
    'index': jnp.arange(4, dtype=jnp.int32),
}


@dataclasses.dataclass(frozen=True)
class Plain(Recipe):
    """Passes floats through, with one random number per example."""

    def views(self):
        return {'image': (1, 2)}

    def on_device(self, batch):
        noise = jax.vmap(jax.random.uniform)(batch['key'])
        return {**batch, 'image': batch['image'].astype(jnp.float32), 'noise': noise}


@dataclasses.dataclass(frozen=True)
class Line(Method):
    """A regression of two parameter groups whose loss can be broken at a step."""

    breaks_at: int = -1

    def init(self, key, batch, run):
        params = {'encoder': {'w': jnp.ones(())}, 'head': {'b': jnp.zeros(())}}
        return params, {'stats': {}, 'seen': jnp.zeros((), jnp.int32)}

    def forward(self, params, state, batch, key):
        x = batch['image'].mean(axis=(1, 2, 3, 4)) / 255
        y = params['encoder']['w'] * x + params['head']['b']
        return {'y': y, 'noise': batch['noise']}, state['stats']

    def objective(self, params, outputs, state, now):
        bad = jnp.where(now.step == self.breaks_at, jnp.nan, 1.0)
        # The gradient of the first group alone is broken: b does not meet it.
        loss = jnp.mean((outputs['y'] - 2) ** 2) + 0 * bad * params['encoder']['w']
        state = {**state, 'seen': state['seen'] + 1}
        return loss, (state, {'noise': outputs['noise'].mean()})

    def after(self, params, state, now):
        return params, {**state, 'after': params['head']['b']} if 'after' in state else state


def build(method, transform=None):
    transform = transform or optax.adam(0.1)
    init = make_init(method, Plain(), transform, RUN, 0, BATCH)
    step = make_step(method, Plain(), transform, optax.constant_schedule(0.1), RUN)
    return jax.jit(init)(), jax.jit(step)


def test_a_step_moves_parameters_optimizer_state_and_counter():
    before, step = build(Line())
    after, metrics = step(before, BATCH)
    assert int(after.step) == 1 and int(after.method['seen']) == 1
    assert after.params['encoder']['w'] != before.params['encoder']['w']
    assert int(after.opt[0].count) == 1
    assert metrics['skipped'] == 0
    assert metrics['learning_rate'] == pytest.approx(0.1)


def test_the_run_key_never_changes_and_the_draws_do():
    state, step = build(Line())
    first, a = step(state, BATCH)
    _, b = step(first, BATCH)
    np.testing.assert_array_equal(jax.random.key_data(first.key), jax.random.key_data(state.key))
    assert a['noise'] != b['noise']


def test_a_nonfinite_step_changes_nothing_but_the_counter_and_is_named():
    state, step = build(Line(breaks_at=1))
    state, _ = step(state, BATCH)
    after, metrics = step(state, BATCH)
    assert metrics['skipped'] == 1 and int(after.step) == 2
    for part in ('params', 'opt', 'method'):
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()), getattr(state, part), getattr(after, part)
        )
        assert jax.tree.all(same), part
    assert metrics['nonfinite/encoder'] == 1
    assert metrics['nonfinite/head'] == 0
    later, metrics = step(after, BATCH)
    assert metrics['skipped'] == 0
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), later.params))


def test_state_is_arrays_only_and_a_pytree():
    state, _ = build(Line())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert isinstance(jax.tree.map(lambda leaf: leaf, state), TrainState)
