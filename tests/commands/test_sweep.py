"""`ssljax sweep`: what it refuses, and that every run is done once however often it is stopped."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from sweep.studies import EXPERIMENT, put, row, study

from ssljax import cli, config
from ssljax.cli import Sweep
from ssljax.commands import sweep, sweep_child
from ssljax.optim import SGD
from ssljax.sweep import lock
from ssljax.sweep.folder import StudyFolder
from ssljax.train import metrics
from ssljax.train.folder import RunFolder

STEPS = 60
STUDY = f"""
import dataclasses
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.study import Study, Variant
from ssljax.views.simclr import SimCLRViews

def study():
    base = Experiment(
        method=SimCLR(
            SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
        ),
        recipe=SimCLRViews(size=16, blur=0.0),
        data=Data(name='made_images'),
        optimizer=SGD(learning_rate=0.1, scaling='none'),
        batch=16,
        steps={STEPS},
        evaluation=Evaluation(every=0.0),
        checkpoint=Checkpointing(every=5),
        log_every=1,
    )
    broken = dataclasses.replace(
        base,
        optimizer=SGD(learning_rate=1e38, scaling='none', decay='constant'),
        max_nonfinite=0,
    )
    one = lambda **data: dataclasses.replace(base, data=Data(name='made_images', **data))
    return Study(
        'A study',
        VARIANTS,
        SEEDS,
        probe_split='train[:128]',
    )
