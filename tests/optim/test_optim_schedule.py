import dataclasses
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ssljax import config, overrides
from ssljax.core import Run
from ssljax.optim import LARS, SGD, AdamW

RUN = Run(examples=1000, batch=100, steps=200, steps_per_epoch=10)


def at(optimizer, *steps, run=RUN):
    schedule = optimizer.schedule(run)
    return np.array([schedule(step) for step in steps])


def test_both_scalings_give_the_papers_rate_for_simclr():
    run = Run(examples=1_281_167, batch=4096, steps=31_200, steps_per_epoch=312)
    np.testing.assert_allclose(LARS(learning_rate=0.3, scaling='linear').peak(run), 4.8)
    np.testing.assert_allclose(LARS(learning_rate=0.075, scaling='sqrt').peak(run), 4.8)
    np.testing.assert_allclose(LARS(learning_rate=4.8, scaling='none').peak(run), 4.8)
    # The warmup of 10 epochs ends at step 3120, where the rate is highest.
    rates = at(LARS(learning_rate=0.3), 0, 1560, 3120, 6240, run=run)
    np.testing.assert_allclose(rates[:3], [0, 2.4, 4.8], rtol=1e-6)
    assert rates[3] < rates[2]


def test_warmup_cosine_at_its_corners():
    sgd = SGD(learning_rate=2.0, scaling='none', warmup_epochs=4.0, final_learning_rate=0.5)
    rates = at(sgd, 0, 1, 20, 40, 120, 200, 300)
    assert rates[0] == 0
    np.testing.assert_allclose(rates, [0, 0.05, 1.0, 2.0, 1.25, 0.5, 0.5], rtol=1e-6)


@pytest.mark.usefixtures('x64')
def test_warmup_cosine_equals_its_formula_at_every_step():
    sgd = SGD(learning_rate=0.3, warmup_epochs=2.5, final_learning_rate=0.01)
    peak, final, warmup, total = 0.3 * 100 / 256, 0.01, 25, 200
    t = np.arange(total + 1)
    cosine = final + (peak - final) * 0.5 * (1 + np.cos(np.pi * (t - warmup) / (total - warmup)))
    expected = np.where(t < warmup, peak * t / warmup, cosine)
    np.testing.assert_allclose(at(sgd, *t), expected, rtol=1e-14)
    traced = jax.jit(jax.vmap(sgd.schedule(RUN)))(jnp.arange(total + 1))
    np.testing.assert_allclose(traced, expected, rtol=1e-14)


def test_without_warmup_the_first_step_has_the_full_rate():
    assert at(SGD(learning_rate=0.5, scaling='none'), 0) == 0.5


def test_a_warmup_as_long_as_the_run_only_rises():
    sgd = SGD(learning_rate=1.0, scaling='none', warmup_epochs=20.0)
    np.testing.assert_allclose(at(sgd, 0, 100, 199, 200), [0, 0.5, 0.995, 1], rtol=1e-6)


def test_constant_stays_after_the_warmup():
    sgd = SGD(learning_rate=1.0, scaling='none', warmup_epochs=1.0, decay='constant')
    np.testing.assert_allclose(at(sgd, 0, 5, 10, 11, 199), [0, 0.5, 1, 1, 1], rtol=1e-6)


