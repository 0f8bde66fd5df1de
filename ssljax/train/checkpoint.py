"""Checkpoints: saved in the background, committed whole or not at all, checked before use.

Orbax writes and reads the arrays; the shelf says which checkpoints count. Orbax's AsyncCheckpointer
is used and not its CheckpointManager, which deletes old checkpoints as soon as Orbax has committed
the new one: when that has no digest yet.
"""

import json
import logging
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ssljax.core import Tree
from ssljax.train import digest, leaves
from ssljax.train.shelf import Shelf, Slot, kept

_log = logging.getLogger(__name__)
_NONE, _DAMAGED = Slot(-2, 0), Slot(-1, 0)


class CheckpointError(ValueError):
    """A checkpoint could not be written or read; the message says what to do.

    Attributes:
        exit_code: of the command that meets it: not the user's input was bad.
    """

    exit_code = 1


class Checkpoints:
    """The checkpoints of one run: the last ones and the best ones.

    In a run of several processes each makes one and calls `save` and `restore` at the same points;
    process 0 keeps the folder. Reading changes nothing in it: a run in progress can be looked at.

    Args:
        folder: where they are, local or `gs://`; made at the first save.
        keep_last: number of newest checkpoints kept, at least 1.
        keep_best: number of checkpoints of highest score kept besides.
    """

    def __init__(self, folder: os.PathLike | str, keep_last: int, keep_best: int):
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f'keep_last is {keep_last} and keep_best {keep_best}; '
                'keep at least one last checkpoint and zero or more best ones'
            )
        import orbax.checkpoint as ocp

        # Orbax logs a traceback for every thread that sees one failure; we raise it once, in words.
        logging.getLogger('absl').addFilter(_not_of_orbax)
        _silence_closed_loops()
        folder = epath.Path(folder)
        if '://' not in os.fspath(folder):
            folder = epath.Path(os.path.abspath(folder))  # TensorStore takes no other
        self._shelf = Shelf(folder, keep_last, keep_best)
        # Weights do not compress, and trying takes the cores from the data pipeline.
        self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._primary = jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    @property
    def rejected(self) -> dict[str, str]:
        """Name and reason of every checkpoint that `restore` found damaged and that lies there."""
        return {slot.name: reason for slot, reason in self._shelf.rejected.items()}

    def save(self, step: int, state: Tree, meta: Mapping[str, Any], score: float | None) -> bool:
        """Starts to save; returns when the state has been copied, so that it may be donated.

        Waits for the save before, if that is still going on. Checkpoints of later steps, left
        behind by a rollback, are set aside once this one is complete.

        Args:
            step: optimizer steps taken.
            state: tree of arrays.
            meta: what else a resume needs, as JSON takes it.
            score: higher is better; None (or not a number): no candidate for the best.

        Returns:
            False if nothing is saved because the state is not finite (which is logged).

        Raises:
            CheckpointError: this save, or the one before, could not be written.
        """
        self.wait()
        arrays = leaves.named(state)
        broken = leaves.not_finite(arrays)
        if _anywhere(bool(broken)):
            found = leaves.listed(broken, 'arrays') or 'parts that another process holds'
            _log.error('step %d is not saved, not finite: %s', step, found)
            return False
        record = {
            'step': step,
            'score': score if score is not None and math.isfinite(score) else None,
            'meta': _as_json(meta),
            **leaves.describe(arrays),
        }
        try:
            slot = self._begin(step)
            self._writer.save(self._path(slot), args=leaves.to_save(arrays))
        except Exception as error:
            raise self._failed(step, error) from _system_error(error)
        self._thread = threading.Thread(target=self._finish, args=(slot, record), name='checkpoint')
        self._thread.start()
        return True

    def restore(self, like: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """The newest checkpoint that is whole; warns of damaged ones, saying why, and skips them.

        Args:
            like: the state wanted: shapes, dtypes and shardings (of any number of devices).

        Returns:
            `(state, meta)`; None if there is no checkpoint, or none was ever completed.

        Raises:
            CheckpointError: all of them are damaged, or the newest whole one is of another
                structure than `like`.
        """
        self.wait()
        slot = _NONE
        if self._primary:
            slot = self._shelf.newest_whole() or (_DAMAGED if self._shelf.rejected else _NONE)
        slot = _agreed(slot)
        if slot == _NONE:
            return None
        if slot == _DAMAGED:
            found = '; '.join(f'{name}: {reason}' for name, reason in self.rejected.items())
            raise CheckpointError(
                f'no checkpoint in {self._shelf.path} can be used '
                f'({found or "process 0 says why"}). '
                'Put back a copy of one, or remove that folder to start over'
            )
        return self._load(slot, like)

    def restore_step(self, step: int, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """The checkpoint of one step, as `restore` gives it.

        Raises:
            CheckpointError: there is none, it is damaged, or of another structure than `like`.
        """
        self.wait()
        slots = [slot for slot in self._shelf.slots() if slot.step == step]
        if not slots:
            raise CheckpointError(
                f'{self._shelf.path} has no checkpoint of step {step}; there are: {self.steps()}'
            )
        try:
            digest.verify(self._path(slots[-1]))
        except digest.DigestError as error:
            raise CheckpointError(
                f'checkpoint {self._path(slots[-1])} is damaged: {error}. Take another of '
                f'{self.steps()}, or put back a copy'
            ) from error
        return self._load(slots[-1], like)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending; their files are not checked."""
        return sorted({slot.step for slot in self._shelf.scores()})

    def best_step(self) -> int | None:
        """The step of the highest score (of equal ones, the latest); None if none has a score."""
        best = kept(self._shelf.scores(), 0, 1)
        return best.pop().step if best else None

    def wait(self) -> None:
        """Returns when nothing is being saved.

        Raises:
            CheckpointError: the last save could not be written. Raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits and lets go of Orbax's threads. Closing twice does no harm.

        Raises:
            CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._writer.close()

    def _path(self, slot: Slot) -> epath.Path:
        return self._shelf.path / slot.name

    def _begin(self, step: int) -> Slot:
        return _agreed(self._shelf.begin(step) if self._primary else _NONE)

    def _finish(self, slot: Slot, record: Mapping[str, Any]) -> None:
        try:
            self._writer.wait_until_finished()  # in every process: then all have written
            if self._primary:
                self._shelf.finish(slot, record)
        except Exception as error:
            self._error = self._failed(slot.step, error)
            self._error.__cause__ = _system_error(error)
            return
        try:
            if self._primary:
                self._shelf.tidy(slot)
        except Exception as error:  # a bucket's errors are TensorFlow's
            _log.warning('cannot remove old checkpoints in %s: %s', self._shelf.path, error)

    def _load(self, slot: Slot, like: Tree) -> tuple[Tree, dict[str, Any]]:
        path = self._path(slot)
        try:
            record = digest.read(path)
        except digest.DigestError as error:  # process 0 has verified it
            raise CheckpointError(
                f'process {jax.process_index()} does not find in {path} what process 0 does: '
                f'{error}. Put the folder on a disk that all processes see'
            ) from error
        differences = leaves.differences(record['leaves'], like)
        if differences:
            raise CheckpointError(
                f'checkpoint {path} holds another state than this experiment has: '
                f'{leaves.listed(differences, "differences")}. '
                'Go on with the experiment that wrote it, or use another folder'
            )
        try:
            return leaves.load(self._writer, path, record['keys'], like), record['meta']
        except Exception as error:
            raise CheckpointError(
                f'checkpoint {path} is whole but cannot be loaded here: {_reason(error)}'
            ) from error

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        """Removes what the failed save left, and says what happened."""
        path, known = self._shelf.path, ''
        error, what = _system_error(error), 'Make room or mend the disk'
        if '://' in os.fspath(path):
            what = 'See that the bucket can be reached and written to'
        if jax.process_count() > 1 and not isinstance(error, OSError):
            what = 'If another process ended before this one, its output has the cause; mend that'
        try:
            if self._primary:
                self._shelf.clear()
            if '://' not in os.fspath(path):
                known = f' ({shutil.disk_usage(path).free / 2**20:.0f} MiB are free there)'
            steps = self.steps()
            known += f'. The checkpoint of step {steps[-1]} is whole' if steps else ''
        except Exception:  # the disk or the bucket itself is gone: say what is known
            pass
        return CheckpointError(
            f'the checkpoint of step {step} could not be written to {path}: '
            f'{_reason(error)}{known}. {what}, and start the same command again'
        )


def _agreed(slot: Slot) -> Slot:
    """Process 0's slot, in every process."""
    if jax.process_count() == 1:
        return slot
    step, generation = multihost_utils.broadcast_one_to_all(np.array(slot, np.int32))
    return Slot(int(step), int(generation))


def _anywhere(here: bool) -> bool:
    """Whether it is so in any process, in every process."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).any())


def _as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `meta` as it will be read back, taken before the run changes it."""
    try:
        return json.loads(json.dumps(dict(meta)))
    except TypeError as error:
        raise ValueError(f'meta cannot be kept as JSON: {error}; give numbers and text') from error


def _system_error(error: BaseException) -> BaseException:
    """The OSError behind an error of TensorStore, which tells it only in its text."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if isinstance(error, OSError) or code is None:
        return error
    found = OSError(int(code[1]), os.strerror(int(code[1])))
    found.__cause__ = error
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or 'orbax' not in record.pathname


def _silence_closed_loops() -> None:
    """Drops the tracebacks that follow a failed write, one for every file still being written.

    Orbax closes its event loop at the first file that fails; TensorStore's threads then report the
    others to a loop that is gone, and Python prints each of these reports.
    """
    if getattr(sys.excepthook, 'silences_closed_loops', False):
        return
    before = sys.excepthook

    def hook(kind, error, trace):
        if not (kind is RuntimeError and str(error) == 'Event loop is closed'):
            before(kind, error, trace)

    hook.silences_closed_loops = True
    sys.excepthook = hook
