"""`ssljax plan`: an experiment's step, compiled for chips that need not be there."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any

from ssljax import cli
from ssljax.plan.environment import HERE, quiet

if TYPE_CHECKING:
    from rich.console import Console

    from ssljax.experiment import Experiment
    from ssljax.plan.chips import Chip
    from ssljax.plan.memory import TooLarge
    from ssljax.plan.planning import Plan, Step
    from ssljax.plan.topology import Topology
    from ssljax.train.session import Session

WIDTH = 100
"""Columns where there is no terminal."""


def main(options: cli.Plan, changes: list[str]) -> int:
    """Plans; returns the exit code: 0 if it fits, 1 if not."""
    here = options.topology in HERE
    if options.measure and not here:
        raise ValueError(
            f'--measure takes steps and {options.topology} is not here; use --topology here'
        )
    if not here:
        quiet()
    # Only now: JAX looks at the environment when it is imported.
    from rich.console import Console

    from ssljax import overrides
    from ssljax.definitions import load_experiment
    from ssljax.plan.planning import Prices, Step, plan
    from ssljax.plan.tables import record, show
    from ssljax.plan.topology import topology

    prog = f'ssljax plan {options.experiment}'
    experiment = overrides.apply(load_experiment(options.experiment), changes, prog)
    at = topology(options.topology, options.devices)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    if options.sweep_batch:
        session, step = _largest(experiment, options, at, console)
    else:
        session, step = _compiled(session_of(experiment, options, at), options, at, console)
    facts: dict[str, Any] = {'experiment': options.experiment, 'topology': at.name}
    if not isinstance(step, Step):
        console.print(_refused(step, session), soft_wrap=True)
        _write(options.json, {**facts, 'fits': False, 'memory': dataclasses.asdict(step)})
        return cli.EXIT_FAILED
    made = plan(session, step, _chip(at, session), Prices(options.price, options.host_rate))
    show(made, console)
    facts |= record(made)
    if options.measure:
        facts['measured_seconds'] = _measured(session, made, console)
    _write(options.json, facts)
    if options.text is not None:
        pathlib.Path(options.text).write_text(step.run.as_text())
    return 0 if made.fits else cli.EXIT_FAILED


def _compiled(
    session: Session, options: cli.Plan, at: Topology, console: Console
) -> tuple[Session, Step | TooLarge]:
    from ssljax.plan.planning import Step, compiled

    console.print(
        f'{options.experiment}: batch {session.run.batch:,} on {at.name} '
        f'({len(at.devices)} x {at.kind}); compiling ...',
        soft_wrap=True,
    )
    step = compiled(session)
    if isinstance(step, Step):
        console.print(f'compiled in {step.compile_seconds:.0f} s\n')
    return session, step


def _chip(at: Topology, session: Session) -> Chip:
    """From the table, or measured on the spot."""
    if at.chip is not None:
        return at.chip
    from ssljax.plan.measure import measured_chip

    encoder = getattr(session.experiment.method, 'encoder', None)
    return measured_chip(session.placement, getattr(encoder, 'dtype', None) or 'float32')


def _measured(session: Session, made: Plan, console: Console) -> float:
    """Seconds of a real step; prints them beside the plan's."""
    from ssljax.plan.measure import step_seconds
    from ssljax.plan.tables import duration

    seconds = step_seconds(session, made.step)
    console.print(
        f'\nmeasured: {duration(seconds)} a step, {session.run.batch / seconds:,.0f} images/s; '
        f'{seconds / made.roofline.best:.2f} times the estimate with all overlapped, '
        f'{seconds / made.roofline.apart:.2f} times that with nothing overlapped',
        soft_wrap=True,
    )
    return seconds


def session_of(experiment: Experiment, options: cli.Plan, at: Topology) -> Session:
    """The experiment's session on planned devices.

    Raises:
        ValueError: if the data set is neither known nor there, or parts do not fit.
    """
    from ssljax.data.known import Facts, facts
    from ssljax.data.registry import open_source
    from ssljax.train.placement import make_mesh
    from ssljax.train.session import Session, delivered, signature

    data = experiment.data
    found = facts(data.name, data.train)
    if found is None and options.examples is not None:
        found = Facts(options.examples, None, 3)
    if found is None:
        try:
            there = signature(experiment, open_source(data.name, data.train))
        except ValueError as error:
            raise ValueError(
                f'{error}. To plan without the data set, say what it holds: '
                '--examples 1281167 --classes 1000 --channels 3'
            ) from error
        found = Facts(there.examples, there.classes, there.channels)
    given = {
        name: value
        for name in ('examples', 'classes', 'channels')
        if (value := getattr(options, name)) is not None
    }
    if given.get('classes') == 0:
        given['classes'] = None
    found = dataclasses.replace(found, **given)
    mesh = make_mesh(experiment.fsdp, at.devices)
    return Session.planned(experiment, delivered(experiment, found), mesh)


def _largest(
    experiment: Experiment, options: cli.Plan, at: Topology, console: Console
) -> tuple[Session, Step]:
    """The session of the largest batch that fits, and its step; prints every trial."""
    from ssljax.plan.largest import largest
    from ssljax.plan.measure import capacity
    from ssljax.plan.planning import Step, compiled
    from ssljax.plan.tables import scaled

    room = capacity(at.devices) if at.chip is None else at.chip.hbm
    parts = max(1, experiment.microbatches)
    unit = math.lcm(len(at.devices) * parts, experiment.method.batch_unit(parts))
    of_batch = lambda n: session_of(dataclasses.replace(experiment, batch=n), options, at)
    try:
        examples = of_batch(unit).data.examples
    except ValueError:  # too few for the method, such as one image without a negative, or no fit
        examples = of_batch(max(unit, experiment.batch // unit * unit)).data.examples

    tried: dict[int, tuple[Session, Step]] = {}

    def fits(batch: int) -> bool:
        console.print(f'batch {batch:,}: ', end='')
        try:
            session = of_batch(batch)
        except ValueError as error:  # such as a queue that has to hold the batch
            console.print(f'refused: {error}', markup=False)
            return False
        step = compiled(session)
        if not isinstance(step, Step):
            console.print(f'{scaled(step.used, "B", 1024)} a chip, does not fit')
            return False
        total = step.memory.total
        good = total <= room
        tried[batch] = session, step
        console.print(f'{scaled(total, "B", 1024)} a chip, {"fits" if good else "does not fit"}')
        return good

    found = largest(fits, unit, examples, experiment.batch)
    if found is None:
        raise ValueError(
            f'not even a batch of {unit} fits on {at.name}; use more or larger chips, '
            '--microbatches, or --fsdp to split parameters and optimizer'
        )
    session, step = tried[found]
    console.print(f'largest batch that fits: {found:,} on {at.name}\n')
    return session, step


def _refused(found: TooLarge, session: Session) -> str:
    from ssljax.plan.tables import scaled

    return (
        f'DOES NOT FIT: the compiler needs {scaled(found.used, "B", 1024)} of the '
        f'{scaled(found.limit, "B", 1024)} that a chip has for it. Use a smaller --batch '
        f'(--sweep-batch finds the largest), --microbatches {2 * session.experiment.microbatches}, '
        'more chips, or --fsdp to split parameters and optimizer'
    )


def _write(file: str | None, facts: dict[str, Any]) -> None:
    if file is not None:
        pathlib.Path(file).write_text(json.dumps(facts, indent=2) + '\n')
