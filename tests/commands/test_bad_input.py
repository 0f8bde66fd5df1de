"""Bad input gets a clear error before anything starts, and nothing is lost."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from ssljax import cli
from ssljax.commands import alone
from ssljax.sweep import lock
from ssljax.train import metrics

ROOT = pathlib.Path(__file__).parent.parent.parent
FASHION = str(ROOT / 'experiments' / 'simclr_fashion_mnist.py')
TINY = """
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.methods.supervised import Supervised
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.views.simclr import SimCLRViews

def config():
    return Experiment(
        method=METHOD,
        recipe=SimCLRViews(size=16, blur=0.0),
        data=Data(name='made_images'),
        optimizer=SGD(learning_rate=0.1, scaling='none'),
        batch=16,
        steps=3,
        evaluation=Evaluation(every=0.0),
        log_every=1,
    )
"""
ENCODER = 'SmallResNet(stem_patch=4, widths=(4,), blocks=(1,))'
SIMCLR = f'SimCLR({ENCODER}, ProjectionHead(widths=(8, 4)))'


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / 'tiny.py'
    file.write_text(TINY.replace('METHOD', SIMCLR))
    return str(file)


def refused(capsys, *arguments, exit_code=cli.EXIT_USAGE):
    """Runs a command line that must be refused; gives what it said."""
    try:
        code = cli.run(list(arguments))
    except SystemExit as exit_:
        code = exit_.code
    assert code == exit_code
    return ' '.join(capsys.readouterr().err.replace('│', ' ').split())


def test_unknown_command_names_the_near_one(capsys):
    assert "did you mean 'train'" in refused(capsys, 'trian')


def test_unknown_experiment_names_the_near_ones(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = refused(capsys, 'train', 'experiments/simclr_cifar.py')
    assert 'no experiment file experiments/simclr_cifar.py' in said
    assert 'experiments/simclr_cifar10.py' in said


def test_file_without_config(capsys, tmp_path):
    file = tmp_path / 'empty.py'
    file.write_text('x = 1')
    assert 'no function config()' in refused(capsys, 'train', str(file))


def test_unknown_override_names_the_near_ones(capsys, tiny):
    said = refused(capsys, 'train', tiny, '--method.temprature', '0.2')
    assert '--method.temperature' in said


def test_ill_typed_override_says_what_is_wanted(capsys, tiny):
    said = refused(capsys, 'train', tiny, '--batch', 'many')
    assert '--batch' in said and 'many' in said


def test_recipe_and_method_that_do_not_fit(capsys, tiny, tmp_path):
    said = refused(capsys, 'train', tiny, '--recipe.count', '1', '--folder', str(tmp_path / 'run'))
    assert 'needs at least 2' in said
    assert not (tmp_path / 'run').exists()


def test_colour_recipe_on_grey_images(capsys):
    said = refused(capsys, 'train', FASHION, '--recipe.saturation', '0.4')
    assert 'saturation' in said and '1 channel' in said


def test_batch_that_the_devices_cannot_split(capsys, tiny):
    said = refused(capsys, 'train', tiny, '--batch', '20')
    assert '20' in said and '8 devices' in said


def test_batch_larger_than_the_data(capsys, tiny):
    said = refused(capsys, 'train', tiny, '--batch', '1024')
    assert 'a batch of 1024 is larger than the data set of 256 images' in said


def test_folder_without_images(capsys, tiny, tmp_path):
    (tmp_path / 'nothing').mkdir()
    said = refused(capsys, 'train', tiny, '--data.name', f'folder:{tmp_path / "nothing"}')
    assert 'no' in said and 'images' in said and 'nothing' in said


def test_dataset_not_prepared_says_how(capsys, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    said = refused(capsys, 'train', tiny, '--data.name', 'stl10')
    assert 'stl10' in said and 'tfds build' in said and 'array_record' in said


def test_length_of_the_run_given_twice(capsys, tiny):
    said = refused(capsys, 'train', tiny, '--epochs', '3')
    assert 'epochs=3.0 and steps=3' in said


def test_folder_that_is_not_a_run(capsys, tmp_path):
    for command in ('evaluate', 'export', 'report'):
        said = refused(capsys, command, str(tmp_path))
        assert 'not the folder of a run' in said


@pytest.fixture
def finished(tiny, tmp_path):
    folder = tmp_path / 'run'
    assert cli.run(['train', tiny, '--folder', str(folder)]) == 0
    return folder


def test_a_folder_that_holds_another_run(capsys, finished, tiny, tmp_path):
    other = tmp_path / 'other.py'
    other.write_text(TINY.replace('METHOD', f'Supervised({ENCODER}, classes=4)'))
    before = metrics.read(finished)
    said = refused(capsys, 'train', str(other), '--folder', str(finished))
    assert 'holds another run' in said and 'Supervised' in said
    said = refused(capsys, 'train', tiny, '--method.temperature', '0.7', '--folder', str(finished))
    assert 'method.temperature: 0.1 there, 0.7 now' in said
    assert 'Only evaluation, checkpoint' in said
    assert metrics.read(finished) == before


def test_fields_that_may_change_may_change(finished, tiny):
    assert cli.run(['train', tiny, '--log_every', '2', '--folder', str(finished)]) == 0


def test_a_run_that_goes_on_is_not_shrunk(capsys, finished):
    before = metrics.read(finished)
    said = refused(capsys, 'train', str(finished), '--smoke')
    assert f'{finished} is the folder of a run' in said and 'Leave --smoke out' in said
    assert metrics.read(finished) == before


@pytest.mark.slow
def test_init_from_a_run_an_export_and_nothing(capsys, finished, tiny, tmp_path):
    assert cli.run(['export', str(finished)]) == 0
    starts = {}
    for name, origin in {'run': finished, 'export': finished / 'export' / 'native'}.items():
        folder = tmp_path / f'from_{name}'
        command = [
            'train',
            tiny,
            '--init_from',
            str(origin),
            '--seed',
            '5',
            '--folder',
            str(folder),
        ]
        assert cli.run(command) == 0
        starts[name] = metrics.read(folder)[0]['loss']
    assert starts['run'] == starts['export']
    said = refused(
        capsys, 'train', tiny, '--init_from', str(tmp_path), '--folder', str(tmp_path / 'x')
    )
    assert 'neither the folder of a run' in said
    wider = ['--method.encoder.widths', '8', '--init_from', str(finished)]
    said = refused(capsys, 'train', tiny, *wider, '--folder', str(tmp_path / 'y'))
    assert 'has shape' in said and 'not the one of this experiment' in said


def test_a_start_that_failed_does_not_hold_the_folder(capsys, tiny, tmp_path):
    folder = ['--folder', str(tmp_path / 'run')]
    said = refused(capsys, 'train', tiny, '--init_from', str(tmp_path), *folder)
    assert 'init_from' in said
    assert cli.run(['train', tiny, *folder]) == 0


def test_a_folder_in_which_another_process_trains_is_refused(capsys, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(alone, 'PATIENCE', 0.0)
    monkeypatch.setattr(alone, 'PATIENCE_WITH_ANOTHER_MACHINE', 0.0)
    folder = tmp_path / 'run'
    command = ['train', tiny, '--folder', str(folder)]
    descriptor = lock.take(folder)
    said = refused(capsys, *command)
    assert f'process {os.getpid()} on' in said and f'has been training in {folder} since' in said
    assert 'choose another --folder' in said and 'remove' not in said

    away = {'pid': 7, 'host': 'another', 'since': '2026-01-01T00:00:00+00:00'}
    (folder / lock.NAME).write_text(json.dumps(away))
    said = refused(capsys, *command)
    assert 'process 7 on another' in said and f'is lost, remove {folder / lock.NAME}' in said
    (folder / lock.NAME).write_text('')
    assert 'another process trains in' in refused(capsys, *command)
    assert os.listdir(folder) == [lock.NAME]

    os.close(descriptor)
    assert cli.run(command) == 0


def test_a_lock_that_is_let_go_in_time_is_waited_for(tiny, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    descriptor = lock.take(folder)
    let_go = lambda _: os.close(descriptor)
    monkeypatch.setattr(alone, 'time', types.SimpleNamespace(monotonic=lambda: 0.0, sleep=let_go))
    assert cli.run(['train', tiny, '--folder', str(folder)]) == 0


def test_where_there_are_no_locks_it_says_so_and_trains(capsys, tiny, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    assert cli.run(['train', tiny, '--folder', str(tmp_path / 'run')]) == 0
    said = capsys.readouterr().err
    assert 'ssljax: warning:' in said and 'No locks available' in said


def everything(folder):
    """Names and contents of all files in a folder."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.mark.slow
