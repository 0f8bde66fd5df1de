"""A plan: the session's own step, compiled for devices that need not exist, and read."""

import dataclasses
import time
from typing import Any

from ssljax.plan.chips import Chip
from ssljax.plan.collectives import Collective, collectives
from ssljax.plan.estimate import Roofline, Whole, roofline, whole
from ssljax.plan.hlo import Program
from ssljax.plan.host import Host, host
from ssljax.plan.memory import Memory, TooLarge, memory, too_large
from ssljax.plan.work import Work, work_of
from ssljax.train.session import Session


@dataclasses.dataclass(frozen=True)
class Prices:
    """What a plan cannot know.

    Attributes:
        chip_hour: dollars for a chip and hour; None leaves the cost out.
        host_rate: images by second that one host core makes; None for what was measured.
    """

    chip_hour: float | None = None
    host_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What the compiled step of one device does.

    Attributes:
        memory: bytes it holds.
        work: operations, and bytes it moves.
        collectives: what it exchanges.
        unread_loops: loops whose length could not be read; they are counted as one round.
        compile_seconds: of tracing and compiling.
        run: the compiled step itself, as JAX gives it.
    """

    memory: Memory
    work: Work
    collectives: list[Collective]
    unread_loops: int
    compile_seconds: float
    run: Any = dataclasses.field(repr=False, compare=False)

    @property
    def sent(self) -> float:
        """Bytes that leave one device."""
        return float(sum(c.sent for c in self.collectives))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step and a run on so many chips.

    Attributes:
        chip: whose peaks are taken.
        chips: number of them.
        batch: images a step.
        steps: of the run.
        step: what one device does.
        roofline: seconds of a step.
        best: the run if computing, memory and interconnect overlap entirely.
        apart: the run if nothing overlaps.
        host: the input side, at the best pace.
    """

    chip: Chip
    chips: int
    batch: int
    steps: int
    step: Step
    roofline: Roofline
    best: Whole
    apart: Whole
    host: Host

    @property
    def fits(self) -> bool:
        """Whether the step's memory is within the chip's."""
        return self.step.memory.total <= self.chip.hbm


def compiled(session: Session) -> Step | TooLarge:
    """Compiles the session's step for the devices of its placement and reads what came out."""
    began = time.monotonic()
    try:
        lowered = session.step.lower(session.abstract, session.batch)
        run = lowered.compile()
    except Exception as error:
        found = too_large(error)
        if found is None:
            raise
        return found
    seconds = time.monotonic() - began
    program = Program.parse(run.as_text())
    return Step(
        memory=memory(session.abstract, session.batch, run.memory_analysis()),
        work=work_of(lowered, run),
        collectives=collectives(program),
        unread_loops=program.unread(),
        compile_seconds=seconds,
        run=run,
    )


def plan(session: Session, step: Step, chip: Chip, prices: Prices) -> Plan:
    """What a step on its devices comes to, at the peaks of a chip."""
    chips, sizes = session.placement.mesh.size, session.run
    times = roofline(step.work, step.sent, chip)
    totals = lambda seconds: whole(seconds, sizes.batch, sizes.steps, chips, prices.chip_hour)
    best = totals(times.best)
    return Plan(
        chip=chip,
        chips=chips,
        batch=sizes.batch,
        steps=sizes.steps,
        step=step,
        roofline=times,
        best=best,
        apart=totals(times.apart),
        host=host(session.data, sizes.batch, chips, best.images, prices.host_rate),
    )
