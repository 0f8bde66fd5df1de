"""`--profile`: a trace of a few steps, and how much of the device's peak they use."""

import contextlib
import time
from collections.abc import Callable

import jax
from jaxtyping import Array

from ssljax.core import Batch, TrainState
from ssljax.train.folder import RunFolder
from ssljax.train.session import Session

WARM = 3
"""Steps before the trace begins: compilation and the pipeline's first batches."""

TRACED = 5
"""Steps in the trace."""

Flops = Callable[[jax.stages.Lowered], float]
"""Floating-point operations of one device in a run of a program."""

Peak = Callable[[str], float]
"""Floating-point operations a second of a device of this process, in products of a dtype."""


class Profile:
    """The session's step, with a trace written around a few of its calls.

    The peak is measured too, as the rate of a large square matrix product in the encoder's own
    precision on the same devices: a table of chips would not know a laptop's.

    Args:
        session: whose step is profiled.
        folder: the trace goes to `profile/` inside it, for TensorBoard or Perfetto.
        count: operations of a compiled step. XLA's own figure will not do: it has the body of a
            loop once, and so one of eight micro-batches.
        peak: measures the peak.

    Attributes:
        flops: of a step on one device; 0 before the first.
    """

    def __init__(self, session: Session, folder: RunFolder, count: Flops, peak: Peak):
        self._session, self._count, self._peak = session, count, peak
        self.folder = folder.path / 'profile'
        self._calls = 0
        self._began = 0.0
        self._seconds: float | None = None
        self.flops = 0.0
        self._trace = contextlib.ExitStack()

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step."""
        if self._calls == 0:
            self.flops = self._count(self._session.step.lower(state, batch))
        if self._calls == WARM:
            jax.block_until_ready(state.step)
            self._trace.enter_context(jax.profiler.trace(str(self.folder)))
            self._began = time.perf_counter()
        state, metrics = self._session.step(state, batch)
        self._calls += 1
        if self._calls == WARM + TRACED:
            jax.block_until_ready(state)
            self._seconds = (time.perf_counter() - self._began) / TRACED
            self._trace.close()
        return state, metrics

    def summary(self) -> str:
        """What was measured, in words."""
        self._trace.close()
        if self._seconds is None:
            return f'profile: the run ended before step {WARM + TRACED}; nothing was measured'
        dtype = getattr(getattr(self._session.experiment.method, 'encoder', None), 'dtype', None)
        peak = self._peak(dtype or 'float32')
        rate = self.flops / self._seconds
        return (
            f'profile: {self._seconds * 1e3:.1f} ms a step, {self.flops / 1e9:.2f} GFLOP a device '
            f'and step, {rate / 1e9:.1f} GFLOP/s, {rate / peak:.0%} of the '
            f'{peak / 1e9:.1f} GFLOP/s of a matrix product; trace in {self.folder}'
        )
