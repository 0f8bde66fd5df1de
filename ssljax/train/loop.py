"""The training loop: batches in, steps out, and everything that happens between two steps.

Behind step t, in this order: its line of metrics, the evaluation if one is due, the checkpoint;
then, ahead of step t + 1, `refresh`. Told to stop where an evaluation is due, a run saves and ends
without it, for the time that it is given may be short; whoever goes on makes up for it first.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ssljax.core import TrainState
from ssljax.data.pipeline import batches
from ssljax.train import metrics
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.folder import RunFolder
from ssljax.train.initial import initial_state
from ssljax.train.interrupt import Interrupt, on_signals
from ssljax.train.progress import Reporter, reporter
from ssljax.train.refresh import refresher
from ssljax.train.session import Session
from ssljax.train.step import Step

log = logging.getLogger(__name__)

Measure = Callable[[TrainState], dict[str, Any]]
"""What is measured on a state while training; see `evaluate.monitor`."""

COLLAPSED = 0.2
"""Spread of unit embeddings, relative to an even sphere's, below which an alarm is raised."""

NAMED = 20
"""Images named at the end of a run that could not be decoded; all are counted."""


class TooManyNonFinite(RuntimeError):  # noqa: N818  (reads as what happened)
    """More steps had a non-finite loss or gradient than the experiment allows."""

    exit_code = 1


class NotSavedError(RuntimeError):
    """The run ended in a state that is not worth saving."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        state: the state it ended with.
        step: steps taken so far.
        finished: False if it was interrupted and has saved: before the last step, or before the
            evaluation behind it.
    """

    state: TrainState
    step: int
    finished: bool


