"""A run killed anywhere ends in the bits of one that was left alone."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ssljax.train import metrics
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.interrupt import EXIT_INTERRUPTED

STEPS = 120
EXPERIMENT = f"""
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import LARS
from ssljax.views.simclr import SimCLRViews

def config():
    return Experiment(
        method=SimCLR(
            SmallResNet(stem_patch=4, widths=(8, 16), blocks=(1, 1)), ProjectionHead(widths=(16, 8))
        ),
        recipe=SimCLRViews(size=24),
        data=Data(name='made_images'),
        optimizer=LARS(learning_rate=0.3, warmup_epochs=1.0),
        batch=32,
        steps={STEPS},
        evaluation=Evaluation(every=4.0, batch=64),
        checkpoint=Checkpointing(every=7, keep_last=3),
        log_every=1,
    )
"""


def start(experiment, folder):
    # One device, a cache for what is compiled, and the same program for every start.
    environment = {**os.environ, 'XLA_FLAGS': ''}
    program = 'from ssljax.cli import main; main()'
    return subprocess.Popen(
        [sys.executable, '-c', program, 'train', str(experiment), '--folder', str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process, happens, patience=300):
    """Waits for something to happen; False if the process ends first."""
    end = time.monotonic() + patience
    while process.poll() is None:
        if happens():
            return True
        assert time.monotonic() < end, 'it never happened'
        time.sleep(0.001)
    return False


def step_of(folder):
    lines = metrics.read(folder) if (folder / 'metrics.jsonl').exists() else []
    return max((r['step'] for r in lines), default=0)


def complete(folder):
    """Checkpoints that have their digest and no mark, oldest first."""
    found = (folder / 'checkpoints').glob('*/DIGEST')
    whole = [d.parent for d in found if not d.parent.with_name(d.parent.name + '.partial').exists()]
    return sorted(whole, key=lambda path: int(path.name.split('-')[0]))


def largest_file(checkpoint):
    files = [p for p in checkpoint.rglob('*') if p.is_file() and p.name != 'DIGEST']
    return max(files, key=lambda path: path.stat().st_size)


def leaves(folder):
    _, state = load_state(RunFolder.at(str(folder)))
    raw = lambda leaf: (
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )
    named = jax.tree_util.tree_leaves_with_path(jax.tree.map(raw, state))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    experiment = folder / 'experiment.py'
    experiment.write_text(EXPERIMENT)
    process = start(experiment, folder / 'run')
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return experiment, folder / 'run'


def assert_same_run(folder, reference):
    want, found = leaves(reference), leaves(folder)
    assert want.keys() == found.keys()
    for name in want:
        assert want[name].tobytes() == found[name].tobytes(), name
    without = lambda f: metrics.without_clock(metrics.read(f))
    assert without(folder) == without(reference)


@pytest.mark.slow
def test_kill_flip_truncate_terminate_and_still_the_same_bits(undisturbed, tmp_path):
    experiment, reference = undisturbed
    folder, rng = tmp_path / 'run', random.Random(7)
    # Instants: five random steps, with a random delay behind each.
    for target in sorted(rng.sample(range(5, STEPS - 25), 5)):
        process = start(experiment, folder)
        if until(process, lambda target=target: step_of(folder) >= target):
            time.sleep(rng.random() * 0.03)
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output

    newest = complete(folder)[-1]  # a bit flips in the newest checkpoint
    damaged = largest_file(newest)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    process = start(experiment, folder)  # and the next kill comes inside a save
    marks = folder / 'checkpoints'
    before = {m.name for m in marks.glob('*.partial')}
    inside = until(process, lambda: {m.name for m in marks.glob('*.partial')} - before)
    process.kill()
    process.communicate()
    assert inside

    damaged = largest_file(complete(folder)[-1])  # the newest is cut short
    os.truncate(damaged, damaged.stat().st_size // 2)

    process = start(experiment, folder)  # a polite request to stop
    assert until(process, lambda: step_of(folder) > STEPS - 20)
    process.terminate()
    output, _ = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED, output
    assert 'saved' in output

    process = start(experiment, folder)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert f'continuing {folder}' in output
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(undisturbed):
    experiment, folder = undisturbed
    before = (folder / 'metrics.jsonl').read_bytes()
    process = start(experiment, folder)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert (folder / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
def test_everything_is_rebuilt_from_the_folder_alone(undisturbed):
    experiment, folder = undisturbed
    pathlib.Path(experiment).unlink()
    program = 'from ssljax.cli import main; main()'
    for command in ('evaluate', 'export', 'report', 'train'):
        done = subprocess.run(
            [sys.executable, '-c', program, command, str(folder)],
            env={**os.environ, 'XLA_FLAGS': ''},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    table = json.loads((folder / 'evaluation.json').read_text())['table']
    assert [row['name'] for row in table['rows']][1:] == ['the same at random', 'raw pixels']
    assert (folder / 'export' / 'native' / 'model.safetensors').exists()
    page = (folder / 'report.html').read_text()
    assert 'raw pixels' in page and page.count('<img') > 60
