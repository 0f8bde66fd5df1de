"""The process that one run of a study has to itself, started by `ssljax sweep`.

It reads its job, a line of JSON, from standard input, and goes on reading: when the sweep is gone,
however it went, the input ends and the run saves and stops. Devices are opened here only, never in
the sweep, which may be waiting while another has them.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import resource
import signal
import sys
import threading
from typing import Any

import jax

from ssljax import cli, config
from ssljax.cli import Evaluate
from ssljax.commands.evaluate import PIXELS, RANDOM, evaluated, probed, too_many
from ssljax.core import TrainState
from ssljax.definitions import defined_in
from ssljax.evaluate.monitor import monitor
from ssljax.experiment import Experiment
from ssljax.sweep import lock
from ssljax.sweep.folder import write
from ssljax.train import metrics
from ssljax.train.folder import RunFolder
from ssljax.train.interrupt import EXIT_INTERRUPTED
from ssljax.train.loop import train
from ssljax.train.session import Session, shared_images

KINDS = {RANDOM: 'random', PIXELS: 'pixels'}
"""What the rows of references are called in a result; the encoder's own is `trained`."""


def main() -> int:
    """Does the job on standard input; returns the exit code."""
    job = json.loads(_line())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    jobs = {'check': check, 'run': run}
    return cli.guarded(lambda: jobs[job['do']](job))


def _line() -> bytes:
    # Unbuffered: a thread that waits in sys.stdin would hold up the end of the program.
    line = b''
    while not line.endswith(b'\n'):
        piece = os.read(0, 2**16)
        if not piece:
            raise SystemExit('expected a job on standard input: this is run by `ssljax sweep`')
        line += piece
    return line


def _stop_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def check(job: dict[str, Any]) -> int:
    """Raise ValueError unless data, recipe, method, probe and folder of every run fit together."""
    for one in job['runs']:
        try:
            experiment, folder = _opened(one)
            session = Session.open(experiment)
            experiment.optimizer.build(session.run)  # whose schedule may not fit into the run
            data = experiment.data
            if one['probe_split'] is not None:
                data = dataclasses.replace(data, train=one['probe_split'])
                data.check(shared_images(data.name), 'the probe_split for ')
            # Trained first and refused then, a run could never be evaluated.
            train, *_ = map(session.takes, probed(data))
            too_many(train, sgd='none')
            if folder.exists():
                folder.check(experiment, session.data, session.source.fingerprint())
        except ValueError as error:
            raise ValueError(f'{one["name"]}: {error}') from error
    return 0


def run(job: dict[str, Any]) -> int:
    """Trains and evaluates, going on with what is there, and writes result.json last."""
    (experiment, folder), path = _opened(job), pathlib.Path(job['folder'])
    lock.sign(path)  # the sweep holds the lock; this process is the one to be told to stop
    session = Session.open(experiment)
    step = _Counted(session)
    outcome = train(session, folder, monitor(session), step)
    if not outcome.finished:
        return EXIT_INTERRUPTED
    cost = path / 'training.json'
    if step.taken or not cost.exists():
        # A process that took no step does not know what the steps need.
        memory = peak_memory() if step.taken else None
        write(cost, json.dumps({'wall_s': wall_seconds(folder), 'peak_memory_mib': memory}))
    answer = evaluated(folder, Evaluate(run=job['folder'], **job['evaluation']))
    if answer['question']['step'] != session.run.steps:
        raise RuntimeError(
            f'the newest good checkpoint of {path} is of step {answer["question"]["step"]}, not of '
            f'the last, {session.run.steps}; run the sweep again: the run goes on from there'
        )
    result = {
        **{name: job[name] for name in ('variant', 'seed', 'factors', 'experiment', 'evaluation')},
        'rows': {
            KINDS.get(row['name'], 'trained'): {**row, **answer['collapse'][row['name']]}
            for row in answer['table']['rows']
        },
        'note': answer['display']['note'],
        'curve': curve(folder),
        **_cost(session, outcome.state),
        **json.loads(cost.read_text()),
        **{name: folder.read()[name] for name in ('ssljax', 'commit', 'devices')},
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }
    write(path / 'result.json', json.dumps(result, indent=1))
    return 0


def _opened(job: dict[str, Any]) -> tuple[Experiment, RunFolder]:
    """The experiment of a job and the folder of its run, which may name classes of the user's."""
    modules = tuple(module for file in job['definitions'] for module in defined_in(file))
    return config.decode(job['experiment'], modules), RunFolder.at(job['folder'], modules)


def _cost(session: Session, state: TrainState) -> dict[str, int | float]:
    run = session.run
    _, variables = session.experiment.method.product(state.params, state.method)
    return {
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
        'steps': run.steps,
        'images': run.steps * run.batch,
        'passes': run.steps * run.batch / run.examples,
    }


def curve(folder: RunFolder) -> list[dict[str, Any]]:
    """What validation said on the way: images drawn by then, and the scores by name."""
    batch = folder.experiment().batch
    records = metrics.read(folder.path)
    return [{'images': r['step'] * batch, **r['validation']} for r in records if 'validation' in r]


class _Counted:
    """A session's step that counts its calls."""

    def __init__(self, session: Session):
        self._session, self.taken = session, 0

    def __call__(self, *arguments):
        self.taken += 1
        return self._session.step(*arguments)


def wall_seconds(folder: RunFolder) -> float:
    """Seconds that the steps of a run took, over all processes that had a part in it.

    Compilation is left out: in every process what went before the first line of metrics counts like
    the steps behind it (a process that wrote one line counts whole). So are looks at validation.
    What was lost to a kill is not in the metrics and does not count.
    """
    parts: dict[int, list[tuple[int, float]]] = {}
    looks: dict[int, float] = {}
    for record in metrics.read(folder.path):
        step, clock = record['step'], record['clock']
        if 'loss' in record:
            parts.setdefault(clock['from'], []).append((step, clock['seconds']))
        elif 'validation' in record:
            looks[step] = clock['evaluation_s']
    return sum(_part_seconds(first, lines, looks) for first, lines in parts.items())


def _part_seconds(first: int, lines: list[tuple[int, float]], looks: dict[int, float]) -> float:
    """Seconds of the steps of one process.

    Args:
        first: the step it began at.
        lines: step and seconds since then, of every line.
        looks: seconds of looking at validation, by step; it comes behind the line of its step.
    """
    (begin, early), (end, late) = lines[0], lines[-1]
    looked = lambda after, before: sum(s for step, s in looks.items() if after <= step < before)
    if begin == end:
        # A look at the step it began at is from before.
        return late - looked(first + 1, end)
    return (late - early - looked(begin, end)) * (end - first) / (end - begin)


def peak_memory() -> float:
    """The most memory of the host that this process has held so far, in MiB."""
    # The number of `getrusage` begins with what the parent held, so the kernel's own is better.
    status = pathlib.Path('/proc/self/status')
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == 'darwin' else 2**10)
