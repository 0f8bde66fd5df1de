"""Operations and bytes of a compiled program, rounds of its loops included.

XLA's cost analysis counts what is computed and moved, but the body of a loop once (measured: 2, 10
and 100 rounds give the same), so a step in micro-batches would look that much too cheap. The text
is therefore counted twice, with the rounds and without, and XLA's figures are scaled by the ratio:
1 where there is no loop, and close where there is one, for what is left out here (elementwise
operations) is left out of both.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from ssljax.plan.hlo import HBM, Computation, Instruction, Program, Shape, Visit

FREE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
    'call', 'after-all', 'partition-id', 'replica-id', 'async-done', 'opt-barrier',
    'add-dependency',
}  # fmt: skip
"""Opcodes that move nothing themselves. Of an asynchronous pair (`copy-start`, `copy-done`) the
second stands for both; for an `async-done` the computation that was called does."""

PLACES = ('AllocateBuffer', 'ConcatBitcast')
"""Custom calls that only name memory."""

SLICING = {'dynamic-slice', 'slice', 'gather'}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in one run of a program.

    Attributes:
        flops: floating-point operations.
        accessed: bytes accessed as XLA counts them: on a TPU also what stays on the chip, and
            operands again inside fusions (a plain product of two matrices comes to 7 of them).
        hbm: bytes of operands and results that lie in main memory, each read and written once: the
            least that has to cross it as the program is scheduled.
    """

    flops: float
    accessed: float
    hbm: float


@dataclasses.dataclass(frozen=True)
class Count:
    """What the text of a program tells.

    Attributes:
        flops: of products and convolutions.
        bytes: of operands and results, wherever they lie.
        hbm: of these, those in main memory.
    """

    flops: float
    bytes: float
    hbm: float


def work(program: Program, cost: dict[str, float]) -> Work:
    """XLA's cost of a program, scaled to the rounds of its loops.

    Args:
        program: its text, read.
        cost: `Compiled.cost_analysis()`, of one device.
    """
    whole, once = counted(program, loops=True), counted(program, loops=False)
    scale = lambda a, b: a / b if b else 1.0
    return Work(
        flops=float(cost.get('flops', 0.0)) * scale(whole.flops, once.flops),
        accessed=float(cost.get('bytes accessed', 0.0)) * scale(whole.bytes, once.bytes),
        hbm=whole.hbm,
    )


LIBRARIES = ('"__cublas', '"__cudnn')
"""How the targets of calls begin that a GPU's products and convolutions become."""


def work_of(lowered: Any, compiled: Any) -> Work:
    """What one device does in one run of a program, on any kind of device.

    Where products have become calls of a library, neither XLA's count nor the text has them, and
    operations are counted in the program as it was before it was compiled, shared out evenly: what
    several devices do alike counts as if they had divided it.

    Args:
        lowered: a program of JAX's, `jax.stages.Lowered`.
        compiled: what became of it, `jax.stages.Compiled`.
    """
    text = compiled.as_text()
    program = Program.parse(text)
    done = work(program, compiled.cost_analysis() or {})
    if not any(f'custom_call_target={name}' in text for name in LIBRARIES):
        return done
    before = Program.parse(lowered.compiler_ir('hlo').as_hlo_module().to_string())
    return dataclasses.replace(done, flops=counted(before, loops=True).flops / program.devices)


def counted(program: Program, loops: bool) -> Count:
    """Products and convolutions, and the bytes of operands and results, by the text alone.

    Args:
        program: what is counted.
        loops: whether the rounds of loops count; if not, bodies run once.
    """
    flops = moved = hbm = 0.0
    for visit in program.visits(loops):
        for instruction in visit.computation.instructions.values():
            flops += visit.times * operations(visit.computation, instruction)
        if visit.how == 'code':
            all_, main = _bytes(program, visit)
            moved += visit.times * all_
            hbm += visit.times * main
    return Count(flops, moved, hbm)


def operations(computation: Computation, instruction: Instruction) -> float:
    """Floating-point operations of a product or a convolution; 0 for anything else."""
    if instruction.opcode == 'dot':
        left = computation.operands(instruction)[0].shapes[0]
        dims = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.rest)
        axes = [int(axis) for axis in dims[1].split(',') if axis] if dims else []
        return 2.0 * instruction.shapes[0].size * float(np.prod([left.dims[a] for a in axes]))
    if instruction.opcode == 'convolution':
        return _convolution(computation, instruction)
    return 0.0


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """Two operations for every product of an entry that is neither padding nor dilation."""
    left = computation.operands(instruction)[0].shapes[0]
    out = instruction.shapes[0]
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
    window = re.search(r'window=\{([^}]*)\}', instruction.rest)
    fields = dict(f.split('=') for f in window[1].split()) if window else {}
    groups = lambda kind: int(
        (re.search(rf'{kind}_group_count=(\d+)', instruction.rest) or '11')[1]
    )
    at = lambda shape, names, letter: shape.dims[names.index(letter)]
    total = at(left, labels[1], 'f') * at(left, labels[1], 'b') * at(out, labels[3], 'f')
    total /= groups('feature') * groups('batch')
    for axis, size in enumerate(fields.get('size', '').split('x') if fields else []):
        pick = lambda name, other, a=axis: fields[name].split('x')[a] if name in fields else other
        total *= _valid(
            at(left, labels[1], str(axis)),
            at(out, labels[3], str(axis)),
            int(size),
            stride=int(pick('stride', '1')),
            low=int(pick('pad', '0_0').split('_')[0]),
            dilation=(int(pick('lhs_dilate', '1')), int(pick('rhs_dilate', '1'))),
        )
    return 2.0 * total