"""


def write_study(folder, variants="Variant('a', base), Variant('b', base)", seeds='(0,)'):
    file = folder / 'small.py'
    file.write_text(STUDY.replace('VARIANTS', f'({variants},)').replace('SEEDS', seeds))
    return str(file)


def refused(capfd, *arguments):
    try:
        code = cli.run(['sweep', *map(str, arguments)])
    except SystemExit as exit_:
        code = exit_.code
    assert code == cli.EXIT_USAGE
    return ' '.join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ('variants', 'options', 'says'),
    [
        ("Variant('a', base), Variant('a', base)", (), "two variants are called 'a'"),
        ("Variant('alpha', base)", ('--only', 'alfa'), "no variant 'alfa'; did you mean alpha"),
        ("Variant('a', base)", ('--folder', 'gs://bucket/x'), 'is not on a disk'),
    ],
)
def test_a_study_that_does_not_fit_is_refused(capfd, tmp_path, variants, options, says):
    folder = () if '--folder' in options else ('--folder', tmp_path / 'kept')
    assert says in refused(capfd, write_study(tmp_path, variants), *folder, *options)
    assert not (tmp_path / 'kept').exists()


def test_an_empty_study_and_a_file_without_one_are_refused(capfd, tmp_path):
    file = tmp_path / 'x.py'
    file.write_text('from ssljax.study import Study\ndef study(): return Study("Nothing", ())')
    assert "'Nothing' has no variants" in refused(capfd, file)
    file.write_text('def config(): pass')
    assert 'has no function study() -> Study' in refused(capfd, file)
    assert 'no study file' in refused(capfd, tmp_path / 'y.py')


def asked(folder, probe_split=None, **changes):
    experiment = dataclasses.replace(EXPERIMENT, **changes)
    encoded = config.encode(experiment)
    return {
        'name': 'b/0', 'folder': str(folder), 'probe_split': probe_split,
        'experiment': encoded, 'definitions': (),
    }  # fmt: skip


def test_every_run_is_opened_before_any_starts(tmp_path):
    good = asked(tmp_path / 'good')
    assert sweep_child.check({'runs': [good]}) == 0
    one_view = EXPERIMENT.recipe.__class__(size=16, blur=0.0, count=1)
    with pytest.raises(ValueError, match='b/0: SimCLR compares views and needs at least 2'):
        sweep_child.check({'runs': [good, asked(tmp_path, recipe=one_view)]})
    with pytest.raises(ValueError, match='b/0: a batch of 1024 is larger than the data set'):
        sweep_child.check({'runs': [asked(tmp_path, batch=1024)]})
    # What it is evaluated by at the end is there as well, and its schedule fits.
    data = lambda **changes: dataclasses.replace(EXPERIMENT.data, **changes)
    for changes, says in (
        ({'data': data(test='tst')}, "b/0: .*'tst'"),
        ({'data': data(validation=None)}, 'b/0: the run has no validation split'),
        ({'optimizer': SGD(warmup_epochs=1e6)}, 'b/0: a warmup of 1000000.0 epochs'),
    ):
        with pytest.raises(ValueError, match=says):
            sweep_child.check({'runs': [asked(tmp_path, **changes)]})
    assert not (tmp_path / 'good').exists()
    assert sweep_child.check({'runs': [asked(tmp_path / 'good', 'train[:128]')]}) == 0
    with pytest.raises(ValueError, match=r"b/0: train \('train\+test'\) and test \('test'\) share"):
        sweep_child.check({'runs': [asked(tmp_path / 'good', 'train+test')]})


@pytest.mark.slow
def test_a_variant_that_does_not_fit_stops_the_sweep_before_it_starts(capfd, tmp_path):
    wrong = 'dataclasses.replace(base, batch=1024)'
    file = write_study(tmp_path, f"Variant('a', base), Variant('wrong', {wrong})")
    said = refused(capfd, file, '--folder', tmp_path / 'kept')
    assert 'wrong/0: a batch of 1024' in said
    assert not (tmp_path / 'kept').exists()


def test_the_list_says_what_is_done_begun_running_and_missing(capfd, tmp_path):
    made = study('done', 'begun', 'running', 'missing')
    folder = put(made, tmp_path, lambda name, _: {'trained': row(0.8)} if name == 'done' else None)
    for name in ('begun', 'running'):
        folder.of(made.runs([name])[0]).mkdir(parents=True)
    holds = lock.take(folder.of(made.runs(['running'])[0]))
    assert sweep._list(made, folder, made.runs()) == 0
    os.close(holds)
    said = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert said['done/0'] == 'done: linear 80.0; linear, few labels 50.0; kNN 50.0'
    assert [said[f'{n}/0'] for n in ('begun', 'running', 'missing')] == [
        'begun', 'running', 'missing',
    ]  # fmt: skip


def test_a_study_that_is_done_starts_nothing(tmp_path, monkeypatch):
    made = study('a', 'b')
    put(made, tmp_path, lambda name, _: {'trained': row(0.8), 'random': row(0.1)})
    monkeypatch.setattr(sweep, 'load_study', lambda file: made)
    monkeypatch.setattr(sweep, '_child', None)
    assert sweep.main(Sweep(study='x.py', folder=str(tmp_path))) == 0
    assert '| a |' in (tmp_path / 'results.md').read_text()


def test_a_result_of_another_experiment_is_no_part_of_the_table_whatever_is_run(
    tmp_path, monkeypatch
):
    made = study('a', 'b')
    put(made, tmp_path, lambda name, _: {'trained': row(0.8), 'random': row(0.1)})
    changed = dataclasses.replace(made.variants[1].experiment, seed=7, batch=32)
    variants = (made.variants[0], dataclasses.replace(made.variants[1], experiment=changed))
    now = dataclasses.replace(made, variants=variants)
    monkeypatch.setattr(sweep, 'load_study', lambda file: now)
    with pytest.raises(ValueError, match='holds the result of another experiment'):
        sweep.main(Sweep(study='x.py', folder=str(tmp_path), only=('a',)))


def test_a_line_of_the_log_is_shown_as_it_is(tmp_path, monkeypatch):
    log = tmp_path / 'log.txt'
    log.write_text('see [/job:localhost/device:CPU:0]')
    shown = Console(force_terminal=True, file=io.StringIO())
    made = sweep._Sweep(study('a'), StudyFolder.at(str(tmp_path)), [])
    made._console = shown
    made._process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1.5)'])
    assert made._wait('a/0', log) == 0
    assert '[/job:localhost/device:CPU:0]' in shown.file.getvalue()


def test_wall_time_is_that_of_the_steps_without_compilation_and_looks_at_validation(tmp_path):
    folder = RunFolder.at(str(tmp_path))
    record = {'experiment': config.encode(EXPERIMENT), 'data': {}}
    folder.record.write_text(json.dumps(record))

    def line(step, first, seconds):
        return {'step': step, 'loss': 1.0, 'clock': {'seconds': seconds, 'from': first}}

    def look(step, seconds):
        return {'step': step, 'validation': {'knn': step}, 'clock': {'evaluation_s': seconds}}

    # The first part begins at step 0, compiles for 9 s and takes 1 s a step, beside 3 s of looking
    # behind its first line, and 99 s behind its last one.
    first = [line(5, 0, 9.0 + 5.0), look(5, 3.0)]
    first += [*(line(step, 0, 9.0 + step + 3.0) for step in (10, 15, 20)), look(20, 99.0)]
    # The second goes on from step 20, compiles for 4 s and takes 2 s a step, with 7 s of looking.
    second = [
        line(22, 20, 4.0 + 4.0),
        look(24, 7.0),
        line(30, 20, 4.0 + 20.0 + 7.0),
        look(30, 50.0),
    ]
    # The third wrote one line, at step 40: 5 s of compilation and 10 of steps; 2 s of looking.
    third = [look(35, 2.0), line(40, 30, 5.0 + 10.0 + 2.0), look(40, 60.0)]
    written = [*first, *second, *third]
    (tmp_path / metrics.NAME).write_text(''.join(json.dumps(w) + '\n' for w in written))
    assert sweep_child.wall_seconds(folder) == pytest.approx(20 * 1 + 10 * 2 + 15)
    assert sweep_child.curve(folder)[0] == {'images': 5 * 16, 'knn': 5}
    assert [seen['knn'] for seen in sweep_child.curve(folder)] == [5, 20, 24, 30, 35, 40]


def test_peak_memory_is_of_this_process_alone():
    program = (
        'import numpy, sys\nfrom ssljax.commands.sweep_child import peak_memory\n'
        'before = peak_memory(); numpy.ones(2**26); print(before, peak_memory())'
    )
    held = bytearray(2**30)  # what the parent holds is none of its child's business
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    del held
    before, after = map(float, done.stdout.split())
    assert before < 900 and 500 < after - before < 530


# Whole sweeps, as processes.


def start(file, folder, *more):
    program = 'from ssljax.cli import main; main()'
    return subprocess.Popen(
        [sys.executable, '-c', program, 'sweep', file, '--folder', str(folder), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def until(process, happens):
    """Waits for something to happen, while `process` (if one is given) is alive."""
    end = time.monotonic() + 600
    while not happens():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, 'it never happened'
        time.sleep(0.005)


def step_of(run):
    lines = metrics.read(run) if (run / metrics.NAME).exists() else []
    return max((r['step'] for r in lines), default=0)


def children(folder):
    """Processes that work in a study's folder, by what they hold open."""
    found = []
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        open_files = []
        with contextlib.suppress(OSError):  # the process has ended
            for file in (process / 'fd').iterdir():
                with contextlib.suppress(OSError):  # only this file was closed
                    open_files.append(os.readlink(file))
        if any(name.startswith(f'{folder}/runs/') and name.endswith('lock') for name in open_files):
            found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def done(folder):
    return sorted(str(p.parent.relative_to(folder)) for p in folder.glob('runs/*/*/result.json'))


