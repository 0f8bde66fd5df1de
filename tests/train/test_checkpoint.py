"""A checkpoint is exactly the state that was saved, and those that should be kept are."""

import dataclasses
import logging
import pwd
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import bits, like, make_state, one_after_another, saved
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.train.checkpoint import CheckpointError, Checkpoints


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'checkpoints'


@pytest.fixture
def opened(folder):
    with one_after_another(folder) as open_:
        yield open_


def test_every_kind_of_leaf_comes_back_bit_for_bit(opened):
    state = make_state(7)
    assert opened().save(7, state, {'skipped': 3, 'data': 'sha256:1'}, 0.5)
    restored, meta = opened().restore(like(state))
    assert bits(restored) == bits(state)
    assert isinstance(restored.opt[0], optax.ScaleByAdamState)
    assert meta == {'skipped': 3, 'data': 'sha256:1'}
    np.testing.assert_array_equal(
        jax.random.bits(restored.key, (4,)), jax.random.bits(state.key, (4,))
    )


def test_float64_comes_back_bit_for_bit(opened, x64):
    state = {'w': jnp.linspace(0, 1, 7) ** 3, 'step': jnp.int64(2**40)}
    opened().save(1, state, {}, None)
    assert bits(opened().restore(like(state))[0]) == bits(state)


def on(devices, fsdp):
    """Places arrays over `devices` devices: replicated, or rows that divide over `fsdp`."""
    shape = (devices // fsdp, fsdp)
    mesh = jax.make_mesh(
        shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )

    def place(x):
        rows = x.ndim > 0 and x.shape[0] > 0 and x.shape[0] % fsdp == 0
        return NamedSharding(mesh, P('fsdp') if rows else P())

    return place


@pytest.mark.slow
@pytest.mark.parametrize('source', [(8, 1), (8, 8), (1, 1)])
@pytest.mark.parametrize('target', [(1, 1), (2, 2), (8, 4)])
def test_a_state_lands_where_asked_on_any_number_of_devices(opened, source, target):
    state = make_state(3)
    there, here = on(*source), on(*target)
    opened().save(3, jax.tree.map(lambda x: jax.device_put(x, there(x)), state), {}, None)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here(x)), state)
    restored, _ = opened().restore(wanted)
    assert bits(restored) == bits(state)
    for got, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert got.sharding.is_equivalent_to(asked.sharding, got.ndim)


@pytest.mark.parametrize('fsdp', [1, 8])
def test_what_is_saved_is_the_state_at_the_call_though_its_buffers_are_donated(opened, fsdp):
    place = on(8, fsdp)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {f'w{i}': jnp.zeros((512, 512)) for i in range(8)}
    state = step(jax.tree.map(lambda x: jax.device_put(x, place(x)), state))
    shapes = like(state)
    checkpoints = opened()
    checkpoints.save(1, state, {}, None)
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    restored, _ = checkpoints.restore(shapes)
    assert {float(v) for w in restored.values() for v in np.unique(w)} == {1.0}


def test_without_a_checkpoint_there_is_nothing_to_restore(opened, folder):
    assert opened().restore(like(make_state(0))) is None
    assert opened().steps() == []
    assert opened().best_step() is None
    assert not folder.exists()


def test_the_last_and_the_best_are_kept(opened):
    checkpoints = opened(last=2, best=1)
    for step, score in [(1, 0.1), (2, 0.9), (3, None), (4, float('nan')), (5, 0.2)]:
        checkpoints.save(step, make_state(step), {}, score)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert opened().best_step() == 2
    state, _ = opened().restore_step(2, like(make_state(0)))
    assert bits(state) == bits(make_state(2))


def test_after_going_back_the_steps_left_behind_do_not_come_back(opened, folder):
    saved(opened(), 1, 2, 3)
    back = opened()
    state, _ = back.restore_step(1, like(make_state(0)))
    other = make_state(22)
    back.save(2, other, {}, None)
    back.wait()
    assert back.steps() == [1, 2]
    assert bits(opened().restore(like(state))[0]) == bits(other)
    assert (folder / 'rejected' / '3').exists()


