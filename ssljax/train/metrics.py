"""`metrics.jsonl`: one JSON object a line, the step first, everything read off a clock apart.

A resumed run cuts the file back to the step it resumed at, so that in the end it is the file of a
run that was never interrupted, but for the fields under `clock`.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

NAME = 'metrics.jsonl'
REWRITE_SECONDS = 30.0
"""Between two times that a file in a bucket is written anew, if it is no more than one MiB."""
_log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends to `metrics.jsonl`, a line at a time, each handed to the system at once.

    Buckets cannot append: there the lines are kept and the file is written anew every half minute,
    less often as it grows, ahead of a checkpoint, and on closing. Only process 0 writes.

    Args:
        folder: the run's folder, local or `gs://`; made if it is not there.
        resume_step: the step of the restored state: lines of later steps are cut off. None for a
            run that starts from nothing: all of them are.
    """

    def __init__(self, folder: os.PathLike | str, resume_step: int | None):
        self._path = epath.Path(folder) / NAME
        self._appends = _can_append(self._path)
        self._file = None
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = _cut(self._path, -1 if resume_step is None else resume_step)
        self._rewrite()
        if self._appends:
            self._file = self._path.open('a')

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one line, the step first.

        Args:
            record: `step` (optimizer steps taken); scalars (Python's, NumPy's or a JAX array of one
                element), strings, or dicts and lists of them, the same in every run of the same
                seed; and under `clock` what is not: seconds, images/s, time left, dates.

        Raises:
            ValueError: if there is no step, or a metric is an array.
        """
        record = _plain(record)
        if not isinstance(record.get('step'), int):
            raise ValueError(
                f'a line of metrics needs `step`, a whole number; given: {", ".join(record)}'
            )
        if not self._writes:
            return
        line = json.dumps({'step': record['step'], **record}, allow_nan=False) + '\n'
        if self._appends:
            self._file.write(line)
            self._file.flush()
            return
        self._lines.append(line)
        if time.monotonic() - self._rewritten > REWRITE_SECONDS * max(1.0, self._size / 2**20):
            self._rewrite()

    def sync(self) -> None:
        """Makes sure that what was written outlives the machine; before a state is saved."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        elif self._writes and not self._appends:
            self._rewrite()

    def close(self) -> None:
        """Writes what is still held back. Closing twice does no harm."""
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._writes and not self._appends:
            self._rewrite()

    def _rewrite(self) -> None:
        self._rewritten = time.monotonic()
        text = ''.join(self._lines)
        self._size = len(text)
        if not self._appends:
            self._path.write_text(text)  # an object in a bucket appears whole
            return
        temporary = self._path.with_name(NAME + '.tmp')
        with temporary.open('w') as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(self._path)
        self._lines = []


def read(folder: os.PathLike | str) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; [] if there is no such file.

    A last line that a kill cut short is left out. Not-a-number and infinities are the strings
    'nan', 'inf' and '-inf', which `float()` takes as it takes numbers.

    Raises:
        ValueError: naming the line, if one before the last is not JSON.
    """
    path = epath.Path(folder) / NAME
    lines = _lines(path)
    records = [_parsed(line) for line in lines]
    if records and records[-1] is None:
        records.pop()
    if None in records:
        number = records.index(None) + 1
        raise ValueError(f'{path}, line {number}, is not JSON; remove it: {lines[number - 1][:80]}')
    return records


def without_clock(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records without what a clock gave: equal for two runs that computed the same."""
    return [{name: value for name, value in r.items() if name != 'clock'} for r in records]


def _can_append(path: epath.Path) -> bool:
    return '://' not in os.fspath(path)


def _lines(path: epath.Path) -> list[str]:
    if not path.exists():
        return []
    # A machine that lost power may leave bytes that are no text.
    return [line.decode(errors='replace') for line in path.read_bytes().splitlines()]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get('step'), int) else None


def _cut(path: epath.Path, last: int) -> list[str]:
    kept, lines = [], _lines(path)
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is None and number < len(lines):
            _log.warning('%s: line %d is not JSON and is dropped', path, number)
        if record is not None and record['step'] <= last:
            kept.append(line + '\n')
    return kept


def _plain(value: Any, name: str = 'a metric') -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(v, str(key)) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, name) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        if value.size != 1:
            raise ValueError(
                f'{name} is an array of shape {tuple(value.shape)}; metrics are scalars: '
                'reduce it, or give its elements names'
            )
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
