#!/usr/bin/env python3
"""Starts a command as several processes of one run on this machine, and ends them together.

    launch/local_multiprocess.py 2 -- ssljax train experiments/simclr_fashion_mnist.py

Every process is told who the others are (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
JAX_PROCESS_ID); its lines are shown behind its number. When one of them dies, the others are given
a few seconds to say what they noticed, and are then killed; which one died first, of what, and its
last lines are said last. SIGTERM and Ctrl-C are passed on to all of them, which save and stop; a
second one kills them. Needs nothing but Python's standard library.

Exit code: the one that all processes agree on (0 finished, 75 stopped and saved), otherwise that of
the process that failed first (128 + n if it died of signal n).
"""

import argparse
import collections
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time

PATIENCE = 10.0
"""Seconds that the other processes are left when one has failed."""

NOT_FOUND = 127
"""Exit code where there is no such command, as a shell has it."""

LAST_LINES = 15
"""Lines of the process that failed first that are shown again at the end."""


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    options = parsed(arguments)
    processes = [Process(i, options) for i in range(options.processes)]
    told = Told(processes)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    try:
        for process in processes:
            if not told.times:
                process.start()
    except OSError as error:
        say(f'{options.command[0]} cannot be started: {error.strerror}')
        for process in processes:
            process.send(signal.SIGKILL)
        return NOT_FOUND
    first = wait(processes, options.patience)
    for process in processes:
        process.join()
    return verdict(processes, first)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[0],
        usage='%(prog)s [options] N -- COMMAND ...',
    )
    parser.add_argument('processes', type=int, metavar='N', help='number of processes')
    parser.add_argument('command', nargs='+', help='what each of them runs')
    parser.add_argument(
        '--device-each',
        action='store_true',
        help='process i sees device i alone (JAX_LOCAL_DEVICE_IDS): one process per GPU',
    )
    parser.add_argument(
        '--patience',
        type=float,
        default=PATIENCE,
        help='seconds that the others are left when one has failed (default: %(default)s)',
    )
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f'{options.processes} processes; start at least 1')
    options.coordinator = f'localhost:{free_port()}'
    return options


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(('localhost', 0))
        return found.getsockname()[1]


class Process:
    """One process of the run, its output shown line by line.

    Args:
        number: which one.
        options: the command line.

    Attributes:
        number: which one.
        last: its last lines.
        code: its exit code, minus the signal that killed it; None while it runs.
        ended: when it ended, by a clock of this machine.
    """

    def __init__(self, number: int, options: argparse.Namespace):
        self.number = number
        self.last = collections.deque(maxlen=LAST_LINES)
        self._options = options
        self.code: int | None = None
        self.ended = 0.0
        self._process: subprocess.Popen | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts it."""
        options = self._options
        environment = {
            **os.environ,
            'JAX_COORDINATOR_ADDRESS': options.coordinator,
            'JAX_NUM_PROCESSES': str(options.processes),
            'JAX_PROCESS_ID': str(self.number),
            'PYTHONUNBUFFERED': '1',
        }
        if options.device_each:
            environment['JAX_LOCAL_DEVICE_IDS'] = str(self.number)
        self._process = subprocess.Popen(
            options.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,  # Ctrl-C comes to the launcher alone, and is passed on once
            preexec_fn=_die_with_parent,
        )
        for work in (self._read, self._wait):
            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()

    def _wait(self) -> None:
        code = self._process.wait()
        self.ended, self.code = time.monotonic(), code

    def _read(self) -> None:
        for line in self._process.stdout:
            self.last.append(line.rstrip('\n'))
            print(f'[{self.number}] {line}', end='' if line.endswith('\n') else '\n', flush=True)

    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self.code is None

    def send(self, number: int) -> None:
        """Sends it, and what it has started, a signal."""
        if self.runs():
            os.killpg(self._process.pid, number)

    def join(self) -> None:
        """Waits until its last line is shown."""
        for thread in self._threads:
            thread.join(5)  # something that it has started may hold the pipe open


class Told:
    """What is done about SIGTERM and Ctrl-C: the first is passed on, the second kills.

    Attributes:
        times: how often it has come.
    """

    def __init__(self, processes: list[Process]):
        self.times = 0
        self._processes = processes

    def __call__(self, *_) -> None:
        """Passes it on."""
        self.times += 1
        for process in self._processes:
            process.send(signal.SIGTERM if self.times == 1 else signal.SIGKILL)


def wait(processes: list[Process], patience: float) -> Process | None:
    """Returns when all have ended; the one that failed first, if any.

    Args:
        processes: those that were started.
        patience: seconds until the others are killed once one has failed.
    """
    while any(process.runs() for process in processes):
        time.sleep(0.05)
        first = first_failed(processes)
        if first is not None and time.monotonic() > first.ended + patience:
            for process in processes:
                process.send(signal.SIGKILL)
    return first_failed(processes)


def first_failed(processes: list[Process]) -> Process | None:
    """The process that failed before the others, None if none has."""
    return min((p for p in processes if failed(p.code)), key=lambda p: p.ended, default=None)


def failed(code: int | None) -> bool:
    """Whether a process ended otherwise than finished, or stopped and saved."""
    return code not in (None, 0, 75)


def verdict(processes: list[Process], first: Process | None) -> int:
    """Says how the run ended; returns the exit code."""
    if first is None:
        codes = {process.code for process in processes}
        if None in codes:  # told before all were started
            return 128 + signal.SIGTERM
        return codes.pop() if len(codes) == 1 else 1
    say(f'process {first.number} of {len(processes)} failed first: {meaning(first.code)}')
    for process in processes:
        if process is not first and process.code is not None:
            say(f'process {process.number} then: {meaning(process.code)}')
    say(f'the last lines of process {first.number}:')
    for line in first.last:
        say(f'    {line}')
    return first.code if first.code > 0 else 128 - first.code


def meaning(code: int) -> str:
    """An exit code in words."""
    return f'exit code {code}' if code >= 0 else f'killed by {signal.Signals(-code).name}'


def say(text: str) -> None:
    """A line of the launcher's own."""
    print(f'local_multiprocess: {text}', file=sys.stderr, flush=True)


def _die_with_parent() -> None:
    """Has the system tell a process to stop when the launcher is gone, however it went (Linux)."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
