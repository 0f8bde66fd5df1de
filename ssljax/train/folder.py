"""A run's folder: what it holds, under which names, and how a run is rebuilt from it alone.

run.json          the resolved experiment, data fingerprint, versions, commit, devices; `resumed`
                  has the steps from which on it went on with others of the last three
metrics.jsonl     a line every few steps
checkpoints/      the states
evaluation.json   the final table
export/           encoders
report.html       all of it to look at
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from types import ModuleType
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

import ssljax
from ssljax import config
from ssljax.core import Signature
from ssljax.data.graph import tensorflow
from ssljax.experiment import FREE_ON_RESUME, Experiment

SEEN_WITHIN = 60.0
"""Seconds until a file that process 0 wrote is seen by the others: NFS remembers its absence."""

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorflow-cpu')


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run and its record; local or remote (gs://).

    Attributes:
        path: the folder.
        definitions: modules of the user's whose classes the record may name, beside those of
            ssljax.
    """

    path: epath.Path
    definitions: tuple[ModuleType, ...] = ()

    @classmethod
    def at(cls, path: str, definitions: tuple[ModuleType, ...] = ()) -> 'RunFolder':
        """The folder at `path`, which need not exist yet."""
        return cls(epath.Path(path), definitions)

    @property
    def checkpoints(self) -> epath.Path:
        """Where the states are."""
        return self.path / 'checkpoints'

    @property
    def evaluation(self) -> epath.Path:
        """The final table, as JSON."""
        return self.path / 'evaluation.json'

    @property
    def report(self) -> epath.Path:
        """The report for a browser."""
        return self.path / 'report.html'

    @property
    def record(self) -> epath.Path:
        """The resolved experiment and what it ran with."""
        return self.path / 'run.json'

    def exists(self) -> bool:
        """Whether a run has started here.

        Raises:
            ValueError: the bucket that it should be in is not there, or may not be looked into.
        """
        reach(self.path)
        return self.record.exists()

    def read(self) -> dict[str, Any]:
        """The record.

        Raises:
            ValueError: if there is no run here, or its record is damaged.
        """
        if not self.exists():
            raise ValueError(
                f'{self.path} is not the folder of a run: it has no run.json; '
                'name a folder that `ssljax train` has written'
            )
        try:
            return json.loads(self.record.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f'{self.record} is damaged ({error}); restore it from a copy, or train anew in '
                'another folder'
            ) from error

    def experiment(self) -> Experiment:
        """The experiment, rebuilt from the record alone."""
        found = config.decode(self.read()['experiment'], self.definitions)
        if not isinstance(found, Experiment):
            raise ValueError(f'{self.record} holds a {type(found).__name__}, not an Experiment')
        return found

    def signature(self) -> Signature:
        """What the run's data delivered: enough to rebuild its state without the data."""
        found = dict(self.read()['data'])
        found.pop('fingerprint')
        views = tuple((name, tuple(shape)) for name, shape in found.pop('views'))
        return Signature(views=views, **found)

    def begin(
        self, experiment: Experiment, data: Signature, fingerprint: str, step: int = 0
    ) -> str:
        """Writes the record of a new run, or checks that this is the run that was begun here.

        Of several processes the first writes it, and the others see that they see it.

        Args:
            experiment: what is run.
            data: what its data deliver.
            fingerprint: of its training images.
            step: that the run goes on from.

        Returns:
            What this part of the run has other than the part before (packages, commit, devices), in
            words, for process 0 to say; '' if nothing is.

        Raises:
            ValueError: naming the fields that differ and those that may; or a process that does
                not see the folder of process 0.
        """
        changes = ''
        if self.exists():
            self.check(experiment, data, fingerprint)
            if jax.process_index() == 0:
                record = {**self.read(), 'experiment': config.encode(experiment)}
                if step < experiment.run(data.examples).steps:
                    record, changes = _resumed(record, step)
                self._write(record)
        elif jax.process_index() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(
                {
                    'experiment': config.encode(experiment),
                    'data': {'fingerprint': fingerprint, **dataclasses.asdict(data)},
                    **_origin(),
                }
            )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices('the record of the run')
            self._wait_until_seen()
        return changes

    def _wait_until_seen(self) -> None:
        end = time.monotonic() + SEEN_WITHIN
        while not self.exists():
            if time.monotonic() > end:
                raise ValueError(
                    f'process {jax.process_index()} does not see {self.record}, which process 0 '
                    'has written; choose a --folder on a disk that all processes see, or a bucket'
                )
            time.sleep(0.5)

    def check(self, experiment: Experiment, data: Signature, fingerprint: str) -> None:
        """Raise ValueError, naming what differs and what may, unless this is the run begun here."""
        record = self.read()
        differences = [
            f'  {path}: {old!r} there, {new!r} now'
            for path, old, new in config.diff(record['experiment'], config.encode(experiment))
            if not any(path == free or path.startswith(f'{free}.') for free in FREE_ON_RESUME)
        ]
        if differences:
            raise ValueError(
                f'{self.path} holds another run; it differs in\n'
                + '\n'.join(differences)
                + f'\nOnly {", ".join(FREE_ON_RESUME)} may change when a run goes on. '
                'Choose another --folder to start a new run, with --init-from to start from '
                "this one's weights."
            )
        began = record['data']['fingerprint']
        if began != fingerprint:
            raise ValueError(
                f'the training images are not those that {self.path} began with (fingerprint '
                f'{began} there, {fingerprint} now); bring the data back, or choose another '
                '--folder'
            )

    def _write(self, record: dict[str, Any]) -> None:
        # Renamed into place: a run killed here must not leave half a record, nor a machine lost.
        half = self.path / f'run.json.{jax.process_index()}.tmp'
        with half.open('w') as file:
            file.write(json.dumps(record, indent=1))
            if '://' not in os.fspath(half):
                file.flush()
                os.fsync(file.fileno())
        half.replace(self.record)