@pytest.mark.slow
def test_killed_told_and_killed_again_it_ends_as_if_nothing_had_happened(tmp_path):
    file, folder = write_study(tmp_path), tmp_path / 'kept'
    first, second = folder / 'runs' / 'a' / '0', folder / 'runs' / 'b' / '0'

    process = start(file, folder)  # the sweep is killed: its run saves and stops
    until(process, lambda: step_of(first) > 7)
    assert lock.holder(first).pid in children(folder)  # not the sweep, which has the lock too
    process.kill()
    process.communicate()
    until(None, lambda: not children(folder))
    assert not done(folder) and list((first / 'checkpoints').glob('*/DIGEST'))

    process = start(file, folder)  # sweep and run are killed at once
    until(process, lambda: step_of(first) > 20)
    process.send_signal(signal.SIGSTOP)
    for pid in children(folder):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()

    process = start(file, folder)  # it is told to stop, in the second run
    until(process, lambda: step_of(second) > 7)
    assert done(folder) == ['runs/a/0']
    table = (folder / 'results.md').read_text()
    assert '| a |' in table and '**1 of 2 runs are missing.**' in table
    process.terminate()
    code, output = finish(process)
    assert code == 75 and 'b/0: stopped' in output, output
    assert 'stopped at step' in (second / 'log.txt').read_text()

    code, output = finish(start(file, folder))
    assert code == 0, output
    assert done(folder) == ['runs/a/0', 'runs/b/0']
    results = [json.loads((run / 'result.json').read_text()) for run in (first, second)]
    assert 'continuing' in (first / 'log.txt').read_text()
    # Both variants are the same experiment: whatever happened to them, so are their numbers.
    assert results[0]['rows'].keys() == {'trained', 'random', 'pixels'}
    assert results[1]['rows'].keys() == {'trained'}
    assert results[0]['rows']['trained'] == results[1]['rows']['trained']
    for result in results:
        assert result['steps'] == STEPS and result['images'] == STEPS * 16
        assert result['passes'] == STEPS * 16 / 256
        assert 100 < result['peak_memory_mib'] < 20_000 and 0 < result['wall_s'] < 600
        assert result['rows']['trained']['linear']['count'] == 64
    assert json.loads((first / 'evaluation.json').read_text())['table']['examples']['train'] == 128
    assert (folder / 'figure.png').exists() and (folder / 'results.csv').exists()


@pytest.mark.slow
def test_two_shells_do_every_run_once_and_a_broken_one_stops_no_other(tmp_path):
    names = "Variant('broken', broken), Variant('a', base)"
    file, folder = write_study(tmp_path, names, '(0, 1)'), tmp_path / 'kept'
    shells = [start(file, folder, '--only', 'a') for _ in range(2)]
    outcomes = [finish(shell) for shell in shells]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert done(folder) == ['runs/a/0', 'runs/a/1']
    said = ''.join(output for _, output in outcomes)
    for run in ('a/0', 'a/1'):
        assert said.count(f'{run}: starts') == 1
        records = metrics.read(folder / 'runs' / run)
        assert [r['step'] for r in records] == list(range(1, STEPS + 1))
        assert 'continuing' not in (folder / 'runs' / run / 'log.txt').read_text()

    code, output = finish(start(file, folder))
    assert code == 1, output
    assert 'broken/0: FAILED with exit code 1' in output and 'max_nonfinite' in output
    assert 'broken/1: FAILED' in output and 'a/0: starts' not in output
    assert '**2 of 4 runs are missing.**' in (folder / 'results.md').read_text()
