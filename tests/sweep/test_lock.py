"""One holder at a time, and none when its processes are gone."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from ssljax.sweep import lock


def test_only_one_holds_a_folder(tmp_path):
    first = lock.take(tmp_path / 'run')
    assert first is not None
    assert lock.take(tmp_path / 'run') is None
    assert lock.take(tmp_path / 'other') is not None
    os.close(first)
    assert lock.take(tmp_path / 'run') is not None


def holder(descriptor):
    program = 'print("here", flush=True); input()'
    process = subprocess.Popen(
        [sys.executable, '-c', program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(descriptor,),
    )
    assert process.stdout.readline() == b'here\n'
    return process


def test_a_child_holds_on_when_its_parent_lets_go_and_a_kill_frees(tmp_path):
    descriptor = lock.take(tmp_path)
    child = holder(descriptor)
    os.close(descriptor)  # as when the parent dies
    assert lock.take(tmp_path) is None
    child.kill()
    child.communicate()
    assert lock.take(tmp_path) is not None


def test_waiting_ends_when_it_is_free(tmp_path):
    program = (
        'import os, pathlib, sys, time; from ssljax.sweep import lock\n'
        'with lock.held(pathlib.Path(sys.argv[1])):\n'
        '    print("mine", flush=True); time.sleep(0.3); pathlib.Path(sys.argv[2]).touch()\n'
    )
    mark = tmp_path / 'mark'
    process = subprocess.Popen(
        [sys.executable, '-c', program, str(tmp_path / 'run'), str(mark)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b'mine\n'
    assert not mark.exists()
    with lock.held(tmp_path / 'run'):
        assert mark.exists()
    process.communicate()


def test_it_says_who_has_it_and_since_when(tmp_path):
    assert lock.holder(tmp_path) is None
    descriptor = lock.take(tmp_path)
    found = lock.holder(tmp_path)
    assert found.pid == os.getpid() and found.here and found.since.startswith('20')
    program = (
        'import pathlib, sys; from ssljax.sweep import lock; lock.sign(pathlib.Path(sys.argv[1]))'
    )
    child = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)])
    child.wait()
    assert lock.holder(tmp_path).pid == child.pid
    assert lock.take(tmp_path) is None  # to sign is not to let go
    os.close(descriptor)
    (tmp_path / lock.NAME).write_text('')  # as when the disk was full
    assert lock.holder(tmp_path) is None and lock.take(tmp_path) is not None


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.raises(lock.NoLocksError, match='No locks available'):
        lock.take(tmp_path)
