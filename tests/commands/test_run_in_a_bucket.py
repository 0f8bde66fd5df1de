"""A run whose folder is in a bucket: each command, a kill, two processes, no such bucket."""

import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import bucket as made_up
import pytest
import tiny

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = 'from ssljax.cli import main; main()'
PATIENCE = 600
RUN = 'gs://bucket/runs/tiny'
EXPERIMENT = tiny.experiment(steps=12, evaluate=100.0, save=4, keep=2)


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture
def bucket():
    with made_up.served() as served:
        yield served


def started(bucket, *command, token='somebody'):
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *command],
        env={**os.environ, **bucket.environment(token)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(bucket, *command):
    """What a command said that has to end well."""
    process = started(bucket, *command)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def differences(folder, reference):
    """By benchmarks/survival.py: leaves and metrics that are not the same bits."""
    spec = importlib.util.spec_from_file_location('survival', ROOT / 'benchmarks' / 'survival.py')
    survival = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(survival)
    return survival.differences(folder, reference)


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_while_it_saves_ends_in_the_bits_of_one_on_a_disk(
    bucket, experiment, tmp_path
):
    done(bucket, 'train', experiment, '--folder', str(tmp_path / 'here'))
    assert not bucket.requests

    process = started(bucket, 'train', experiment, '--folder', RUN)
    last = ('POST', 'runs/tiny/checkpoints/8/commit_success.txt')
    bucket.watch = lambda *asked: process.kill() if asked == last else None
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -9
    assert 'runs/tiny/checkpoints/8.partial' in bucket.names()

    bucket.watch = lambda *asked: None
    said = done(bucket, 'train', experiment, '--folder', RUN)
    assert f'continuing {RUN} at step 4 of 12' in said
    steps = {name.split('/')[3] for name in bucket.names('runs/tiny/checkpoints/')}
    assert steps == {'8', '12'}
    bucket.get('runs/tiny', tmp_path / 'there')
    assert differences(tmp_path / 'there', tmp_path / 'here') == []

    for command in ('evaluate', 'export', 'report'):
        done(bucket, command, RUN)
    files = {name for name in bucket.names('runs/tiny/') if '/checkpoints/' not in name}
    assert {name.removeprefix('runs/tiny/') for name in files} == {
        'run.json',
        'metrics.jsonl',
        'evaluation.json',
        'report.html',
        'export/native/config.json',
        'export/native/model.safetensors',
    }
    table = json.loads(bucket.objects['runs/tiny/evaluation.json'][0])['table']
    assert [row['name'] for row in table['rows']][1:] == ['the same at random', 'raw pixels']


@pytest.mark.slow
def test_the_second_process_writes_nothing_but_its_share_of_the_arrays(bucket, experiment):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        others = ('--coordinator', f'127.0.0.1:{free.getsockname()[1]}', '--processes', '2')
    command = ('train', experiment, '--folder', RUN, *others, '--process')
    both = [started(bucket, *command, str(i), token=f'process {i}') for i in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    written = [request for request in bucket.requests if request[0] in made_up.WRITING]
    second = {name for _, name, token in written if token == 'process 1'}
    own = re.compile(r'runs/tiny/checkpoints/\d+/(ocdbt\.process_1/.*|array_metadatas/process_1)')
    assert second and [name for name in second if not own.fullmatch(name)] == []
    assert {token for *_, token in written} == {'process 0', 'process 1'}


@pytest.mark.slow
@pytest.mark.parametrize('command', ['train', 'evaluate'])
def test_a_bucket_that_is_not_there_is_named_and_not_waited_for(bucket, experiment, command):
    folder = 'gs://another/run'
    arguments = {'train': (experiment, '--folder', folder), 'evaluate': (folder,)}
    process = started(bucket, command, *arguments[command])
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"ssljax: there is no bucket 'another' for {folder}; make it first" in said
