"""A run killed anywhere ends in undisturbed bits: benchmarks/survival.py in short."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import tiny

ROOT = pathlib.Path(__file__).parent.parent.parent
_spec = importlib.util.spec_from_file_location('survival', ROOT / 'benchmarks' / 'survival.py')
survival = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(survival)
Harness, differences, plan = survival.Harness, survival.differences, survival.plan

STEPS = 120
EXPERIMENT = tiny.experiment(steps=STEPS, evaluate=4.0, save=7, keep=3)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    experiment = folder / 'experiment.py'
    experiment.write_text(EXPERIMENT)
    Harness(experiment, (), folder / 'log.txt').finish(folder / 'run')
    return experiment, folder / 'run'


@pytest.mark.slow
def test_disturbed_in_every_way_and_still_the_same_bits(undisturbed, tmp_path):
    experiment, reference = undisturbed
    folder, harness = tmp_path / 'run', Harness(experiment, (), tmp_path / 'log.txt', seed=7)
    kinds = ('kill', 'kill', 'kill', 'kill', 'kill', 'save', 'flip', 'truncate', 'terminate')
    for kind, at in plan(kinds, len(kinds), STEPS, harness.rng):
        harness.disturb(folder, kind, at)
    harness.finish(folder)
    assert harness.counts == {'kill': 5, 'save': 1, 'flip': 1, 'truncate': 1, 'terminate': 1}
    assert f'continuing {folder}' in harness.said()
    assert differences(folder, reference) == []


@pytest.mark.slow
def test_the_harness_sees_a_bit_and_a_line_that_differ(undisturbed, tmp_path):
    _, reference = undisturbed
    shutil.copytree(reference, tmp_path / 'copied')
    lines = (tmp_path / 'copied' / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'copied' / 'metrics.jsonl').write_text(''.join(lines[:-1]))
    (found,) = differences(tmp_path / 'copied', reference)
    assert found.startswith('metrics.jsonl')
    for newest in (tmp_path / 'copied' / 'checkpoints').glob(f'{STEPS}*'):
        shutil.rmtree(newest)
    assert '.params' in ' '.join(differences(tmp_path / 'copied', reference))


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(undisturbed):
    experiment, folder = undisturbed
    before = (folder / 'metrics.jsonl').read_bytes()
    Harness(experiment, (), folder.with_suffix('.log')).finish(folder)
    assert (folder / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
def test_everything_is_rebuilt_from_the_folder_alone(undisturbed):
    experiment, folder = undisturbed
    pathlib.Path(experiment).unlink()
    program = 'from ssljax.cli import main; main()'
    for command in ('evaluate', 'export', 'report', 'train'):
        done = subprocess.run(
            [sys.executable, '-c', program, command, str(folder)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    table = json.loads((folder / 'evaluation.json').read_text())['table']
    assert [row['name'] for row in table['rows']][1:] == ['the same at random', 'raw pixels']
    assert (folder / 'export' / 'native' / 'model.safetensors').exists()
    page = (folder / 'report.html').read_text()
    assert 'raw pixels' in page and page.count('<img') > 60
