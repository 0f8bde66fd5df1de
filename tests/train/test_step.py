"""The step: what it changes, what it leaves, and what it does with a bad batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.core import Method, Run, TrainState
from ssljax.optim.adamw import scale_by_moments
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


@dataclasses.dataclass(frozen=True)
class Followed(Line):
    """The same, with a target that copies the new weight, and a bias held at 0.01 or less."""

    def init(self, key, batch, run):
        params, state = super().init(key, batch, run)
        nothing = {'target': -jnp.ones(()), 'counted': -jnp.ones((), jnp.int32)}
        return params, {**state, **nothing, 'at': -jnp.ones((), jnp.int32)}

    def after(self, params, state, now):
        held = {'b': jnp.minimum(params['head']['b'], 0.01)}
        new = {'target': params['encoder']['w'], 'counted': state['seen'], 'at': now.step}
        return {**params, 'head': held}, {**state, **new}


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


def test_a_nonfinite_step_changes_nothing_but_counters_and_is_named():
    state, step = build(Line(breaks_at=1))
    state, _ = step(state, BATCH)
    after, metrics = step(state, BATCH)
    assert metrics['skipped'] == 1 and int(after.step) == 2
    # The optimizer's count goes on, and with it the learning rate.
    assert int(after.opt[0].count) == 2
    held = lambda s: (s.params, s.opt[0].mu, s.opt[0].nu, s.method)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), held(state), held(after))
    assert jax.tree.all(same), same
    assert metrics['nonfinite/encoder'] == 1
    assert metrics['nonfinite/head'] == 0
    later, metrics = step(after, BATCH)
    assert metrics['skipped'] == 0
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), later.params))


def test_a_finite_gradient_that_overflows_the_parameters_is_skipped():
    state, step = build(Line(), optax.sgd(3e38))
    after, metrics = step(state, BATCH)
    assert metrics['skipped'] == 1 and jnp.isfinite(metrics['grad_norm'])
    assert metrics['nonfinite/encoder'] == metrics['nonfinite/head'] == 0
    assert after.params['head']['b'] == state.params['head']['b']


class Overflown(Followed):
    """Its state overflows at step 0; loss and gradients do not."""

    def after(self, params, state, now):
        params, state = super().after(params, state, now)
        return params, {**state, 'target': jnp.where(now.step == 0, jnp.inf, state['target'])}


def test_a_state_of_the_method_that_is_not_finite_is_skipped():
    state, step = build(Overflown())
    after, metrics = step(state, BATCH)
    assert metrics['skipped'] == 1 and after.method['target'] == -1
    after, metrics = step(after, BATCH)
    assert metrics['skipped'] == 0 and after.method['target'] == after.params['encoder']['w']


def test_an_update_that_is_skipped_does_not_count_for_adam():
    rule = optax.chain(scale_by_moments((0.9, 0.999), 1e-8), optax.scale(-0.1))
    state, step = build(Line(breaks_at=0), rule)
    after, metrics = step(state, BATCH)
    assert metrics['skipped'] == 1
    later, _ = step(after, BATCH)
    moved = later.params['encoder']['w'] - state.params['encoder']['w']
    assert jnp.abs(moved) == pytest.approx(0.1, rel=1e-4)  # as its first update


def test_after_sees_the_new_parameters_and_has_the_last_word():
    state, step = build(Followed())
    for k in range(2):
        before, (state, _) = state, step(state, BATCH)
        assert state.params['encoder']['w'] != before.params['encoder']['w']
        assert state.method['target'] == state.params['encoder']['w']
        assert state.method['at'] == k
        # The state it is given is what the objective made of it.
        assert state.method['counted'] == state.method['seen'] == k + 1
        # Adam moves the bias by about 0.1, and what `after` makes of it is kept.
        assert state.params['head']['b'] == jnp.float32(0.01)


def test_what_after_makes_of_a_nonfinite_step_is_dropped():
    state, step = build(Followed(breaks_at=0))
    after, metrics = step(state, BATCH)
    assert metrics['skipped'] == 1
    assert after.method['target'] == -1 and after.method['at'] == -1


def test_state_is_arrays_only_and_a_pytree():
    state, _ = build(Line())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert isinstance(jax.tree.map(lambda leaf: leaf, state), TrainState)
