"""A plan for a person to read, and for a program."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ssljax.plan.collectives import by_kind
from ssljax.plan.planning import Plan


def show(plan: Plan, console: Console) -> None:
    """Prints a plan."""
    for table in (_memory(plan), _step(plan), _collectives(plan), _run(plan), _host(plan)):
        console.print(table)
    notes = [
        f'Peaks of {plan.chip.name}: {plan.chip.source}.',
        'Times are bounds: arithmetic on vectors and the latency of collectives are not in them.',
    ]
    if plan.step.unread_loops:
        notes.append(
            f'{plan.step.unread_loops} loops whose length cannot be read are counted as one round.'
        )
    console.print('\n'.join(notes), soft_wrap=True)


def record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: every figure of its parts, in bytes, FLOPs and seconds."""
    step = plan.step
    interconnect = plan.chip.interconnect
    return {
        'chip': {
            **dataclasses.asdict(plan.chip),
            'interconnect': interconnect if interconnect < float('inf') else None,
        },
        'chips': plan.chips,
        'batch': plan.batch,
        'steps': plan.steps,
        'fits': plan.fits,
        'memory': {**dataclasses.asdict(step.memory), 'total': step.memory.total},
        'work': dataclasses.asdict(step.work),
        'collectives': [{**dataclasses.asdict(c), 'sent': c.sent} for c in step.collectives],
        'sent': step.sent,
        'unread_loops': step.unread_loops,
        'seconds': {
            **dataclasses.asdict(plan.roofline),
            'best': plan.roofline.best,
            'apart': plan.roofline.apart,
            'bound': plan.roofline.bound,
            'compile': step.compile_seconds,
        },
        'best': dataclasses.asdict(plan.best),
        'apart': dataclasses.asdict(plan.apart),
        'host': dataclasses.asdict(plan.host),
    }


def scaled(value: float | int, unit: str, base: int = 1000) -> str:
    """A number in a readable unit: `1.50 GB`; base 1024 gives `GiB`."""
    prefixes = ['', 'k', 'M', 'G', 'T', 'P', 'E']
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    prefix = prefixes[power] + ('i' if base == 1024 and power else '')
    prefix = prefix.replace('ki', 'Ki')
    digits = 0 if not power else 2 if abs(value) < 100 else 1
    return f'{value:.{digits}f} {prefix}{unit}'


def duration(seconds: float) -> str:
    """Seconds from one on, milliseconds or microseconds below."""
    if seconds >= 1:
        return f'{seconds:.2f} s'
    return f'{seconds * 1e3:.2f} ms' if seconds >= 1e-3 else f'{seconds * 1e6:.1f} us'


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify='left', title_style='bold', box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify='right' if number else 'left', no_wrap=True)
    return table


def _memory(plan: Plan) -> Table:
    held, limit = plan.step.memory, plan.chip.hbm
    verdict = 'fits' if plan.fits else 'DOES NOT FIT'
    table = _table(f'Memory of a chip: {verdict}', '', 'bytes', 'share')
    rows = {
        'parameters': held.parameters,
        'optimizer': held.optimizer,
        "method's state": held.method,
        'batch': held.batch,
        'activations and temporaries': held.temporaries,
        'program': held.program,
        'padding and metrics': held.padding,
    }
    for name, value in rows.items():
        table.add_row(name, scaled(value, 'B', 1024), f'{value / limit:.1%}')
    table.add_section()
    table.add_row('in use', scaled(held.total, 'B', 1024), f'{held.total / limit:.1%}')
    table.add_row('there is', scaled(limit, 'B', 1024), '')
    return table


def _step(plan: Plan) -> Table:
    work, times, chip = plan.step.work, plan.roofline, plan.chip
    table = _table('A step on a chip, at its peaks', '', 'amount', 'peak', 'time')
    rows: list[tuple[str, float, str, float, float, str]] = [
        ('compute', work.flops, 'FLOP', chip.flops, times.compute, 'FLOP/s'),
        ('HBM', work.hbm, 'B', chip.bandwidth, times.hbm, 'B/s'),
        ('interconnect', plan.step.sent, 'B', chip.interconnect, times.interconnect, 'B/s'),
    ]
    for name, amount, unit, peak, seconds, rate in rows:
        bound = '  <- bound' if name == times.bound else ''
        said = scaled(peak, rate) if peak < float('inf') else '-'
        table.add_row(name, scaled(amount, unit), said, duration(seconds) + bound)
    table.add_section()
    table.add_row("bytes accessed, XLA's count", scaled(work.accessed, 'B'), '', '')
    return table


def _collectives(plan: Plan) -> Table:
    table = _table('Collectives of a step', '', 'count', 'payload', 'sent by a chip')
    for kind, total in by_kind(plan.step.collectives).items():
        table.add_row(kind, f'{total.count:,}', scaled(total.payload, 'B'), scaled(total.sent, 'B'))
    if not plan.step.collectives:
        table.add_row('none', '', '', '')
    return table


def _run(plan: Plan) -> Table:
    title = f'The run: {plan.steps:,} steps of {plan.batch:,} images on {plan.chips} chips'
    table = _table(title, '', 'all overlapped', 'nothing overlapped')
    both = (plan.best, plan.apart)
    row: Callable[..., None] = lambda name, *cells: table.add_row(name, *cells)
    row('a step', duration(plan.roofline.best), duration(plan.roofline.apart))
    row('images/s', *(f'{w.images:,.0f}' for w in both))
    row('hours', *(f'{w.hours:,.2f}' for w in both))
    row('chip-hours', *(f'{w.chip_hours:,.1f}' for w in both))
    if plan.best.cost is not None:
        row('cost', *(f'${w.cost:,.2f}' for w in both))
    return table


def _host(plan: Plan) -> Table:
    table = _table('Input, all overlapped', '', '')
    table.add_row('uint8 to a chip, a step', scaled(plan.host.bytes, 'B'))
    table.add_row('images/s of a host core', f'{plan.host.rate:,.0f}')
    table.add_row('host cores for a chip', f'{plan.host.cores:,.1f}')
    return table
