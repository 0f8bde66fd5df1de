"""A checkpoint is either exactly the state that was saved or is not there."""

import contextlib
import dataclasses
import errno
import json
import logging
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.train import digest
from ssljax.train.checkpoint import CheckpointError, Checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Formed as `core.TrainState`; its fields are not typed, so that they may be shapes too."""

    step: Any
    params: Any
    opt: Any
    method: Any
    key: Any


HERE = pathlib.Path(__file__).parent


def make_state(seed, width=16):
    """A state with every kind of leaf a method may carry."""
    rng = np.random.default_rng(seed)
    params = {
        'encoder': {'stem': jnp.asarray(rng.normal(size=(width, 8)), jnp.float32)},
        'head': {'half': jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16)},
    }
    return State(
        step=jnp.int32(seed),
        params=params,
        opt=optax.adamw(1e-3).init(params),
        method={
            'queue': jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
            'filled': jnp.array([True, False]),
            'index': jnp.asarray(rng.integers(0, 255, 8), jnp.uint8),
            'momentum': jnp.float32(rng.random()),
            'empty': jnp.zeros((0, 4)),
            'stats': {},
            'none': None,
            'keys': jax.random.split(jax.random.key(seed, impl='rbg'), 8),
        },
        key=jax.random.key(seed),
    )


def like(state, sharding=None):
    """The state's shapes, placed on one device or as `sharding` says."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def bits(state):
    """Names, dtypes and bytes of all leaves, and the tree they hang on."""

    def plain(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    leaves, tree = jax.tree.flatten(state)
    return tree, [(str(x.dtype), x.shape, np.asarray(plain(x)).tobytes()) for x in leaves]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'checkpoints'


@pytest.fixture
def opened(folder):
    """Opens the folder anew at each call, as a process started later would."""
    with contextlib.ExitStack() as stack:
        earlier = []

        def open_(last=9, best=0):
            for checkpoints in earlier:
                checkpoints.wait()
            earlier.append(Checkpoints(folder, last, best))
            return stack.enter_context(contextlib.closing(earlier[-1]))

        yield open_


def saved(checkpoints, *steps):
    """Saves `make_state(step)` for every step."""
    for step in steps:
        assert checkpoints.save(step, make_state(step), {'skipped': step}, None)
    checkpoints.wait()


def flip(path, position, bit=3):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


def files(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())


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


def test_an_old_checkpoint_stays_until_the_new_one_has_its_digest(opened, folder, monkeypatch):
    checkpoints = opened(last=1)
    saved(checkpoints, 1)
    seen, write = [], digest.write

    def watched(path, record):
        seen.append((folder / '1' / digest.NAME).exists())
        write(path, record)

    monkeypatch.setattr(digest, 'write', watched)
    saved(checkpoints, 2)
    assert seen == [True]
    assert checkpoints.steps() == [2]
    assert not (folder / '1').exists()


def test_a_flipped_bit_in_any_file_is_seen_and_the_one_before_is_taken(opened, folder):
    saved(opened(), 1, 2)
    rng = np.random.default_rng(0)
    names = [p.relative_to(folder / '2').as_posix() for p in files(folder / '2')]
    assert any('/d/' in n for n in names), 'payload'
    assert {'manifest.ocdbt', '_METADATA', digest.NAME} <= set(names)
    for name in names:
        path = folder / '2' / name
        size = path.stat().st_size
        position, bit = int(rng.integers(size)), int(rng.integers(8))
        flip(path, position, bit)
        checkpoints = opened()
        state, meta = checkpoints.restore(like(make_state(0)))
        assert bits(state) == bits(make_state(1)), name
        assert meta == {'skipped': 1}
        assert ('digest' if name == digest.NAME else name) in checkpoints.rejected['2']
        flip(path, position, bit)
    assert opened().restore(like(make_state(0)))[1] == {'skipped': 2}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (lambda c: truncate(next((c / 'd').iterdir())), 'bytes, its digest says'),
        (lambda c: (c / '_METADATA').unlink(), 'file _METADATA is missing'),
        (lambda c: (c / 'd' / 'more').write_bytes(b'?'), 'file d/more is not in its digest'),
        (lambda c: (c / digest.NAME).unlink(), 'it has no digest'),
        (lambda c: truncate(c / digest.NAME), 'its digest was changed or cut short'),
        (lambda c: (c / digest.NAME).write_bytes(b''), 'its digest was changed or cut short'),
    ],
)
def test_a_damaged_checkpoint_is_named_and_skipped(opened, folder, caplog, damage, reason):
    saved(opened(), 1, 2)
    damage(folder / '2')
    state, _ = opened().restore(like(make_state(0)))
    assert bits(state) == bits(make_state(1))
    assert str(folder / '2') in caplog.text
    assert reason in caplog.text
    with pytest.raises(CheckpointError, match='2 is damaged'):
        opened().restore_step(2, like(make_state(0)))


def test_when_all_are_damaged_it_does_not_start_over_silently(opened, folder):
    saved(opened(), 1, 2)
    for step in (1, 2):
        (folder / str(step) / '_METADATA').unlink()
    with pytest.raises(CheckpointError, match='remove that folder to start over') as error:
        opened().restore(like(make_state(0)))
    assert str(folder) in str(error.value)
    assert '1: file _METADATA is missing' in str(error.value)
    assert '2: file _METADATA is missing' in str(error.value)