def test_the_same_step_may_be_saved_twice(opened, folder):
    checkpoints = opened(last=2)
    for seed in (5, 6, 7):
        checkpoints.save(1, make_state(seed), {}, None)
    checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert bits(opened().restore(like(make_state(0)))[0]) == bits(make_state(7))
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    'spoil',
    [
        lambda s: s.params['head'].update(half=s.params['head']['half'].at[1, 1].set(jnp.nan)),
        lambda s: s.opt[0].mu['encoder'].update(stem=s.opt[0].mu['encoder']['stem'] + jnp.inf),
        lambda s: s.method.update(momentum=jnp.float32(-jnp.inf)),
    ],
)
def test_a_state_that_is_not_finite_is_never_committed(opened, caplog, spoil):
    checkpoints = opened()
    saved(checkpoints, 1)
    state = make_state(2)
    spoil(state)
    assert not checkpoints.save(2, state, {}, 0.9)
    assert checkpoints.steps() == [1]
    assert 'step 2 is not saved, not finite: ' in caplog.text
    assert any(name in caplog.text for name in ('head/half', 'mu/encoder/stem', 'method/momentum'))
    saved(checkpoints, 3)
    assert checkpoints.steps() == [1, 3]


def test_a_state_of_another_structure_is_refused_by_name(opened):
    saved(opened(), 1)
    other = make_state(1, width=32)
    other.method['bank'] = jnp.zeros((4, 4))
    del other.method['queue']
    with pytest.raises(CheckpointError) as error:
        opened().restore(like(other))
    text = str(error.value)
    assert 'params/encoder/stem is float32[16, 8] in it and float32[32, 8] here' in text
    assert 'method/bank (float32[4, 4]) is not in it' in text
    assert 'method/queue (float32[16, 4]) is only in it' in text
    assert 'another folder' in text
    assert len(text) < 1200
    state = make_state(1)
    keyed = dataclasses.replace(state, key=jax.random.key(0, impl='rbg'))
    with pytest.raises(CheckpointError, match='key is key<fry>'):
        opened().restore(like(keyed))


def test_a_step_that_is_not_there_is_refused_with_those_that_are(opened):
    saved(opened(), 10, 20)
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 15.*\[10, 20\]'):
        opened().restore_step(15, like(make_state(0)))


def test_arguments_that_make_no_sense_are_refused(opened, folder):
    with pytest.raises(ValueError, match='at least one last checkpoint'):
        Checkpoints(folder, 0, 1)
    with pytest.raises(ValueError, match='meta cannot be kept as JSON'):
        opened().save(1, make_state(1), {'when': np.zeros(3)}, None)
    with pytest.raises(ValueError, match=r'params/w is 0\.5, a state holds arrays only'):
        opened().save(1, {'params': {'w': 0.5}}, {}, None)


def test_meta_is_taken_at_the_call(opened):
    meta = {'skipped': 1}
    checkpoints = opened()
    checkpoints.save(1, make_state(1), meta, None)
    meta['skipped'] = 2
    assert checkpoints.restore(like(make_state(0)))[1] == {'skipped': 1}


def test_a_user_without_a_name_saves_and_restores(opened, monkeypatch):
    """As in a container that runs as any number."""

    def nobody(number):
        raise KeyError(f'uid not found: {number}')

    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    state = make_state(1)
    opened().save(1, state, {}, None)
    assert bits(opened().restore(like(state))[0]) == bits(state)


def test_looking_at_a_run_in_progress_changes_nothing(opened, folder):
    saved(opened(), 1)
    (folder / '2.partial').touch()
    (folder / '2').mkdir()
    (folder / '2.orbax-checkpoint-tmp').mkdir()
    before = sorted(folder.rglob('*'))
    reader = opened()
    assert int(reader.restore(like(make_state(0)))[0].step) == 1
    assert reader.rejected == {}
    assert reader.steps() == [1]
    reader.close()
    assert sorted(folder.rglob('*')) == before


def test_importing_is_cheap():
    code = 'import sys, ssljax.train.checkpoint; print([m for m in sys.modules if "." not in m])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 'jax' in done.stdout
    assert 'orbax' not in done.stdout
    assert 'tensorflow' not in done.stdout


def test_orbax_says_nothing(opened, caplog):
    with caplog.at_level(logging.INFO):
        saved(opened(), 1)
    assert not [r for r in caplog.records if 'orbax' in r.pathname]
