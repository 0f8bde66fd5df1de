"""Optimizers side by side: each part moves as if the others did not exist."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import config, overrides
from ssljax.core import Run, TrainState
from ssljax.experiment import Experiment
from ssljax.methods.rotation import Rotation
from ssljax.optim import LARS, SGD, AdamW, ByPath, Part
from ssljax.optim.restart import restart
from ssljax.train.leaves import named
from ssljax.train.placement import Placement, make_mesh
from ssljax.views.supervised import CropFlip

RUN = Run(examples=256 * 4, batch=256, steps=12, steps_per_epoch=4)
DEFAULT = AdamW(learning_rate=0.01, weight_decay=0.1, warmup_epochs=1.0, clip_global=1.0)
JUDGE = SGD(learning_rate=0.3, weight_decay=0.05, decay='constant', clip_global=5.0)
GAME = ByPath(default=DEFAULT, parts=(Part('^discriminator/', JUDGE),))


def some_params(seed=0):
    draw = np.random.default_rng(seed).normal
    return {
        'decoder': {'up': {'kernel': draw(size=(4, 8)), 'bias': draw(size=8)}},
        'discriminator': {'conv': {'kernel': draw(size=(8, 3)), 'bias': draw(size=3)}},
        'encoder': {'conv': {'kernel': draw(size=(2, 4))}, 'norm': {'scale': draw(size=4)}},
    }


GRADS = [some_params(seed) for seed in range(1, 7)]


def walk(transform, params, grads):
    """The parameters after every step."""
    params, seen = jax.tree.map(jnp.asarray, params), []
    state = transform.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, jax.tree.map(jnp.asarray, grad))
        seen.append(params)
    return seen


def only(names, trees):
    return [{name: tree[name] for name in names} for tree in trees]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('other', [JUDGE, LARS(warmup_epochs=1.0), AdamW(learning_rate=0.02)])
def test_is_two_optimizers_apart(other):
    game = ByPath(DEFAULT, (Part('^discriminator/', other),))
    together = walk(game.build(RUN), some_params(), GRADS)
    for names, optimizer in ((['discriminator'], other), (['decoder', 'encoder'], DEFAULT)):
        params = only(names, [some_params()])[0]
        apart = walk(optimizer.build(RUN), params, only(names, GRADS))
        for a, b in zip(only(names, together), apart, strict=True):
            assert bits(a) == bits(b)


def test_a_part_does_not_feel_the_gradient_of_another():
    times = lambda tree: jax.tree.map(lambda g: 1e4 * g, tree)
    wild = [{**grad, 'discriminator': times(grad['discriminator'])} for grad in GRADS]
    calm, moved = (walk(GAME.build(RUN), some_params(), grads)[-1] for grads in (GRADS, wild))
    names = ['decoder', 'encoder']
    assert bits(only(names, [calm])) == bits(only(names, [moved]))
    assert bits(calm['discriminator']) != bits(moved['discriminator'])


def test_each_part_has_its_own_rate():
    plain = lambda rate: SGD(learning_rate=rate, scaling='none', momentum=0.0, decay='constant')
    game = ByPath(plain(0.01), (Part('^discriminator/', plain(0.001)), Part('bias$', plain(0.1))))
    ones = jax.tree.map(np.ones_like, some_params())
    [after] = walk(game.build(RUN), some_params(), [ones])
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), some_params(), after)
    np.testing.assert_allclose(moved['encoder']['conv']['kernel'], 0.01, rtol=1e-4)
    # The first pattern found counts: the discriminator's biases are its own.
    np.testing.assert_allclose(moved['discriminator']['conv']['bias'], 0.001, rtol=1e-3)
    np.testing.assert_allclose(moved['decoder']['up']['bias'], 0.1, rtol=1e-4)


def test_the_logged_rate_is_the_defaults():
    for step in (0, 3, 7):
        assert float(GAME.schedule(RUN)(step)) == float(DEFAULT.schedule(RUN)(step))
    assert float(GAME.schedule(RUN)(4)) != float(JUDGE.schedule(RUN)(4))


def test_a_pattern_that_takes_nothing_is_an_error():
    for parts in (('discrimnator',), ('^d', '^discriminator/')):
        game = ByPath(DEFAULT, tuple(Part(pattern, JUDGE) for pattern in parts))
        with pytest.raises(ValueError, match=re.escape(f'is left for the part {parts[-1]!r}')):
            game.build(RUN).init(some_params())
    with pytest.raises(ValueError, match='not a regular expression'):
        Part('(', JUDGE)
    with pytest.raises(ValueError, match='there are no parts'):
        ByPath(DEFAULT, ())


def test_parts_may_take_everything():
    every = ByPath(DEFAULT, (Part('', JUDGE),))
    alone = walk(JUDGE.build(RUN), some_params(), GRADS)
    assert bits(walk(every.build(RUN), some_params(), GRADS)) == bits(alone)


def experiment():
    return Experiment(method=Rotation(), recipe=CropFlip(), optimizer=GAME, epochs=1.0)


def test_an_experiment_keeps_it_through_json_overrides_and_smoke():
    whole = experiment()
    assert config.decode(json.loads(json.dumps(config.encode(whole)))) == whole
    given = ['--optimizer.parts.0.optimizer.learning_rate', '0.7', '--optimizer.default.decay',
             'constant']  # fmt: skip
    edited = overrides.apply(whole, given, 'ssljax')
    assert edited.optimizer.parts[0].optimizer == dataclasses.replace(JUDGE, learning_rate=0.7)
    assert edited.optimizer.default == dataclasses.replace(DEFAULT, decay='constant')
    changed = [path for path, _, _ in config.diff(config.encode(whole), config.encode(edited))]
    assert changed == [
        'optimizer.default.decay', 'optimizer.parts.0.optimizer.learning_rate'
    ]  # fmt: skip
    small = whole.smoke().optimizer
    assert small == ByPath(DEFAULT.smoke(), (Part('^discriminator/', JUDGE.smoke()),))
    assert small.default.warmup_epochs == 0


def test_its_state_is_saved_and_split_as_any_other():
    params = {'discriminator': {'kernel': jnp.zeros((256, 512))}, 'encoder': jnp.zeros((512, 256))}
    transform = GAME.build(RUN)

    def init():
        scalar = jnp.zeros((), jnp.int32)
        return TrainState(scalar, params, transform.init(params), {}, jax.random.key(0))

    abstract = Placement(make_mesh(fsdp=8)).abstract(init)
    big = {name: leaf for name, leaf in named(abstract.opt).items() if leaf.size > 1}
    # Two moments of the default's parameter, one of the part's, and none of the other's.
    assert sorted(leaf.shape for leaf in big.values()) == [(256, 512), (512, 256), (512, 256)]
    assert all('fsdp' in leaf.sharding.spec for leaf in big.values())
    _, after = jax.eval_shape(transform.update, params, abstract.opt, params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, abstract.opt)


def test_the_state_of_one_parameter_can_start_afresh():
    transform, params = GAME.build(RUN), jax.tree.map(jnp.asarray, some_params())
    fresh = transform.init(params)
    _, used = transform.update(jax.tree.map(jnp.asarray, GRADS[0]), fresh, params)
    again = restart(transform, used, params, ['^discriminator/'])
    old, new, first = named(used), named(again), named(fresh)
    for name in new:
        of_judge = 'discriminator' in name
        assert bits(new[name]) == bits(first[name] if of_judge else old[name]), name
    assert any('discriminator' in name and bits(old[name]) != bits(first[name]) for name in new)
