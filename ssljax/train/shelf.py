"""The folder of checkpoints: which ones count, which are kept, what a kill leaves behind.

    20/              the state after 20 steps: Orbax's files and, written last, the DIGEST
    20-2/            the same step saved again (after a rollback)
    30.partial       a mark: 30/ is being written or deleted, and means nothing
    rejected/        checkpoints found damaged, or left behind by a rollback

A checkpoint counts once it has its digest and has lost its mark; only then are older ones deleted.
So there is no instant at which a kill costs more than the checkpoint being written.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from ssljax.train import digest

_log = logging.getLogger(__name__)
_FOLDER = re.compile(r'(0|[1-9]\d*)(?:-([2-9]|[1-9]\d+))?')
_MARK = '.partial'


class Slot(NamedTuple):
    """One place on the shelf.

    Attributes:
        step: optimizer steps taken.
        generation: 1, or more if the step was saved again while an older one lay there.
    """

    step: int
    generation: int

    @classmethod
    def of(cls, name: str) -> 'Slot | None':
        """The slot of a folder's name, None if it is not one of ours."""
        match = _FOLDER.fullmatch(name)
        return cls(int(match[1]), int(match[2] or 1)) if match else None

    @property
    def name(self) -> str:
        """The folder's name."""
        return str(self.step) if self.generation == 1 else f'{self.step}-{self.generation}'


class Shelf:
    """The folder, as one process keeps it. Looking at it changes nothing.

    Args:
        path: the folder; made when the first checkpoint is begun.
        keep_last: number of newest checkpoints kept.
        keep_best: number of checkpoints of highest score kept besides.

    Attributes:
        rejected: why, for every checkpoint that `newest_whole` found damaged and that lies there.
    """

    def __init__(self, path: epath.Path, keep_last: int, keep_best: int):
        self.path = path
        self.rejected: dict[Slot, str] = {}
        self._last, self._best = keep_last, keep_best
        self._swept = False

    def slots(self) -> list[Slot]:
        """Checkpoints without a mark, oldest first; whether they are whole is not known."""
        if not self.path.exists():
            return []
        names = {path.name for path in self.path.iterdir()}
        found = (Slot.of(name) for name in names if name + _MARK not in names)
        return sorted(slot for slot in found if slot)

    def scores(self) -> dict[Slot, float | None]:
        """Scores of the finished checkpoints, oldest first; their files are not checked."""
        found = {}
        for slot in self.slots():
            try:
                found[slot] = digest.read(self.path / slot.name)['score']
            except digest.DigestError:
                continue
        return {slot: score for slot, score in found.items() if slot not in self.rejected}

    def newest_whole(self) -> Slot | None:
        """The newest checkpoint whose every file is as its digest says; fills `rejected`."""
        self.rejected.clear()
        for slot in reversed(self.slots()):
            try:
                digest.verify(self.path / slot.name)
                return slot
            except digest.DigestError as error:
                self.rejected[slot] = str(error)
                _log.warning('checkpoint %s is not used: %s', self.path / slot.name, error)
        return None

    def begin(self, step: int) -> Slot:
        """A free slot for `step`, marked as being written."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            self.clear()
            self._swept = True
        taken = [slot.generation for slot in self.slots() if slot.step == step]
        slot = Slot(step, max(taken, default=0) + 1)
        self._mark(slot).touch()
        return slot

    def finish(self, slot: Slot, record: Mapping[str, Any]) -> None:
        """From here on `slot` counts; `record` goes into its digest and must name the `score`."""
        digest.write(self.path / slot.name, record)
        self._mark(slot).unlink()

    def clear(self) -> None:
        """Removes what was being written or deleted when a process ended or the disk was full."""
        paths = list(self.path.iterdir())
        for mark in (path for path in paths if path.name.endswith(_MARK)):
            name = mark.name.removesuffix(_MARK)
            for path in paths:
                if path.name == name or path.name.startswith(f'{name}.orbax-checkpoint-tmp'):
                    path.rmtree()
            mark.unlink()
            _log.info('removed the unfinished checkpoint %s', self.path / name)

    def tidy(self, newest: Slot) -> None:
        """Sets aside what is damaged or of another history; deletes what need not be kept.

        Args:
            newest: the checkpoint just finished: whatever lies behind its step is of a history
                that the run has left.
        """
        scores: dict[Slot, float | None] = {}
        for slot in self.slots():
            reason = self.rejected.get(slot)
            try:
                score = digest.read(self.path / slot.name)['score']
            except digest.DigestError as error:
                reason = str(error)
            if reason is None and slot.step > newest.step:
                reason = f'the run went back and has saved step {newest.step} since'
            if reason is None:
                scores[slot] = score
            else:
                self._set_aside(slot, reason)
        older = {slot for slot in scores if slot.step == newest.step and slot != newest}
        current = {slot: score for slot, score in scores.items() if slot not in older}
        for slot in older | (current.keys() - kept(current, self._last, self._best)):
            self._mark(slot).touch()
            (self.path / slot.name).rmtree()
            self._mark(slot).unlink()

    def _mark(self, slot: Slot) -> epath.Path:
        return self.path / (slot.name + _MARK)

    def _set_aside(self, slot: Slot, reason: str) -> None:
        rejected = self.path / 'rejected'
        rejected.mkdir(exist_ok=True)
        target, number = rejected / slot.name, 1
        while target.exists():
            number += 1
            target = rejected / f'{slot.name}.{number}'
        (self.path / slot.name).rename(target)
        self.rejected.pop(slot, None)
        _log.warning('checkpoint %s is set aside as %s: %s', slot.name, target, reason)


def kept(scores: Mapping[Slot, float | None], last: int, best: int) -> set[Slot]:
    """The checkpoints to keep: the `last` newest and the `best` of highest score.

    Args:
        scores: scores by slot; None is no candidate for the best.
        last: number of newest ones.
        best: number of best ones; of equal scores, the newer is better.
    """
    newest = sorted(scores, reverse=True)
    ranked = sorted((s for s in newest if scores[s] is not None), key=lambda s: -scores[s])
    return {*newest[:last], *ranked[:best]}
