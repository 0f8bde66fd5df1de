"""The text of a compiled program, read: its instructions, and how often each computation runs.

XLA's own cost analysis counts the body of a loop once and says nothing of collectives, so both are
taken from the text that `Compiled.as_text()` gives.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

BITS = {
    'pred': 8, 'token': 0, 'opaque': 0,
    's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's32': 32,
    'u32': 32, 's64': 64, 'u64': 64, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64,
    'c128': 128,
}  # fmt: skip
"""Bits of an element by XLA's name of its type; every `f8...` has 8, every `f4...` 4."""

HBM = 0
"""Memory space of a chip's main memory in the text; the others are on the chip."""

_SHAPE = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\](\{[^}]*\})?')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_NAME = re.compile(r'%([\w.\-]+)')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

How = Literal['code', 'fused']
"""Whether a computation is run as it stands or as the inside of a fusion."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array as one device holds it.

    Attributes:
        dtype: XLA's name of the type.
        dims: length of every axis.
        space: memory space; 0 is the main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding."""
        bits = BITS.get(self.dtype, {'f8': 8, 'f4': 4}.get(self.dtype[:2]))
        if bits is None:
            raise ValueError(f'unknown element type {self.dtype!r} in the compiled text')
        return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: such as `fusion`, `all-reduce-start`.
        shapes: of its result, the leaves of a tuple in order.
        operands: names, in order.
        rest: all that follows the operands.
        literal: what stands in place of operands (`5` in `constant(5)`).
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    literal: str

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as `body=` names."""
        found = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in the order of execution.

    Attributes:
        name: unique in the program.
        instructions: by name.
        root: name of the one that is the result.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results it takes."""
        return [self.instructions[n] for n in instruction.operands if n in self.instructions]


@dataclasses.dataclass(frozen=True)
class Visit:
    """A computation that the program runs.

    Attributes:
        computation: which.
        times: how often in one run, rounds of the loops around it included.
        how: as code or inside a fusion.
    """

    computation: Computation
    times: int
    how: How


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of one device.

    Attributes:
        computations: by name.
        entry: name of the first.
        devices: number of devices that run it together.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int

    @classmethod
    def parse(cls, text: str) -> 'Program':
        """Reads the text of a compiled program.

        Raises:
            ValueError: if it has no entry computation.
        """
        computations, entry = {}, None
        name, lines = None, []
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                name, lines = head[2], []
                entry = name if head[1] else entry
            elif line.startswith('}') and name is not None:
                computations[name] = _computation(name, lines)
                name = None
            elif name is not None and ' = ' in line:
                lines.append(line)
        if entry is None:
            raise ValueError('the compiled text has no ENTRY; expected that of Compiled.as_text()')
        count = [
            re.search(rf'{n}=(\d+)', text[:20_000]) for n in ('num_partitions', 'replica_count')
        ]
        devices = math.prod(int(found[1]) if found else 1 for found in count)
        return cls(computations, entry, devices)

    def visits(self, loops: bool = True) -> list[Visit]:
        """Every computation that is run, with how often.

        Of a conditional every branch counts. Functions that a reduction or a sort applies to
        elements are left out.

        Args:
            loops: whether the rounds of a loop count; if not, its body runs once.
        """
        times: dict[tuple[str, How], int] = collections.Counter()
        for name, how, count in self._walk(self.entry, 'code', 1, loops):
            times[name, how] += count
        return [Visit(self.computations[n], count, how) for (n, how), count in times.items()]

    def unread(self) -> int:
        """Loops whose number of rounds could not be read; their bodies count once."""
        runs = {v.computation.name for v in self.visits() if v.how == 'code'}
        return sum(
            self.rounds(i) is None
            for name in runs
            for i in self.computations[name].instructions.values()
            if i.opcode == 'while'
        )

    def rounds(self, loop: Instruction) -> int | None:
        """Rounds of a `while`: as the compiler states them, or from a condition `i < constant`.

        JAX's loops of known length count from 0 by 1, so the constant is their number. None if it
        cannot be read.
        """
        if stated := _TRIPS.search(loop.rest):
            return int(stated[1])
        condition = self.computations.get(loop.attribute('condition') or '')
        if condition is None:
            return None
        root = condition.instructions[condition.root]
        limit = condition.operands(root)[1:2]
        counts = root.opcode == 'compare' and 'direction=LT' in root.rest and bool(limit)
        if counts and limit[0].opcode == 'constant' and limit[0].literal.isdigit():
            return int(limit[0].literal)
        return None

    def _walk(self, name: str, how: How, times: int, loops: bool) -> Iterator[tuple[str, How, int]]:
        yield name, how, times
        for instruction in self.computations[name].instructions.values():
            inner, rounds = how, 1
            if instruction.opcode == 'while':
                rounds = (self.rounds(instruction) or 1) if loops else 1
                called = [instruction.attribute('body')]
            elif instruction.opcode == 'conditional':
                called = _branches(instruction)
            elif instruction.opcode == 'fusion':
                called, inner = [instruction.attribute('calls')], 'fused'
            elif instruction.opcode in ('call', 'async-start'):
                called = [instruction.attribute('to_apply') or instruction.attribute('calls')]
            else:
                continue
            for callee in called:
                if callee in self.computations:
                    yield from self._walk(callee, inner, times * rounds, loops)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.rest)
    if listed:
        return _NAME.findall(listed[1])
    return [instruction.attribute(f'{kind}_computation') or '' for kind in ('true', 'false')]


def _computation(name: str, lines: list[str]) -> Computation:
    found = [_instruction(line) for line in lines]
    roots = [i.name for line, i in zip(lines, found, strict=True) if line.lstrip()[:5] == 'ROOT ']
    root = roots[0] if roots else found[-1].name
    return Computation(name, {i.name: i for i in found}, root)


def _instruction(line: str) -> Instruction:
    left, _, right = line.partition(' = ')
    end = _closing(right, 0) + 1 if right.startswith('(') else right.index(' ')
    opcode = _OPCODE.match(right, end)
    begin = opcode.end()
    finish = _closing(right, begin - 1)
    inside = right[begin:finish]
    return Instruction(
        name=left.strip().removeprefix('ROOT ').lstrip('%'),
        opcode=opcode[1],
        shapes=shapes(right[:end]),
        operands=tuple(_NAME.findall(inside)),
        rest=right[finish + 1 :],
        literal=inside,
    )


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays in the text of a shape, those of a tuple in order."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r'S\((\d+)\)', layout)
        lengths = tuple(int(re.sub(r'\D', '', d)) for d in dims.split(',') if d.strip())
        found.append(Shape(dtype, lengths, int(space[1]) if space else HBM))
    return tuple(found)


def _closing(text: str, opening: int) -> int:
    """The position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == '(') - (text[position] == ')')
        if depth == 0:
            return position
    raise ValueError(f'unbalanced parentheses in the compiled text: {text[:120]}')