def test_a_second_launch_does_no_harm_and_a_killed_one_holds_nothing(tiny, tmp_path):
    folder = tmp_path / 'run'
    program = 'from ssljax.cli import main; main()'
    more = ('--steps', '200', '--checkpoint.every', '5', '--folder', str(folder))
    command = [sys.executable, '-c', program, 'train', tiny, *more]
    first = subprocess.Popen(command)
    checkpoints = folder / 'checkpoints'
    end = time.monotonic() + 300
    while len([*checkpoints.glob('*/DIGEST')]) < 2:
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # a run so slow that nothing of it changes meanwhile
    before = everything(folder)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == cli.EXIT_USAGE, second.stderr
    assert f'process {first.pid} on' in second.stderr
    assert everything(folder) == before
    first.kill()
    first.wait()
    third = subprocess.run(command, capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    assert f'continuing {folder}' in third.stdout
    assert [r['step'] for r in metrics.read(folder)] == list(range(1, 201))


def test_numbers_out_of_range_are_refused_before_anything_starts(capsys, tiny, tmp_path):
    folder = ['--folder', str(tmp_path / 'run')]
    for option in (
        *('--log_every', '--checkpoint.every', '--checkpoint.keep_last'),
        *('--evaluation.bank', '--evaluation.queries'),
    ):
        assert 'is 0; it must be at least 1' in refused(capsys, 'train', tiny, option, '0', *folder)
    for option, value in (
        ('--max_nonfinite', '-1'),
        ('--checkpoint.keep_best', '-1'),
        ('--evaluation.every', 'nan'),
        ('--evaluation.every', '-1.0'),
        ('--data.max_corrupt', 'nan'),
        ('--data.max_corrupt', '1.5'),
    ):
        said = refused(capsys, 'train', tiny, option, value, *folder)
        assert f'{option[2:]} is {value}; it' in said
    for value in ('inf', 'nan'):
        said = refused(capsys, 'train', tiny, '--steps', 'None', '--epochs', value, *folder)
        assert f'epochs is {value}; it must be 0 or more, and finite' in said
    said = refused(capsys, 'train', tiny, '--seed', str(2**40), *folder)
    assert 'it must be in [0, 2**32)' in said
    said = refused(capsys, 'train', tiny, '--data.validation', 'test', *folder)
    assert 'must not be chosen on test' in said
    assert not (tmp_path / 'run').exists()


def test_torchvision_refuses_what_has_no_twin_there(capsys, finished):
    said = refused(capsys, 'export', str(finished), '--format', 'torchvision')
    assert 'SmallResNet' in said


def photos(folder, count, broken=()):
    """A folder of JPEGs, some of them cut short or not images at all."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ('a' if i % 2 else 'b') / f'{i:03}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((48, 40)).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:200] if i % 2 else b'this is no image')


def test_corrupt_images_are_replaced_counted_and_named(capsys, tiny, tmp_path):
    photos(tmp_path / 'photos', 64, broken=(3, 10))
    data = ['--data.name', f'folder:{tmp_path / "photos"}', '--data.max_corrupt', '0.1']
    command = ['train', tiny, *data, '--steps', '8', '--folder', str(tmp_path / 'run')]
    assert cli.run(command) == 0
    said = capsys.readouterr().out
    assert said.count('could not be decoded; another took its place') == 2
    assert '003.jpg' in said and '010.jpg' in said
    assert 'images that could not be decoded: 2' in said
    assert metrics.read(tmp_path / 'run')[-1]['clock']['corrupt'] == 2


def test_too_many_corrupt_images_stop_the_run(capsys, tiny, tmp_path):
    photos(tmp_path / 'photos', 64, broken=range(0, 64, 3))
    data = ['--data.name', f'folder:{tmp_path / "photos"}', '--data.max_corrupt', '0.1']
    command = ['train', tiny, *data, '--steps', '8', '--folder', str(tmp_path / 'run')]
    said = refused(capsys, *command, exit_code=cli.EXIT_FAILED)
    assert 'corrupt' in said and 'max_corrupt' in said


def test_nonfinite_steps_are_skipped_counted_named_and_stop_the_run(capsys, tiny, tmp_path):
    folder = tmp_path / 'run'
    explode = ['--optimizer.learning_rate', '1e38', '--optimizer.decay', 'constant']
    code = cli.run(
        ['train', tiny, *explode, '--steps', '9', '--max_nonfinite', '3', '--folder', str(folder)]
    )
    said = capsys.readouterr()
    assert code == cli.EXIT_FAILED
    assert 'the update is skipped (1 so far, 3 allowed)' in said.out
    assert '4 steps up to step' in said.err and 'clip' in said.err
    records = [r for r in metrics.read(folder) if r['skipped']]
    assert [r['skipped'] for r in records] == [1, 2, 3, 4]
    # The first loss and its gradient are finite; the step they lead to is not.
    assert records[0]['nonfinite'] == ['update'] and 'not finite: update' in said.out


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_message_and_keeps_what_was_saved(tiny, tmp_path):
    folder = tmp_path / 'run'
    program = 'from ssljax.cli import main; main()'
    start = lambda limit, *more: subprocess.run(
        [
            'bash',
            '-c',
            f'ulimit -f {limit}; exec "$@"',
            '-',
            sys.executable,
            '-c',
            program,
            'train',
            tiny,
            '--folder',
            str(folder),
            '--method.encoder.widths',
            '64',
            '--steps',
            '6',
            '--checkpoint.every',
            '2',
            *more,
        ],
        env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': ''},
        capture_output=True,
        text=True,
    )
    # Files may grow to 64 KiB: enough for metrics, too little for the weights.
    full = start(64)
    assert full.returncode == cli.EXIT_FAILED, full.stderr
    assert 'step 2' in full.stderr and 'File too large' in full.stderr
    assert full.stderr.count('ssljax: the checkpoint of step 2 could not be written') == 1
    freed = start('unlimited')
    assert freed.returncode == 0, freed.stderr
    assert metrics.read(folder)[-1]['step'] == 6