@dataclasses.dataclass
class _Record:
    """Writes the metrics of steps, one step late, and counts the steps that were skipped."""

    session: Session
    writer: metrics.MetricsWriter
    show: Reporter
    skipped: int
    first: int
    corrupt: int = 0
    pending: tuple[int, float, Mapping[str, Any]] | None = None

    def __post_init__(self):
        self.begin()

    def begin(self) -> None:
        """The clock starts, as if the process had begun here."""
        self.began = time.monotonic()
        self._line = (self.first, self.began)

    def evaluated(self, seconds: float) -> None:
        """What an evaluation took is no part of the rate of the steps around it."""
        step, at = self._line
        self._line = (step, at + seconds)

    def push(self, step: int, arrays: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step just dispatched and settles those of the one before.

        Reading the newest would wait for the device; the one before is ready or nearly so.
        """
        self.settle()
        self.pending = (step, time.monotonic(), arrays)

    def settle(self) -> None:
        """Reads and writes what is pending."""
        if self.pending is None:
            return
        (step, taken, arrays), self.pending = self.pending, None
        experiment = self.session.experiment
        values = {name: float(value) for name, value in jax.device_get(dict(arrays)).items()}
        groups = [n.removeprefix('nonfinite/') for n in values if n.startswith('nonfinite/')]
        hit = [group for group in groups if values.pop(f'nonfinite/{group}')]
        skip = bool(values.pop('skipped'))
        if skip:
            self.skipped += 1
            hit = hit or ['update' if math.isfinite(values['loss']) else 'loss']
            self.show.say(
                f'step {step}: not finite: {", ".join(hit)} (loss {values["loss"]}); the update is '
                f'skipped ({self.skipped} so far, {experiment.max_nonfinite} allowed)'
            )
        if skip or step % experiment.log_every == 0 or step == self.session.run.steps:
            seconds = time.monotonic() - self.began
            (before, since), self._line = self._line, (step, taken)
            rate = (step - before) * self.session.run.batch / max(taken - since, 1e-9)
            if skip:
                values['nonfinite'] = hit
            clock = {'seconds': seconds, 'from': self.first, 'images/s': rate}
            if self.corrupt:  # as this process has met them: one that goes on meets others
                clock['corrupt'] = self.corrupt
            self.writer.write(
                {
                    'step': step,
                    'epoch': step / self.session.run.steps_per_epoch,
                    **values,
                    'skipped': self.skipped,
                    'clock': clock,
                }
            )
            self.show.show(step, {**values_only(values), 'images/s': rate}, seconds)
            if values.get('std', 1.0) < COLLAPSED:
                self.show.say(
                    f'step {step}: the embeddings collapse: their spread is {values["std"]:.3f} of '
                    f'that on an even sphere (alarm below {COLLAPSED})'
                )
        if self.skipped > experiment.max_nonfinite:
            raise TooManyNonFinite(
                f'{self.skipped} steps up to step {step} had a non-finite loss or gradient, '
                f'{experiment.max_nonfinite} are allowed; raise --max_nonfinite to go on, or start '
                'in another --folder with a lower learning rate or with clipping '
                '(--optimizer.clip_global 1.0). What was saved is finite and is kept'
            )


def values_only(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {name: value for name, value in values.items() if isinstance(value, float)}


def train(
    session: Session,
    folder: RunFolder,
    measure: Measure | None = None,
    step: Step | None = None,
) -> Outcome:
    """Trains until the end of the experiment, or until told to stop; continues what is in `folder`.

    Args:
        session: the experiment, ready.
        folder: where the run is kept; a checkpoint of this experiment in it is gone on from.
        measure: evaluates a state, every `evaluation.every` epochs.
        step: taken instead of the session's compiled step (for profiling).

    Returns:
        The last state and whether the run is complete.

    Raises:
        ValueError: the folder holds another run.
        TooManyNonFinite: more non-finite steps than allowed.
        CheckpointError: a checkpoint could not be written.
    """
    experiment, run = session.experiment, session.run
    identity = (experiment, session.data, session.source.fingerprint())
    if folder.exists():
        folder.check(*identity)
    keep = experiment.checkpoint
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(on_signals())
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(folder.checkpoints, keep.keep_last, keep.keep_best))
        )
        restored = checkpoints.restore(session.abstract)
        state, meta = restored or (initial_state(session), {'skipped': 0})
        start = int(state.step)
        # Only now is there something to go on with: a start that failed leaves no record behind.
        changes = folder.begin(*identity, start)
        show = stack.enter_context(reporter(run.steps, start))
        writer = stack.enter_context(
            contextlib.closing(metrics.MetricsWriter(folder.path, resume_step=start))
        )
        if restored:
            show.say(f'continuing {folder.path} at step {start} of {run.steps}')
        if changes:
            show.say(f'from step {start} on with {changes}; see `resumed` in {folder.record}')
        record = _Record(session, writer, show, meta['skipped'], start)
        measure = measure if experiment.evaluation.every > 0 else None
        parts = _Parts(step or session.step, checkpoints, writer, show, interrupt, measure)
        if meta.get('unevaluated') and measure is not None:
            _make_up(state, record, parts, folder)
        return _loop(session, state, record, parts)


@dataclasses.dataclass(frozen=True)
class _Parts:
    take: Step
    checkpoints: Checkpoints
    writer: metrics.MetricsWriter
    show: Reporter
    interrupt: Interrupt
    measure: Measure | None


def _loop(session: Session, state: TrainState, record: _Record, parts: _Parts) -> Outcome:
    run, experiment = session.run, session.experiment
    evaluate_every = max(1, round(experiment.evaluation.every * run.steps_per_epoch))
    stream = batches(
        session.source, experiment.recipe, session.stream(), start=record.first, stop=run.steps
    )
    step, between, unevaluated = record.first, refresher(session), False
    for batch in stream:
        if between is not None and step % between[0] == 0:
            state = between[1](state)
        state, arrays = parts.take(state, session.placement.put(batch))
        step += 1
        record.corrupt = len(stream.corrupt)
        record.push(step, arrays)
        last, told = step == run.steps, parts.interrupt.reached(step - record.first)
        evaluates = parts.measure is not None and (last or step % evaluate_every == 0)
        unevaluated, score = evaluates and told, None
        if evaluates and not told:
            record.settle()
            line = _evaluated(step, state, record, parts)
            parts.writer.write(line)
            score = _score(line)
        # Every state that was scored is saved: it may be the best.
        due = step % experiment.checkpoint.every == 0 or score is not None
        if last or told or due:
            record.settle()
            parts.writer.sync()
            meta = {'skipped': record.skipped, 'unevaluated': unevaluated}
            if not parts.checkpoints.save(step, state, meta, score) and (last or told):
                raise NotSavedError(
                    f'the state after step {step} is not finite and was not saved; the last '
                    'checkpoint is finite: start from it in another --folder with --init_from'
                )
        if told and not last:
            break
    record.settle()
    for index in stream.corrupt[:NAMED]:
        where = session.source.where(index)
        parts.show.say(f'{where} could not be decoded; another took its place')
    if record.corrupt:
        parts.show.say(f'images that could not be decoded: {record.corrupt}')
    parts.checkpoints.wait()
    finished = step == run.steps and not unevaluated
    if not finished:
        parts.show.say(f'stopped at step {step} and saved; the same command goes on from there')
    return Outcome(state, step, finished)


def _make_up(state: TrainState, record: _Record, parts: _Parts, folder: RunFolder) -> None:
    """The evaluation that a run left out when it was told to stop, as if it had not been.

    Its line comes ahead of the next step's, and the state is saved again, with its score.
    """
    step = record.first
    line = _evaluated(step, state, record, parts)
    # The line is there, and remains, if a kill came between it and the end of the save.
    if not any(r['step'] == step and 'validation' in r for r in metrics.read(folder.path)):
        parts.writer.write(line)
    parts.writer.sync()
    meta = {'skipped': record.skipped, 'unevaluated': False}
    parts.checkpoints.save(step, state, meta, _score(line))
    record.begin()


def _evaluated(step: int, state: TrainState, record: _Record, parts: _Parts) -> dict[str, Any]:
    """The line of metrics of a state's evaluation, which it shows."""
    began = time.monotonic()
    values = parts.measure(state)
    seconds = time.monotonic() - began
    record.evaluated(seconds)
    parts.show.show(step, values, time.monotonic() - record.began)
    for alarm in values.get('alarms', ()):
        parts.show.say(f'step {step}: {alarm}')
    return {'step': step, 'validation': values, 'clock': {'evaluation_s': seconds}}


def _score(line: Mapping[str, Any]) -> float | None:
    return line['validation'].get('knn_top1')