class UnreachableError(RuntimeError):
    """A bucket does not answer, which is nobody's bad input: tried again, it may."""

    exit_code = 1


def reach(path: epath.Path) -> None:
    """Asks a bucket about a path in it, and says what is wrong with the bucket.

    TensorFlow, asked to write into one that is not there, still tries after twenty minutes.

    Raises:
        ValueError: there is no such bucket, or it does not answer us.
        UnreachableError: it does not answer anybody just now.
    """
    if '://' not in str(path):
        return
    tf = tensorflow()
    try:
        tf.io.gfile.stat(str(path))
    except tf.errors.NotFoundError as error:
        # Otherwise it is the path that is not found, by an answer that lists nothing.
        if 'HTTP response code 404' in error.message:
            bucket = path.parts[2] if len(path.parts) > 2 else ''
            raise ValueError(f'there is no bucket {bucket!r} for {path}; make it first') from error
    except tf.errors.OpError as error:
        why = f'{path} cannot be reached: {error.message.splitlines()[0]}'
        of = tf.errors
        if isinstance(error, of.UnavailableError | of.DeadlineExceededError | of.AbortedError):
            raise UnreachableError(f'{why}. Give the same command again') from error
        raise ValueError(
            f'{why}. See to the credentials (gcloud auth application-default login) and to what '
            'they allow'
        ) from error


def commit() -> str | None:
    """The commit of this checkout ('+' if it has changes), or None outside one."""
    here = epath.resource_path('ssljax').parent
    try:
        revision = _git(here, 'rev-parse', '--short', 'HEAD')
        return revision + ('+' if _git(here, 'status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: epath.Path, *arguments: str) -> str:
    command = ['git', '-C', str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _origin() -> dict[str, Any]:
    """What a part of a run is computed with."""
    return {
        'ssljax': ssljax.__version__,
        'commit': commit(),
        'python': platform.python_version(),
        'packages': _versions(),
        'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    }


def _resumed(record: dict[str, Any], step: int) -> tuple[dict[str, Any], str]:
    """The record of a run that goes on from a step, and what it has other than before, in words.

    As the lines of metrics, the parts that began at this step or later are dropped: none of their
    steps is left.
    """
    now = _origin()
    parts = [part for part in record.get('resumed', ()) if part['step'] < step]
    before, after = _flat(parts[-1] if parts else record), _flat(now)
    changes = [
        f'{name} {after.get(name)} ({before.get(name)} before)'
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changes:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        parts.append({'step': step, 'date': date, **now})
    record = {name: value for name, value in record.items() if name != 'resumed'}
    return {**record, 'resumed': parts} if parts else record, ', '.join(changes)


def _flat(origin: dict[str, Any]) -> dict[str, Any]:
    names = ('ssljax', 'commit', 'python', 'devices')
    return {**{name: origin.get(name) for name in names}, **origin.get('packages', {})}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