def test_steps_fall_at_their_milestones():
    # RotNet on CIFAR: 0.1, 0.02, 0.004 and 0.0008 until epochs 60, 120, 160 and 200.
    run = Run(examples=1280, batch=128, steps=2000, steps_per_epoch=10)
    sgd = SGD(
        scaling='none',
        learning_rate=0.1,
        decay='steps',
        milestones=(60.0, 120.0, 160.0),
        milestone_factor=0.2,
    )
    rates = at(sgd, 0, 599, 600, 1199, 1200, 1599, 1600, 1999, run=run)
    expected = [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def decay_at(optimizer, *steps):
    schedule = optimizer.weight_decay_schedule(RUN)
    return np.array([schedule(step) for step in steps])


@pytest.mark.usefixtures('x64')
def test_weight_decay_follows_half_a_cosine_over_the_whole_run():
    t = np.arange(RUN.steps + 1)
    for first, final in ((0.04, 0.4), (0.4, 0.0)):
        adamw = AdamW(weight_decay=first, final_weight_decay=final, warmup_epochs=3.0)
        expected = final + (first - final) * (1 + np.cos(np.pi * t / RUN.steps)) / 2
        np.testing.assert_allclose(decay_at(adamw, *t), expected, rtol=1e-14, atol=1e-17)
        corners = decay_at(adamw, 0, 100, 200, 300)
        np.testing.assert_allclose(corners, [first, (first + final) / 2, final, final], atol=1e-16)


def test_without_a_final_weight_decay_it_is_constant():
    assert set(decay_at(AdamW(weight_decay=0.3), 0, 1, 100, 200)) == {0.3}


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('make', [AdamW, SGD])
def test_the_step_taken_uses_the_scheduled_weight_decay(make):
    optimizer = make(
        learning_rate=0.1, scaling='none', weight_decay=0.2, final_weight_decay=2.0, exclude=('b',)
    )
    if isinstance(optimizer, SGD):
        optimizer = dataclasses.replace(optimizer, momentum=0.0)
    transform, rate = optimizer.build(RUN), optimizer.schedule(RUN)
    params = {'a': jnp.full(3, 2.0), 'b': jnp.full(3, 2.0)}
    state = transform.init(params)
    for step in range(40):
        updates, state = transform.update(jax.tree.map(jnp.zeros_like, params), state, params)
        pull = rate(step) * optimizer.weight_decay_schedule(RUN)(step) * 2
        np.testing.assert_allclose(updates['a'], -pull, rtol=1e-12)
        np.testing.assert_array_equal(updates['b'], 0)


@pytest.mark.usefixtures('x64')
def test_lars_adapts_to_the_scheduled_weight_decay():
    lars = LARS(weight_decay=0.1, final_weight_decay=3.0, warmup_epochs=0.0, momentum=0.0)
    transform, rate = lars.build(RUN), lars.schedule(RUN)
    w, g = np.array([3.0, 4.0]), np.array([1.0, 0.0])
    params, grads = {'kernel': jnp.asarray(w)}, {'kernel': jnp.asarray(g)}
    state = transform.init(params)
    for step in range(40):
        updates, state = transform.update(grads, state, params)
        u = g + lars.weight_decay_schedule(RUN)(step) * w
        expected = -rate(step) * 0.001 * 5 / np.linalg.norm(u) * u
        np.testing.assert_allclose(updates['kernel'], expected, rtol=1e-12)


def test_the_step_taken_uses_the_scheduled_rate():
    sgd = SGD(momentum=0.0, learning_rate=1.0, scaling='none', warmup_epochs=2.0)
    transform, schedule = sgd.build(RUN), sgd.schedule(RUN)
    params = {'w': jnp.ones(3)}
    state = transform.init(params)
    for step in range(40):
        updates, state = transform.update({'w': jnp.ones(3)}, state, params)
        np.testing.assert_array_equal(updates['w'], -schedule(step))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: LARS(learning_rate=-0.1), 'learning_rate is -0.1; it must be 0 or more'),
        (lambda: LARS(learning_rate=float('nan')), 'learning_rate is nan'),
        (lambda: LARS(learning_rate=float('inf')), 'learning_rate is inf'),
        (lambda: LARS(weight_decay=-1e-6), 'weight_decay is -1e-06'),
        (lambda: AdamW(final_weight_decay=-0.4), 'final_weight_decay is -0.4; .* None'),
        (lambda: AdamW(final_weight_decay=float('inf')), 'final_weight_decay is inf'),
        (lambda: SGD(frozen=(('last(', 1.0),)), "'last.' is not a regular expression"),
        (lambda: SGD(frozen=(('last', -1.0),)), "frozen for 'last' is -1.0; it must be 0 or more"),
        (lambda: SGD(frozen=(('last', float('nan')),)), "frozen for 'last' is nan"),
        (lambda: LARS(warmup_epochs=-1.0), 'warmup_epochs is -1.0'),
        (lambda: LARS(momentum=1.0), r'momentum is 1.0; it must be in \[0, 1\)'),
        (lambda: LARS(trust=0.0), 'trust is 0.0; it must be above 0'),
        (lambda: LARS(exclude=('bias(',)), "'bias.' is not a regular expression"),
        (lambda: LARS(clip_global=0.0), 'clip_global is 0.0; .* None to not clip'),
        (lambda: LARS(clip_tensor=-1.0), 'clip_tensor is -1.0'),
        (lambda: SGD(decay='steps'), "milestones and decay 'steps' need each other"),
        (lambda: SGD(milestones=(3.0,)), "milestones and decay 'steps' need each other"),
        (lambda: SGD(decay='steps', milestones=(3.0, 2.0)), 'in rising order'),
        (lambda: SGD(decay='steps', milestones=(0.0, 2.0)), 'epochs above 0'),
        (lambda: SGD(decay='steps', milestones=(3.0,), milestone_factor=0.0), 'milestone_factor'),
        (lambda: SGD(decay='constant', final_learning_rate=0.1), 'only the cosine'),
        (lambda: SGD(momentum=0.0, nesterov=True), 'Nesterov needs momentum'),
        (lambda: SGD(momentum=-0.9), 'momentum is -0.9'),
        (lambda: AdamW(betas=(0.9, 1.0)), 'betas'),
        (lambda: AdamW(epsilon=0.0), 'epsilon'),
        (
            lambda: SGD(warmup_epochs=21.0).schedule(RUN),
            '21.0 epochs is 210 steps, longer than the run of 200; use warmup_epochs 20 at most',
        ),
        (lambda: SGD(warmup_epochs=21.0).build(RUN), 'longer than the run'),
        (
            lambda: SGD(decay='steps', milestones=(5.0, 20.0)).schedule(RUN),
            r'steps \[50, 200\]; they must lie between .* step 0, .* step 200',
        ),
        (
            lambda: SGD(decay='steps', milestones=(5.0,), warmup_epochs=6.0).schedule(RUN),
            'the end of the warmup, step 60',
        ),
        (
            lambda: SGD(learning_rate=0.1, final_learning_rate=0.2).schedule(RUN),
            'final_learning_rate 0.2 is above the highest rate 0.0390625',
        ),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    'optimizer',
    [
        LARS(),
        AdamW(warmup_epochs=40.0, final_learning_rate=1e-4, final_weight_decay=0.4),
        SGD(decay='steps', milestones=(120.0, 160.0)),
    ],
)
def test_smoke_fits_into_three_steps_and_keeps_the_rule(optimizer):
    run = Run(examples=64, batch=16, steps=3, steps_per_epoch=4)
    with pytest.raises(ValueError):
        optimizer.schedule(run)
    small = optimizer.smoke()
    assert at(small, 0, run=run) > 0
    rate_fields = ('warmup_epochs', 'decay', 'milestones', 'final_learning_rate')
    kept = {name: getattr(optimizer, name) for name in rate_fields}
    assert dataclasses.replace(small, **kept) == optimizer


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: LARS(form='S'), "form is 'S'; it must be one of .'C', 'P'."),
        (lambda: SGD(scaling='log'), "scaling is 'log'; it must be one of"),
        (lambda: SGD(decay='linear'), "decay is 'linear'; it must be one of"),
        (lambda: AdamW(betas=(0.9,)), 'betas'),
    ],
)
def test_bad_values_are_refused_without_type_checks_too(make, message, monkeypatch):
    # The tests run with every annotation checked; a user's program does not.
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
    with pytest.raises(ValueError, match=message):
        make()


FROZEN = (('^head/last', 1.0), ('stem', float('inf')))


@pytest.mark.parametrize(
    'optimizer',
    [
        LARS(form='P'),
        AdamW(clip_global=1.0, final_weight_decay=0.4),
        SGD(exclude=('a',), frozen=FROZEN),
    ],
)
def test_optimizers_survive_a_configuration_file(optimizer):
    back = config.decode(json.loads(json.dumps(config.encode(optimizer))))
    assert back == optimizer and hash(back) == hash(optimizer)


def test_freezing_and_weight_decay_are_edited_on_the_command_line():
    line = '--frozen ^head/last 1 stem inf --final-weight-decay 0.4'
    edited = overrides.apply(AdamW(), line.split(), 'ssljax')
    assert edited == AdamW(frozen=FROZEN, final_weight_decay=0.4)
    back = overrides.apply(edited, ['--frozen', '--final-weight-decay', 'None'], 'ssljax')
    assert back == AdamW()
