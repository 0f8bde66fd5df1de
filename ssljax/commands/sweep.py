"""`ssljax sweep`: what is missing of a study is run, each run in a process of its own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from ssljax import config
from ssljax.cli import EXIT_FAILED, Sweep
from ssljax.definitions import defining, load_study
from ssljax.study import Run, Study
from ssljax.sweep import lock, results
from ssljax.sweep.folder import StudyFolder, question
from ssljax.sweep.lines import scores

EXIT_INTERRUPTED = 75
"""Exit code of a sweep that was told to stop: its runs have saved (as `ssljax train` has it)."""

CHILD = 'import sys; from ssljax.commands.sweep_child import main; sys.exit(main())'
"""The program of the process that each run has to itself."""

PATIENCE = 5.0
"""Seconds after which a run that was told to stop is told again: it may have been evaluating."""


def main(options: Sweep) -> int:
    """Runs a study; returns the exit code."""
    study = load_study(options.study)
    study = study.smoke() if options.smoke else study
    name = pathlib.Path(options.study).stem + ('_smoke' if options.smoke else '')
    folder = StudyFolder.at(options.folder or f'studies/{name}')
    runs = study.runs(options.only)
    for run in study.runs():  # the table shows all of them, whichever are run now
        folder.check(study, run)
    if options.list:
        return _list(study, folder, runs)
    sweep = _Sweep(study, folder, runs)
    with sweep.listening():
        code = sweep.check()
        if code:
            return EXIT_INTERRUPTED if sweep.told else code
        sweep.work()
        results.publish(study, folder)
    sweep.say(f'{folder.path}: results.md, results.csv, figure.png')
    if sweep.told and sweep.missing():
        return EXIT_INTERRUPTED
    return EXIT_FAILED if sweep.failed else 0


def _list(study: Study, folder: StudyFolder, runs: Sequence[Run]) -> int:
    for run in runs:
        print(f'{run.name:40}  {_state(study, folder, run)}')
    return 0


def _state(study: Study, folder: StudyFolder, run: Run) -> str:
    if (result := folder.result(study, run)) is not None:
        return f'done: {scores(result["rows"]["trained"])}'
    if not folder.of(run).exists():
        return 'missing'
    descriptor = lock.take(folder.of(run))
    if descriptor is None:
        return 'running'
    os.close(descriptor)
    return 'begun'


class _Sweep:
    """The work of one shell on a study."""

    def __init__(self, study: Study, folder: StudyFolder, runs: Sequence[Run]):
        self.study, self.folder, self.runs = study, folder, runs
        self.told = False
        self.failed: set[str] = set()
        self._process: subprocess.Popen | None = None
        self._console = Console(file=sys.stdout)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def missing(self) -> list[Run]:
        """The runs that are not done and have not failed here."""
        return [
            run
            for run in self.runs
            if run.name not in self.failed and self.folder.result(self.study, run) is None
        ]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM and Ctrl-C as a request to stop; a second Ctrl-C kills the run."""

        def stop(number: int, _: Any) -> None:
            again, self.told = self.told and number == signal.SIGINT, True
            if self._process is not None:
                (self._process.kill if again else self._process.terminate)()

        before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.told:  # said again on the way out, it shall not end it without its exit code
                signal.signal(signal.SIGTERM, lambda *_: None)

    def check(self) -> int:
        """The exit code of a process that opens every missing run and starts none."""
        probed = self.study.probe_split
        asked = [
            {'name': run.name, 'probe_split': probed, **self._what(run)} for run in self.missing()
        ]
        if not asked:
            return 0
        with _child({'do': 'check', 'runs': asked}) as self._process:
            return self._process.wait()

    def work(self) -> None:
        """Does what is missing; then waits for what others are doing, ready to take it over."""
        waited = False
        while (missing := self.missing()) and not self.told:
            taken = [run for run in missing if not self.told and self._take(run)]
            if not taken and not self.told:
                if not waited:
                    self.say(f'waiting for {len(missing)} run(s) that others are doing')
                waited = True
                time.sleep(1)

    def _take(self, run: Run) -> bool:
        """Does a run unless another has it; whether it was free."""
        descriptor = lock.take(self.folder.of(run))
        if descriptor is None:
            return False
        try:
            # Another may have done it between the look and the lock.
            if self.folder.result(self.study, run) is None:
                self._do(run, descriptor)
        finally:
            os.close(descriptor)
        return True

    def _do(self, run: Run, descriptor: int) -> None:
        where = f'[{self.runs.index(run) + 1}/{len(self.runs)}] {run.name}'
        log = self.folder.log(run)
        job = {
            'do': 'run',
            **self._what(run),
            'variant': run.variant.name,
            'seed': run.seed,
            'factors': run.variant.factors,
            'evaluation': question(self.study, run),
        }
        self.say(f'{where}: starts')
        with log.open('ab') as output, _child(job, output, descriptor) as self._process:
            code = self._wait(where, log)
        self._process = None
        result = self.folder.result(self.study, run)
        if result is not None:
            took = f'{result["wall_s"]:.0f} s of training'
            self.say(f'{where}: {scores(result["rows"]["trained"])}  ({took})')
            results.publish(self.study, self.folder)
        elif self.told or code in (EXIT_INTERRUPTED, -signal.SIGTERM):
            self.told = True  # whoever told the run meant the sweep
            self.say(f'{where}: stopped; the same command goes on')
        else:
            self.failed.add(run.name)
            self.say(f'{where}: FAILED with {_meaning(code)}; its last words, from {log}:')
            self.say('\n'.join(f'    {line}' for line in _last_lines(log, 5)))

    def _what(self, run: Run) -> dict[str, Any]:
        experiment = config.encode(run.experiment)
        return {
            'folder': str(self.folder.of(run)),
            'experiment': experiment,
            'definitions': defining(experiment),
        }

    def _wait(self, where: str, log: pathlib.Path) -> int:
        """Waits for the run's process, showing on a terminal what it says last."""
        with self._console.status(Text(where)) as status:
            told_again = time.monotonic() + PATIENCE
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self._process.wait(0.5)
                if self._console.is_terminal:
                    status.update(Text(f'{where}: {" ".join(_last_lines(log, 1))}'))
                if self.told and time.monotonic() > told_again:
                    self._process.terminate()
                    told_again = time.monotonic() + PATIENCE


@contextlib.contextmanager
def _child(
    job: dict[str, Any], output: Any = None, descriptor: int | None = None
) -> Iterator[subprocess.Popen]:
    """A process that does a job; it stops when this one is gone, and holds the lock until then."""
    process = subprocess.Popen(
        [sys.executable, '-c', CHILD],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        pass_fds=() if descriptor is None else (descriptor,),
        start_new_session=True,  # Ctrl-C comes here alone, and is passed on once
    )
    try:
        with contextlib.suppress(BrokenPipeError):  # it has died: its exit code says so
            process.stdin.write(json.dumps(job).encode() + b'\n')
            process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def _meaning(code: int) -> str:
    return f'exit code {code}' if code >= 0 else f'signal {signal.Signals(-code).name}'


def _last_lines(log: pathlib.Path, count: int) -> list[str]:
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return file.read().decode(errors='replace').splitlines()[-count:]