def _valid(
    entries: int, outputs: int, taps: int, *, stride: int, low: int, dilation: tuple[int, int]
) -> int:
    """Pairs of an output and a tap that meet an entry of the input."""
    places = stride * np.arange(outputs)[:, None] + dilation[1] * np.arange(taps) - low
    inside = (places >= 0) & (places <= (entries - 1) * dilation[0])
    return int(np.sum(inside & (places % dilation[0] == 0)))


def _bytes(program: Program, visit: Visit) -> tuple[int, int]:
    """Bytes of a computation's instructions, anywhere and in main memory."""
    computation = visit.computation
    parts = [
        part
        for instruction in computation.instructions.values()
        for part in moved(program, computation, instruction)
    ]
    return sum(b for b, _ in parts), sum(b for b, space in parts if space == HBM)


def moved(
    program: Program, computation: Computation, instruction: Instruction
) -> list[tuple[int, int]]:
    """What an instruction that is run as code reads and writes: bytes and their memory space."""
    started = instruction.opcode.endswith(('-start', '-update'))
    named = instruction.opcode == 'custom-call' and any(p in instruction.rest for p in PLACES)
    if instruction.opcode in FREE or started or named:
        return []
    operands = computation.operands(instruction)
    if instruction.opcode.endswith('-done'):
        source = computation.operands(operands[0])
        space = source[0].shapes[0].space if source else HBM
        # All of them: XLA puts the gradients of many parameters into one exchange.
        return [p for s in instruction.shapes for p in ((s.bytes, s.space), (s.bytes, space))]
    if instruction.opcode == 'fusion':
        callee = program.computations[instruction.attribute('calls')]
        parts = _written(program, callee, callee.root, instruction.shapes)
        for number, operand in enumerate(operands):
            read = _read(program, callee, _parameter(callee, number))
            parts += [(min(read, s.bytes), s.space) for s in operand.shapes]
        return parts
    if instruction.opcode in SLICING:
        written = [(s.bytes, s.space) for s in instruction.shapes]
        return written + [(instruction.bytes, s.space) for s in operands[0].shapes]
    if instruction.opcode == 'dynamic-update-slice':
        return [(2 * operands[1].bytes, s.space) for s in instruction.shapes]
    return [(s.bytes, s.space) for one in (instruction, *operands) for s in one.shapes]


def _parameter(computation: Computation, number: int) -> str:
    for instruction in computation.instructions.values():
        if instruction.opcode == 'parameter' and instruction.literal == str(number):
            return instruction.name
    raise ValueError(f'fusion {computation.name} has no parameter {number}')


def _read(program: Program, computation: Computation, name: str) -> int:
    """Bytes read of a value inside a fusion: of one that is only sliced, only the slices."""
    whole = computation.instructions[name].bytes
    total = 0
    for user in computation.instructions.values():
        if name not in user.operands:
            continue
        first = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode in SLICING and first:
            total += user.bytes
        elif user.opcode == 'dynamic-update-slice' and first:
            continue  # written in place
        elif user.opcode == 'bitcast':
            total += _read(program, computation, user.name)
        elif user.opcode == 'fusion':
            callee = program.computations[user.attribute('calls')]
            numbers = [n for n, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(program, callee, _parameter(callee, n)) for n in numbers)
        else:
            return whole
    return min(total, whole)


def _written(
    program: Program, computation: Computation, name: str, shapes: tuple[Shape, ...]
) -> list[tuple[int, int]]:
    """Bytes and space of what a fusion writes: of an update in place, only the update."""
    root = computation.instructions[name]
    operands = computation.operands(root)
    if root.opcode == 'tuple' and len(operands) == len(shapes):
        pairs = zip(operands, shapes, strict=True)
        return [p for o, s in pairs for p in _written(program, computation, o.name, (s,))]
    if root.opcode == 'dynamic-update-slice':
        return [(operands[1].bytes, shapes[0].space)]
    if root.opcode == 'bitcast' and operands:
        return _written(program, computation, operands[0].name, shapes)
    return [(shape.bytes, shape.space) for shape in shapes]
