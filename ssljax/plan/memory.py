"""What lies in a chip's memory during a step: the state by its parts, and what the step adds."""

import dataclasses
import math
import re
from typing import Any

import jax

from ssljax.core import TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs.

    Attributes:
        parameters: of the networks that are trained.
        optimizer: the optimizer's state.
        method: the rest of the method's state (statistics, momentum encoder, queue, ...).
        batch: the batch, as the pipeline delivers it.
        temporaries: activations, gradients and everything else that lives only inside the step.
        program: the compiled code.
        padding: what the layout of the arguments adds to their elements, and results that have no
            argument's place (metrics).
    """

    parameters: int
    optimizer: int
    method: int
    batch: int
    temporaries: int
    program: int
    padding: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


def held(tree: Tree) -> int:
    """Bytes of an abstract tree on one device, by the shardings of its leaves."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory(state: TrainState, batch: Tree, stats: Any) -> Memory:
    """Splits what the compiler says a step needs.

    Args:
        state: shapes, dtypes and shardings.
        batch: likewise.
        stats: `Compiled.memory_analysis()`, of one device.
    """
    parts = {
        'parameters': held(state.params),
        'optimizer': held(state.opt),
        'method': held((state.method, state.step, state.key)),
        'batch': held(batch),
    }
    # Donated arguments are the places of results: counted once.
    resident = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Memory(
        **parts,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
        padding=resident - sum(parts.values()),
    )


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A step that the compiler could not place.

    Attributes:
        used: bytes on one device that it needs.
        limit: bytes that it may have.
    """

    used: float
    limit: float


_USED = (
    re.compile(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', re.IGNORECASE),
    re.compile(r'\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)'),
)
"""What the TPU compiler says if a step does not fit, and if its temporaries alone do not."""
_UNIT = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def too_large(error: Exception) -> TooLarge | None:
    """What a failed compilation says of memory; None if it failed for another reason."""
    found = [match for pattern in _USED if (match := pattern.search(str(error)))]
    if not found:
        return None
    used, unit, limit, limit_unit = found[0].groups()
    return TooLarge(
        used=float(used) * _UNIT[unit.upper()], limit=float(limit) * _UNIT[limit_unit.upper()]
    )