def test_a_damaged_step_is_saved_again_and_the_damaged_one_is_put_aside(opened, folder):
    saved(opened(), 1, 2)
    flip(folder / '2' / '_METADATA', 0)
    before = {p.name: p.read_bytes() for p in files(folder / '2')}
    again = opened(last=2)
    assert int(again.restore(like(make_state(0)))[0].step) == 1
    saved(again, 2)
    assert again.rejected == {}
    assert {p.name: p.read_bytes() for p in files(folder / 'rejected' / '2')} == before
    assert opened().restore(like(make_state(0)))[1] == {'skipped': 2}
    saved(again, 3)
    assert opened().steps() == [2, 3]


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


def test_what_a_kill_left_is_removed_at_the_next_save(opened, folder):
    for name in ('2', '3.orbax-checkpoint-tmp'):
        (folder / name).mkdir(parents=True)
        (folder / name / 'half').write_bytes(b'x')
    for name in ('2.partial', '3.partial'):
        (folder / name).touch()
    checkpoints = opened()
    assert checkpoints.restore(like(make_state(0))) is None
    saved(checkpoints, 3)
    assert [p.name for p in folder.iterdir()] == ['3']


def assert_survives(checkpoints, folder, big, error_number):
    """Saving `big` fails in words; the one before is whole; nothing is left; it can go on."""
    assert checkpoints.save(2, big, {}, None)
    with pytest.raises(CheckpointError, match='checkpoint of step 2 could not be written') as error:
        checkpoints.wait()
    assert isinstance(error.value.__cause__, OSError)
    assert error.value.__cause__.errno == error_number
    assert 'The checkpoint of step 1 is whole' in str(error.value)
    assert 'Make room' in str(error.value)
    checkpoints.wait()  # told once
    assert [p.name for p in folder.iterdir()] == ['1']
    assert bits(checkpoints.restore(like(make_state(0)))[0]) == bits(make_state(1))
    saved(checkpoints, 3)
    assert checkpoints.steps() == [1, 3]


@pytest.fixture
def large():
    rng = np.random.default_rng(0)
    return {'w': jnp.asarray(rng.normal(size=(1 << 20,)), jnp.float32)}


def test_a_limit_on_file_size_fails_in_words_and_costs_nothing(opened, folder, large, capfd):
    checkpoints = opened()
    saved(checkpoints, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert_survives(checkpoints, folder, large, errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr().err == ''


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MiB; where none may be mounted, a process's limit on file sizes."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(disk)]
    mounted = shutil.which('mount') and not subprocess.run(mount, capture_output=True).returncode
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield disk, errno.ENOSPC if mounted else errno.EFBIG
    if mounted:
        subprocess.run(['umount', str(disk)], check=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_in_words_and_costs_nothing(small_disk, large, capfd):
    disk, error_number = small_disk
    with contextlib.closing(Checkpoints(disk / 'run', 3, 0)) as checkpoints:
        saved(checkpoints, 1)
        assert_survives(checkpoints, disk / 'run', large, error_number)
    assert capfd.readouterr().err == ''


def test_a_disk_that_fills_up_under_the_digest_costs_nothing(opened, folder, monkeypatch):
    checkpoints = opened()
    saved(checkpoints, 1)

    def full(path, record):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(digest, 'write', full)
        checkpoints.save(2, make_state(2), {}, None)
        with pytest.raises(CheckpointError, match='No space left on device'):
            checkpoints.save(3, make_state(3), {}, None)
    assert [p.name for p in folder.iterdir()] == ['1']


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / 'file').write_text('')
    with (
        contextlib.closing(Checkpoints(tmp_path / 'file' / 'run', 1, 0)) as checkpoints,
        pytest.raises(CheckpointError, match='Not a directory'),
    ):
        checkpoints.save(1, make_state(1), {}, None)


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


@pytest.mark.slow
def test_a_process_killed_at_any_instant_leaves_its_last_checkpoint(tmp_path):
    """Each child resumes what the one before left, checks it bit for bit, and is killed in turn."""
    folder, rng = tmp_path / 'run', np.random.default_rng(0)
    inside, promised = 0, 0
    for attempt in range(6):
        command = [sys.executable, HERE / 'save_forever.py', folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            first = json.loads(child.stdout.readline())
            assert first['restored'] >= promised, first
            for _ in range(2):
                promised = json.loads(child.stdout.readline())['committed']
            if attempt % 2:
                caught = _stopped_inside_a_save(child, folder)
            else:
                time.sleep(rng.random() * 0.2)
                caught = False
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:  # what it still said before it died
                if line.endswith('}\n'):
                    promised = json.loads(line)['committed']
            inside += caught
    assert inside == 3
    last = subprocess.run(
        [sys.executable, HERE / 'save_forever.py', folder, '--once'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(last.stdout)['restored'] >= promised >= 6


def _stopped_inside_a_save(child, folder):
    """Stops the child at an instant when Orbax's files are half there."""
    for _ in range(1000):
        if any('orbax-checkpoint-tmp' in p.name for p in folder.iterdir()):
            child.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            if any('orbax-checkpoint-tmp' in p.name for p in folder.iterdir()):
                return True
            child.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    return False


@pytest.mark.slow
def test_two_processes_save_and_agree_on_what_to_restore(tmp_path):
    """Process 0 alone sees the damage; both load the same older checkpoint."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, HERE / 'two_processes.py', tmp_path / 'run', str(port), str(i)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    out = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], out
    said = [json.loads(text.splitlines()[-1]) for text in out]
    truths = dict.fromkeys(['none', 'damaged', 'refused'], True)
    assert said[0] == said[1] == {'steps': [1, 2], 'restored': 1, **truths}
