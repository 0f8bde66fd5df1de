"""The collectives of a compiled program: which, how often, among how many, how many bytes."""

import collections
import dataclasses
import math
import re

from ssljax.plan.hlo import Computation, Instruction, Program

KINDS = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all',
    'collective-permute', 'collective-broadcast',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program, or several alike.

    Attributes:
        kind: one of `KINDS`.
        group: devices that take part together.
        payload: bytes of the array it is about, on one device: the whole result of an all-gather,
            the whole operand of a reduce-scatter, operand or result of the others.
        count: how often it runs in one run of the program, rounds of loops included.
    """

    kind: str
    group: int
    payload: int
    count: int

    @property
    def sent(self) -> float:
        """Bytes that leave one device in one run, all `count` together, by ring algorithms.

        All-reduce sends each byte twice less its own part, 2 (n - 1) / n; all-gather,
        reduce-scatter and all-to-all (n - 1) / n; a permutation or a broadcast all of it.
        """
        others = (self.group - 1) / self.group
        if self.kind.startswith('collective-'):
            share = 1.0
        else:
            share = 2 * others if self.kind == 'all-reduce' else others
        return self.count * self.payload * share


def collectives(program: Program) -> list[Collective]:
    """All collectives of a program, alike ones together, those that send most first.

    An asynchronous pair (`-start`, `-done`) is one. The TPU compiler also spreads one all-gather
    over several fusions, each with a copy of the instruction under the same channel; those count
    once. What it calls an `all-reduce-scatter` fusion is a reduce-scatter.
    """
    found: dict[tuple, int] = collections.Counter()
    spread: dict[tuple, int] = {}
    for visit in program.visits():
        for instruction in visit.computation.instructions.values():
            kind = instruction.opcode.removesuffix('-start')
            if kind not in KINDS or instruction.opcode.endswith('-done'):
                continue
            if kind == 'all-reduce' and visit.computation.name.startswith('all-reduce-scatter'):
                kind = 'reduce-scatter'
            group = _group(instruction, program.devices)
            key = (kind, group, _payload(visit.computation, instruction, kind, group))
            channel = re.search(r'channel_id=(\d+)', instruction.rest)
            if visit.how == 'fused' and channel:
                key = (*key, channel[1])
                spread[key] = max(visit.times, spread.get(key, 0))
            else:
                found[key] += visit.times
    for key, times in spread.items():
        found[key[:3]] += times
    listed = [Collective(kind, group, payload, n) for (kind, group, payload), n in found.items()]
    return sorted(listed, key=lambda c: (-c.sent, c.kind, c.group))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind, together.

    Attributes:
        count: how many run in a step.
        payload: bytes of the arrays they are about, on one device.
        sent: bytes that leave one device.
    """

    count: int
    payload: int
    sent: float


def by_kind(found: list[Collective]) -> dict[str, Traffic]:
    """Totals by kind, in the order of `KINDS`."""
    groups = {kind: [c for c in found if c.kind == kind] for kind in KINDS}
    return {
        kind: Traffic(
            count=sum(c.count for c in alike),
            payload=sum(c.count * c.payload for c in alike),
            sent=float(sum(c.sent for c in alike)),
        )
        for kind, alike in groups.items()
        if alike
    }


def _payload(computation: Computation, instruction: Instruction, kind: str, group: int) -> int:
    """Bytes on one device, from the operands: they read the same with and without `-start`."""
    taken = computation.operands(instruction)
    if kind in ('collective-permute', 'ragged-all-to-all'):
        taken = taken[:1]  # what follows are offsets and sizes
    operand = sum(i.bytes for i in taken)
    return operand * group if kind == 'all-gather' else operand


def _group(instruction: Instruction, devices: int) -> int:
    """Devices that take part together; forms `{{0,1},{2,3}}`, `[2,4]<=[8]`, `mesh['a'=4] {'a'}`."""
    if 'source_target_pairs=' in instruction.rest:
        return devices
    text = instruction.rest.partition('replica_groups=')[2]
    if text.startswith('{{'):
        return len(text[2:].partition('}')[0].split(','))
    if text.startswith('['):
        return int(text[1:].partition(']')[0].split(',')[1])
    if text.startswith('mesh['):
        lengths = dict(re.findall(r"'([^']+)'=(\d+)", text.partition(']')[0]))
        axes = re.findall(r"'([^']+)'", text.partition('{')[2].partition('}')[0])
        return math.prod(int(lengths[axis]) for axis in axes)
    return devices
