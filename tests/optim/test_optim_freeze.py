import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.core import Run
from ssljax.optim import LARS, SGD, AdamW, freeze

RUN = Run(examples=256 * 4, batch=256, steps=12, steps_per_epoch=4)
UNTIL = 3
RULES = {
    'lars C': LARS(weight_decay=0.1, warmup_epochs=1.0, form='C', clip_tensor=1.0),
    'lars P': LARS(weight_decay=0.1, warmup_epochs=1.0, form='P'),
    'adamw': AdamW(learning_rate=0.01, warmup_epochs=1.0, clip_tensor=1.0, final_weight_decay=0.5),
    'sgd': SGD(weight_decay=0.1, warmup_epochs=1.0, final_weight_decay=0.4),
}


def some_params(seed=0):
    draw = np.random.default_rng(seed).normal
    return {
        'encoder': {'kernel': draw(size=(4, 8))},
        'head': {'last': {'kernel': draw(size=(8, 3))}},
    }


GRADS = [some_params(seed) for seed in range(1, 7)]


def walk(transform, params, grads):
    """The parameters after every step, and the last state."""
    params, seen = jax.tree.map(jnp.asarray, params), []
    state = transform.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, jax.tree.map(jnp.asarray, grad))
        seen.append(params)
    return seen, state


def bits(array):
    return np.asarray(array).tobytes()


def last(params):
    return params['head']['last']['kernel']


@pytest.mark.parametrize('name', RULES)
def test_frozen_parameters_keep_their_bits_and_the_others_do_not_notice(name):
    params = some_params()
    last(params)[0, :2] = [-0.0, 0.0]
    transform = RULES[name].build(RUN)
    frozen, _ = walk(freeze(transform, '^head/last/', UNTIL), params, GRADS)
    free, _ = walk(transform, params, GRADS)
    for step, (a, b) in enumerate(zip(frozen, free, strict=True)):
        assert (bits(last(a)) == bits(jnp.asarray(last(params)))) == (step < UNTIL)
        assert bits(a['encoder']['kernel']) == bits(b['encoder']['kernel'])


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', RULES)
def test_thawed_parameters_start_with_fresh_moments_at_the_rate_of_that_step(name):
    optimizer = RULES[name]
    frozen, _ = walk(freeze(optimizer.build(RUN), 'last', UNTIL), some_params(), GRADS)
    schedule, decay = optimizer.schedule(RUN), optimizer.weight_decay_schedule(RUN)
    # An optimizer that begins at that step, on that parameter alone, with the clock put forward.
    fresh = optimizer.rule(lambda step: schedule(step + UNTIL), lambda step: decay(step + UNTIL))
    if optimizer.clip_tensor is not None:
        fresh = optax.chain(optax.clip_by_global_norm(optimizer.clip_tensor), fresh)
    alone = [{'kernel': last(grad)} for grad in GRADS[UNTIL:]]
    expected, _ = walk(fresh, {'kernel': last(some_params())}, alone)
    for a, b in zip(frozen[UNTIL:], expected, strict=True):
        np.testing.assert_allclose(last(a), b['kernel'], rtol=1e-12)


def test_a_zero_gradient_is_not_a_frozen_parameter():
    for optimizer in RULES.values():
        zeros = [jax.tree.map(np.zeros_like, grad) for grad in GRADS]
        moved, _ = walk(optimizer.build(RUN), some_params(), zeros)
        assert bits(last(moved[-1])) != bits(jnp.asarray(last(some_params())))


@pytest.mark.usefixtures('x64')
def test_a_frozen_gradient_counts_in_no_global_norm():
    sgd = SGD(learning_rate=1.0, momentum=0.0, decay='constant', clip_global=1.0)
    huge = some_params(1)
    last(huge)[:] *= 1e6
    [after], _ = walk(freeze(sgd.build(RUN), 'last', 1), some_params(), [huge])
    moved = some_params()['encoder']['kernel'] - after['encoder']['kernel']
    np.testing.assert_allclose(jnp.linalg.norm(moved), 1.0, rtol=1e-12)


def test_a_gradient_that_is_not_finite_does_not_reach_a_frozen_parameter():
    broken = some_params(1)
    last(broken)[:] = np.nan
    transform = freeze(RULES['adamw'].build(RUN), 'last', 2)
    after, _ = walk(transform, some_params(), [broken, broken, GRADS[0], GRADS[1]])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after[-1]))


def test_until_step_zero_freezes_nothing():
    transform = RULES['adamw'].build(RUN)
    with jax.disable_jit():  # compiled, two programs may round apart
        frozen, _ = walk(freeze(transform, 'last', 0), some_params(), GRADS)
        free, _ = walk(transform, some_params(), GRADS)
    assert bits(last(frozen[-1])) == bits(last(free[-1]))
    assert bits(last(free[-1])) != bits(last(some_params()))


@pytest.mark.parametrize('name', RULES)
def test_the_state_keeps_its_shapes_and_types(name):
    params = some_params()
    transform = freeze(RULES[name].build(RUN), 'last', UNTIL)
    state = jax.eval_shape(transform.init, params)
    _, after = jax.eval_shape(transform.update, params, state, params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_a_pattern_that_matches_nothing_is_an_error_with_near_paths():
    transform = freeze(RULES['sgd'].build(RUN), 'head/lst', UNTIL)
    with pytest.raises(ValueError, match=r"'head/lst'.*near paths are head/last/kernel"):
        transform.init(some_params())
    with pytest.raises(ValueError, match='not a regular expression'):
        freeze(RULES['sgd'].build(RUN), '(', UNTIL)
    with pytest.raises(ValueError, match='until_step is -1'):
        freeze(RULES['sgd'].build(RUN), 'last', -1)


@pytest.mark.parametrize('name', RULES)
def test_a_field_freezes_for_so_many_epochs(name):
    by_field = dataclasses.replace(RULES[name], frozen=(('^head/last/', 0.75),)).build(RUN)
    by_hand = freeze(RULES[name].build(RUN), '^head/last/', UNTIL)
    field, _ = walk(by_field, some_params(), GRADS)
    hand, _ = walk(by_hand, some_params(), GRADS)
    for a, b in zip(field, hand, strict=True):
        assert jax.tree.map(bits, a) == jax.tree.map(bits, b)


def test_several_are_frozen_each_for_its_time():
    frozen = (('last', 0.25), ('encoder', 0.5))
    seen, _ = walk(AdamW(warmup_epochs=0.0, frozen=frozen).build(RUN), some_params(), GRADS[:4])
    seen = [jax.tree.map(jnp.asarray, some_params()), *seen]
    moved = [
        tuple(bits(x) != bits(y) for x, y in zip(map(f, seen), map(f, seen[1:]), strict=False))
        for f in (last, lambda params: params['encoder']['kernel'])
    ]
    assert moved == [(False, True, True, True), (False, False, True, True)]


def test_what_is_frozen_for_ever_never_moves():
    grads = [some_params(seed) for seed in range(RUN.steps)]
    forever = SGD(frozen=(('last', math.inf),)).build(RUN)
    seen, _ = walk(forever, some_params(), grads)
    assert bits(last(seen[-1])) == bits(jnp.asarray(last(some_params())))
    assert bits(seen[-1]['encoder']['kernel']) != bits(seen[0]['encoder']['kernel'])


def test_frozen_patterns_that_match_nothing_are_found_when_initialised():
    with pytest.raises(ValueError, match="no parameter matches 'prototype'"):
        SGD(frozen=(('prototype', 1.0),)).build(RUN).init(some_params())
