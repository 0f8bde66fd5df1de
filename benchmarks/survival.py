"""Does a run survive? It is disturbed at random instants and has to end in undisturbed bits.

    python benchmarks/survival.py                             # 50 disturbances of one process
    python benchmarks/survival.py --processes 2               # of a run of two processes
    python benchmarks/survival.py --kinds full --disturbances 5
    python benchmarks/survival.py --experiment experiments/moco_v2_fashion_mnist.py -- --epochs 2.0

Any run can be put through it: what follows `--` are its options. Kinds of disturbance:

    kill       kill -9
    terminate  SIGTERM: it has to save and to end with code 75
    save       kill -9 inside a save
    flip       kill -9, then a bit is flipped in the newest checkpoint
    truncate   kill -9, then the newest checkpoint is cut short
    full       the disk fills up: the run has to end, saying so, and to lose nothing (it is kept on
               a small tmpfs, and mounting that takes root)
    one        kill -9 to one of several processes: the others have to end, saying so

Each is followed by the same command, which goes on. In the end parameters, optimizer and method
state, and metrics but for clock fields, are compared with those of a run that was let alone.
Exit code 0: they are the same.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ssljax.train import metrics
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.interrupt import EXIT_INTERRUPTED

ROOT = pathlib.Path(__file__).parent.parent
KINDS = ('kill', 'terminate', 'save', 'flip', 'truncate', 'full')
EXPERIMENT = ROOT / 'experiments' / 'simclr_fashion_mnist.py'
SMALL = (
    *('--smoke', '--steps', '600', '--evaluation.every', '40.0', '--log_every', '1'),
    *('--checkpoint.every', '7', '--checkpoint.keep_last', '3'),
)
"""The default run: seconds long, with many checkpoints."""

PATIENCE = 600.0
"""Seconds that anything may take."""


class BrokenPromiseError(Exception):
    """The run did not do what it promises; the message says what it did."""


class Harness:
    """A run in a folder, started and disturbed again and again.

    Args:
        experiment: its file.
        options: of `ssljax train`.
        log: a file, on another disk, for what the run says.
        processes: how many it has.
        seed: of the instants, kinds and bits.
    """

    def __init__(self, experiment, options, log: pathlib.Path, processes: int = 1, seed: int = 0):
        self.command = ['train', str(experiment), *options]
        self.log, self.processes = log, processes
        self.rng = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.damaged: set[pathlib.Path] = set()
        self.slowest_end = 0.0

    def start(self, folder: pathlib.Path, devices: int = 1) -> subprocess.Popen:
        """The run's process; it leads a session of its own, with all that it starts."""
        command = [sys.executable, '-c', 'from ssljax.cli import main; main()', *self.command]
        if self.processes > 1:
            launcher = str(ROOT / 'launch' / 'local_multiprocess.py')
            command = [sys.executable, launcher, str(self.processes), '--', *command]
        split = f'--xla_force_host_platform_device_count={devices}'
        flags = f'{os.environ.get("XLA_FLAGS", "")} {split}'
        return subprocess.Popen(
            [*command, '--folder', str(folder)],
            env=os.environ | {'XLA_FLAGS': flags},
            stdout=self.log.open('w'),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self, folder: pathlib.Path, devices: int = 1) -> None:
        """Runs to the end."""
        process = self.start(folder, devices)
        self._expect(process.wait(PATIENCE) == 0, process, folder, 'it should finish')

    def disturb(self, folder: pathlib.Path, kind: str, at: int) -> None:
        """Starts the run, disturbs it once it has taken step `at`, and sees it end."""
        # Whoever runs it makes room in time: what it has found damaged and set aside piles up.
        shutil.rmtree(folder / 'checkpoints' / 'rejected', ignore_errors=True)
        if kind == 'terminate' and folder.exists():
            # Told before it listens it just ends, as any program does: it has to have gone on.
            at = max(at, step_of(folder) + 1)
        process = self.start(folder)
        reached = until(process, lambda: step_of(folder) >= at)
        self._expect(reached, process, folder, f'it should run beyond step {at}')
        time.sleep(self.rng.random() * 0.05)
        getattr(self, f'_{kind}')(process, folder)
        self.counts[kind] += 1

    def said(self) -> str:
        """What the run's last process has said."""
        return self.log.read_text(errors='replace')

    def _kill(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        # A launcher's processes lead sessions of their own, and would outlive it to save.
        workers = children(process.pid) if self.processes > 1 and process.poll() is None else []
        for pid in (*workers, process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        process.wait(PATIENCE)

    def _terminate(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        process.terminate()
        code = process.wait(PATIENCE)
        told = code == EXIT_INTERRUPTED and 'saved' in self.said()
        self._expect(told, process, folder, f'it should save and end with {EXIT_INTERRUPTED}')

    def _save(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        marks = lambda: {mark.name for mark in (folder / 'checkpoints').glob('*.partial')}
        before = marks()
        inside = until(process, lambda: marks() - before)
        self._expect(inside, process, folder, 'it should save')
        self._kill(process, folder)

    def _newest(self, process: subprocess.Popen, folder: pathlib.Path) -> pathlib.Path:
        """The newest checkpoint of the run, killed when there is a whole one before it."""
        whole = lambda: [path for path in complete(folder) if path not in self.damaged]
        two = until(process, lambda: len(whole()) > 1)
        self._expect(two, process, folder, 'it should keep two checkpoints')
        self._kill(process, folder)
        newest = whole()[-1]
        self.damaged.add(newest)
        return newest

    def _flip(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        damaged = largest_file(self._newest(process, folder))
        content = bytearray(damaged.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        damaged.write_bytes(content)

    def _truncate(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        damaged = largest_file(self._newest(process, folder))
        os.truncate(damaged, self.rng.randrange(damaged.stat().st_size))

    def _full(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        filler = folder.parent / 'filler'
        try:
            with filler.open('wb', buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**16))
            began = time.monotonic()
            code = process.wait(PATIENCE)
            self.slowest_end = max(self.slowest_end, time.monotonic() - began)
        finally:
            filler.unlink()
        self._expect(code not in (0, EXIT_INTERRUPTED), process, folder, 'it should fail')
        self._expect('No space left' in self.said(), process, folder, 'it should say why')

    def _one(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        workers = children(process.pid)
        os.kill(self.rng.choice(workers), signal.SIGKILL)
        began = time.monotonic()
        code = process.wait(PATIENCE)
        self.slowest_end = max(self.slowest_end, time.monotonic() - began)
        self._expect(code not in (0, EXIT_INTERRUPTED), process, folder, 'it should fail')
        self._expect('SIGKILL' in self.said(), process, folder, 'it should say who died of what')

    def _expect(self, good: bool, process: subprocess.Popen, folder: pathlib.Path, what: str):
        if not good:
            self._kill(process, folder)
            last = '\n'.join(self.said().splitlines()[-25:])
            raise BrokenPromiseError(
                f'{what}; it ended with {process.returncode} at step {step_of(folder)}:\n{last}'
            )


def until(process: subprocess.Popen, happens: Callable) -> bool:
    """Waits for something to happen; False if the process ends first, or it takes too long."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.002)
    return False


def step_of(folder: pathlib.Path) -> int:
    """The last step in a run's metrics."""
    lines = metrics.read(folder) if (folder / 'metrics.jsonl').exists() else []
    return max((line['step'] for line in lines), default=0)


def complete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints that have their digest and no mark, oldest first."""
    found = [digest.parent for digest in (folder / 'checkpoints').glob('*/DIGEST')]
    whole = [path for path in found if not path.with_name(f'{path.name}.partial').exists()]
    return sorted(whole, key=lambda path: int(path.name.split('-')[0]))


def largest_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """The one that holds most of the arrays."""
    files = [p for p in checkpoint.rglob('*') if p.is_file() and p.name != 'DIGEST']
    return max(files, key=lambda path: path.stat().st_size)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(p) for p in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def leaves(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a run's latest state by name."""
    _, state = load_state(RunFolder.at(str(folder)))
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    raw = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    named = jax.tree_util.tree_leaves_with_path(jax.tree.map(raw, state))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


def differences(folder: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """What two runs differ in: names of arrays, bit for bit, and lines of metrics."""
    want, found = leaves(reference), leaves(folder)
    differ = [n for n in want if n not in found or want[n].tobytes() != found[n].tobytes()]
    lines = [metrics.without_clock(metrics.read(path)) for path in (reference, folder)]
    if lines[0] != lines[1]:
        differ.append(f'metrics.jsonl ({len(lines[0])} and {len(lines[1])} lines)')
    return differ


def losses(folder: pathlib.Path) -> np.ndarray:
    """The loss of every step."""
    return np.array([line['loss'] for line in metrics.read(folder) if 'loss' in line])


def plan(kinds: tuple[str, ...], count: int, steps: int, rng: random.Random):
    """`count` pairs of kind and step, every kind about as often, steps spread over the run."""
    drawn = [kinds[i % len(kinds)] for i in range(count)]
    rng.shuffle(drawn)
    # A kind that damages checkpoints needs two of them, and the last steps are for the end.
    first, last = round(0.1 * steps), round(0.85 * steps)
    return list(zip(drawn, sorted(rng.randrange(first, last) for _ in drawn), strict=True))


@contextlib.contextmanager
def small_disk(mebibytes: int) -> Iterator[pathlib.Path]:
    """A tmpfs of that size."""
    with tempfile.TemporaryDirectory() as folder:
        size = f'size={mebibytes}m'
        subprocess.run(['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', folder], check=True)
        try:
            yield pathlib.Path(folder)
        finally:
            subprocess.run(['umount', '-l', folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--experiment', type=pathlib.Path, default=EXPERIMENT)
    parser.add_argument('--disturbances', type=int, default=50)
    parser.add_argument('--kinds', nargs='+', choices=(*KINDS, 'one'), help='default: all')
    parser.add_argument('--processes', type=int, default=1, help='of the run')
    parser.add_argument('--seed', type=int, default=0, help='of kinds and instants')
    parser.add_argument('--disk', type=int, default=64, help='MiB of the small disk, for "full"')
    parser.add_argument('options', nargs='*', help='of `ssljax train`, behind --')
    asked = parser.parse_args()
    kinds = tuple(asked.kinds or KINDS + (('one',) if asked.processes > 1 else ()))
    # This process, which compares in the end, would else take three quarters of a GPU for itself.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    from provenance import header

    print(header())
    with contextlib.ExitStack() as stack:
        where = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reference, folder = where / 'undisturbed', where / 'disturbed'
        options = asked.options or SMALL
        harness = Harness(asked.experiment, options, where / 'log.txt', asked.processes, asked.seed)
        if 'full' in kinds:
            folder = stack.enter_context(small_disk(asked.disk)) / 'disturbed'
        harness.finish(reference)
        steps = step_of(reference)
        todo = plan(kinds, asked.disturbances, steps, harness.rng)
        print(f'\n{steps} steps undisturbed; now {len(todo)} disturbances', flush=True)
        began = time.monotonic()
        for number, (kind, at) in enumerate(todo, 1):
            harness.disturb(folder, kind, max(at, step_of(folder) if folder.exists() else 0))
            told = f'{number:3}/{len(todo)}  {kind:9}  step {step_of(folder):5}'
            print(f'{told}  {time.monotonic() - began:6.0f} s', flush=True)
        halfway = where / 'halfway'
        shutil.copytree(folder, halfway)
        harness.finish(folder)
        found = differences(folder, reference)
        counts = ', '.join(f'{count} {kind}' for kind, count in sorted(harness.counts.items()))
        print(f'\ndisturbed: {counts}')
        print(f'differences to the undisturbed run: {", ".join(found) or "none, bit for bit"}')
        if harness.slowest_end:
            print(f'slowest end after a full disk or a dead process: {harness.slowest_end:.1f} s')
        if jax.default_backend() == 'cpu':  # which alone can be split in two
            harness.finish(halfway, devices=2)
            off = np.max(np.abs(losses(halfway) / losses(reference) - 1))
            print(f'gone on with on twice the devices: losses differ by {off:.1e}, relative')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
