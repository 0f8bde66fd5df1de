"""Several real processes are one run: the same numbers as one, one folder, one end."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import method_run
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ssljax.definitions import load_experiment
from ssljax.evaluate.monitor import monitor
from ssljax.sweep import lock
from ssljax.train import folder as folders
from ssljax.train import loop, metrics
from ssljax.train.folder import RunFolder
from ssljax.train.interrupt import EXIT_INTERRUPTED
from ssljax.train.processes import Asked
from ssljax.train.session import Session

HERE = pathlib.Path(__file__).parent
LAUNCHER = HERE.parents[1] / 'launch' / 'local_multiprocess.py'
SSLJAX = (sys.executable, '-c', 'from ssljax.cli import main; main()')
STEPS = 40
EXPERIMENT = f"""
import os
import time

from ssljax.data.batches import Batches
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train import placement
from ssljax.views.simclr import SimCLRViews

if 'JAX_PROCESS_ID' in os.environ:  # slow enough for a signal to come between two steps
    read = Batches.__next__
    Batches.__next__ = lambda self: (time.sleep(0.1), read(self))[1]
    placement.SMALLEST_SHARDED = 16

def config():
    return Experiment(
        method=SimCLR(
            SmallResNet(stem_patch=4, widths=(8,), blocks=(1,)), ProjectionHead(widths=(16, 8)), 1.0
        ),
        recipe=SimCLRViews(size=16, blur=0.0),
        data=Data(name='made_images', train='train[:96]'),
        optimizer=SGD(learning_rate=1e-3, scaling='none'),
        batch=16,
        steps={STEPS},
        evaluation=Evaluation(every=5.0, batch=64),
        checkpoint=Checkpointing(every=7, keep_last=2),
        log_every=1,
    )
"""


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    file = tmp_path_factory.mktemp('experiment') / 'experiment.py'
    file.write_text(EXPERIMENT)
    return file


def start(command, count=1, devices=1):
    """A command, in as many processes of so many devices each."""
    launched = () if count == 1 else (sys.executable, LAUNCHER, str(count), '--')
    return subprocess.Popen(
        [*launched, *map(str, command)],
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(experiment, folder, count=1):
    return start((*SSLJAX, 'train', experiment, '--folder', folder), count)


def ended(process, within=500):
    try:
        output, _ = process.communicate(timeout=within)
    finally:
        process.kill()
    return process.returncode, output


def at_step(process, folder, step, patience=300):
    end = time.monotonic() + patience
    while last_step(folder) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, 'it never came so far'
        time.sleep(0.05)


def last_step(folder):
    return max((r['step'] for r in metrics.read(folder)), default=0)


def losses(folder):
    return {r['step']: r['loss'] for r in metrics.read(folder) if 'loss' in r}


def children(process):
    path = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
    return [int(number) for number in path.read_text().split()]


def compared(names, count, tmp_path):
    """Runs methods in so many processes, and here on one device; both to rounding."""
    output = tmp_path / 'arrays.npz'
    code, said = ended(start((sys.executable, HERE / 'method_run.py', output, *names), count))
    assert code == 0, said
    found = dict(np.load(output))
    assert found.pop('processes') == count
    wanted = {}
    for name in names:
        wanted |= method_run.steps(name, devices=1)[0]
    method_run.assert_close(found, wanted)


@pytest.mark.slow
def test_two_processes_compute_what_one_device_does(tmp_path, x64):
    compared(('simclr',), 2, tmp_path)


@pytest.mark.slow
def test_two_processes_agree_on_queues_prototypes_and_clusters(tmp_path, x64):
    compared(('moco_v2', 'swav', 'deepcluster'), 2, tmp_path)


@pytest.mark.slow
def test_four_processes_compute_what_one_device_does(tmp_path, x64):
    compared(('simclr', 'moco_v2', 'swav', 'deepcluster'), 4, tmp_path)


@pytest.mark.slow
def test_told_to_stop_all_save_one_step_and_any_number_of_devices_goes_on(experiment, tmp_path):
    parts, whole = tmp_path / 'parts', tmp_path / 'whole'
    process = train(experiment, parts, 2)
    at_step(process, parts, 3)
    process.terminate()
    code, said = ended(process)
    assert code == EXIT_INTERRUPTED, said
    assert said.count('and saved') == 1  # process 0 speaks for all
    stopped = last_step(parts)
    assert 3 <= stopped < STEPS
    assert (parts / 'checkpoints' / str(stopped) / 'DIGEST').exists()

    # Told before its first step, a run that goes on stops behind that one.
    process = train(experiment, parts, 2)
    while 'continuing' not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    code, said = ended(process)
    assert code == EXIT_INTERRUPTED, said
    assert last_step(parts) == stopped + 1

    for folder, devices in ((parts, 4), (whole, 1)):
        session = Session.open(load_experiment(experiment), devices)
        outcome = loop.train(session, RunFolder.at(str(folder)), monitor(session))
        assert outcome.finished
    found, wanted = losses(parts), losses(whole)
    assert list(wanted) == list(found) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([*found.values()], [*wanted.values()], rtol=1e-4)
    last = [[r for r in metrics.read(f) if 'validation' in r][-1] for f in (parts, whole)]
    for name in ('knn_top1', 'feature_std'):
        one, other = (line['validation'][name] for line in last)
        assert one == pytest.approx(other, rel=0.02)


@pytest.mark.slow
def test_a_folder_in_which_another_trains_is_refused_by_all(experiment, tmp_path):
    descriptor = lock.take(tmp_path)
    began = time.monotonic()
    code, said = ended(train(experiment, tmp_path, 2))
    assert code == 2, said
    assert time.monotonic() - began < 60
    for number in (0, 1):
        assert f'[{number}] ssljax: process {os.getpid()} on' in said
    assert os.listdir(tmp_path) == [lock.NAME]
    os.close(descriptor)
    code, said = ended(train(experiment, tmp_path, 2))
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(experiment, tmp_path, victim):
    folder = tmp_path / 'run'
    process = train(experiment, folder, 2)
    at_step(process, folder, 9)
    began = time.monotonic()
    os.kill(children(process)[victim], signal.SIGKILL)
    code, said = ended(process)
    assert time.monotonic() - began < 30
    assert code == 128 + signal.SIGKILL
    assert f'process {victim} of 2 failed first: killed by SIGKILL' in said
    code, said = ended(train(experiment, folder, 2))
    assert code == 0, said
    assert 'continuing' in said and [*losses(folder)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_one_told_stops_all_and_split_parameters_go_on_bit_for_bit(experiment, tmp_path):
    """Parameters are split over four devices of two processes, and every step is evaluated."""
    whole, parts, alone = (tmp_path / name for name in ('whole', 'parts', 'alone'))
    more = ('--fsdp', '4', '--evaluation.every', '0.1')
    train = lambda folder: start(
        (*SSLJAX, 'train', experiment, '--folder', folder, *more), 2, devices=2
    )
    code, said = ended(train(whole))
    assert code == 0, said
    process = train(parts)
    at_step(process, parts, 3)
    os.kill(children(process)[1], signal.SIGINT)  # as Ctrl-C in its terminal
    code, said = ended(process)
    assert code == EXIT_INTERRUPTED, said
    evaluated = max(r['step'] for r in metrics.read(parts) if 'validation' in r)
    assert evaluated == last_step(parts) - 1  # it has saved first
    shutil.copytree(parts, alone)
    code, said = ended(train(parts))
    assert code == 0, said
    without = [metrics.without_clock(metrics.read(f)) for f in (whole, parts)]
    assert without[0] == without[1]

    session = Session.open(load_experiment(experiment), 1)
    assert loop.train(session, RunFolder.at(str(alone)), monitor(session)).finished
    found, wanted = losses(alone), losses(whole)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([*found.values()], [*wanted.values()], rtol=1e-4)


@pytest.mark.slow
def test_weights_are_taken_over_in_every_process(experiment, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    command = (*SSLJAX, 'train', experiment, '--smoke', '--folder')
    code, said = ended(start((*command, first)))
    assert code == 0, said
    code, said = ended(start((*command, second, '--init-from', first), 2))
    assert code == 0, said


def test_bad_input_is_refused_by_all_before_they_wait_for_each_other(experiment):
    code, said = ended(start((*SSLJAX, 'train', experiment, '--batch', 'many'), 2))
    assert code == 2, said


FAILS = """
import os, sys
import jax
from jax.experimental import multihost_utils
from ssljax.train.processes import Asked, together

