"""Flipped bits, full disks and kills cost at most the checkpoint being written."""

import contextlib
import errno
import json
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from checkpoint_states import bits, like, make_state, one_after_another, saved

from ssljax.train import digest
from ssljax.train.checkpoint import CheckpointError, Checkpoints
from ssljax.train.shelf import Shelf

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'checkpoints'


@pytest.fixture
def opened(folder):
    with one_after_another(folder) as open_:
        yield open_


def flip(path, position, bit=3):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


def files(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())


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


def test_a_bucket_that_is_out_of_reach_fails_in_words_and_not_in_silence(opened, monkeypatch):
    checkpoints = opened()
    saved(checkpoints, 1)

    def unreachable(*_):
        raise tf.errors.UnavailableError(None, None, 'the bucket does not answer')

    with monkeypatch.context() as patch:
        for broken in ('finish', 'clear', 'scores'):
            patch.setattr(Shelf, broken, unreachable)
        checkpoints.save(2, make_state(2), {}, None)
        with pytest.raises(CheckpointError, match=r'step 2 could not .* does not answer'):
            checkpoints.wait()


def test_old_checkpoints_that_a_bucket_keeps_are_no_failure(opened, folder, monkeypatch, caplog):
    def unreachable(*_):
        raise tf.errors.UnavailableError(None, None, 'the bucket does not answer')

    checkpoints = opened()
    with monkeypatch.context() as patch:
        patch.setattr(Shelf, 'tidy', unreachable)
        saved(checkpoints, 1)
    assert 'cannot remove old checkpoints' in caplog.text
    assert checkpoints.steps() == [1]


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