def work():
    multihost_utils.sync_global_devices('both are here')
    if jax.process_index() == int(sys.argv[1]):
        raise OSError('no disk')
    multihost_utils.sync_global_devices('never')
    return 0

together(Asked().completed(os.environ), work)
"""


@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_fails_does_not_wait_for_those_that_wait_for_it(victim):
    began = time.monotonic()
    command = (sys.executable, LAUNCHER, '--patience', '100', '2', '--', sys.executable)
    code, said = ended(start((*command, '-c', FAILS, victim)), 300)
    assert time.monotonic() - began < 60
    assert code == 1
    assert f'process {victim} of 2 failed first: exit code 1' in said
    assert 'OSError: no disk' in said.partition('the last lines of process')[2]


class TestAsked:
    def test_options_come_before_the_environment(self):
        told = {
            'JAX_COORDINATOR_ADDRESS': 'a:1',
            'JAX_NUM_PROCESSES': '4',
            'JAX_PROCESS_ID': '3',
        }
        assert Asked().completed(told) == Asked('a:1', 4, 3)
        assert Asked('b:2', process=0).completed(told) == Asked('b:2', 4, 0)
        assert not Asked().completed({}).several

    @pytest.mark.parametrize(
        ('asked', 'environment', 'said'),
        [
            (Asked('a:1'), {}, 'not given: processes, process'),
            (Asked('a:1', 2), {'JAX_PROCESS_ID': 'two'}, "JAX_PROCESS_ID is 'two'"),
            (Asked('a:1', 2, 2), {}, 'process 2 of 2'),
            (Asked('node1', 2, 0), {}, 'expected HOST:PORT'),
        ],
    )
    def test_what_names_no_process_is_refused(self, asked, environment, said):
        with pytest.raises(ValueError, match=said):
            asked.completed(environment)

    def test_what_is_not_given_may_be_detected(self):
        assert Asked(detect=True).completed({}).several


def test_a_folder_that_only_process_0_sees_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(multihost_utils, 'sync_global_devices', lambda name: None)
    monkeypatch.setattr(folders, 'SEEN_WITHIN', 0.0)
    session = method_run.opened('simclr')
    with pytest.raises(ValueError, match=r'process 1 does not see .* on a disk that all processes'):
        RunFolder.at(str(tmp_path)).begin(session.experiment, session.data, 'fingerprint')
