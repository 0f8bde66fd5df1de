"""Devices at hand: their peaks, by small programs, and the seconds of real steps."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssljax.core import Batch
from ssljax.plan.chips import Chip
from ssljax.plan.planning import Step
from ssljax.train.placement import Placement
from ssljax.train.session import Session


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each device computes, copies and exchanges to show its peaks.

    Attributes:
        side: rows and columns of the matrix product.
        copied: floats of the copy, more than a device's share of a cache.
        exchanged: floats that all devices sum up.
    """

    side: int
    copied: int
    exchanged: int


SIZES = {'cpu': Sizes(side=1024, copied=2**24, exchanged=2**22)}
QUICK = Sizes(side=8192, copied=2**29, exchanged=2**27)
"""Of a device that is no CPU: so much that starting a program is no part of its time. A copy of
64 MiB showed 928 GB/s on an H100, which has 3,350."""

WARM, TIMED = 2, 5
"""Steps before the clock starts, and under it."""


def product_rate(placement: Placement, dtype: str) -> float:
    """FLOP/s of a large square matrix product on one of the devices, all of them at it."""
    side = _sizes(placement.mesh).side
    return 2 * side**3 / _seconds(placement.mesh, (side, side), lambda a: a @ a, dtype)


def _sizes(mesh: Mesh) -> Sizes:
    return SIZES.get(mesh.devices.flat[0].platform, QUICK)


def measured_chip(placement: Placement, dtype: str) -> Chip:
    """The peaks of one of the devices at hand, all of them working at once.

    Virtual devices of one CPU share it, so each has its part of the whole.

    Args:
        placement: the devices.
        dtype: that products are taken in, such as `bfloat16`.
    """
    mesh = placement.mesh
    first = mesh.devices.flat[0]
    sizes = _sizes(mesh)
    flops = product_rate(placement, dtype)
    bandwidth = 2 * 4 * sizes.copied / _seconds(mesh, (sizes.copied,), lambda a: a + 1, 'float32')
    interconnect = float('inf')
    if mesh.size > 1:
        sent = 2 * (mesh.size - 1) / mesh.size * 4 * sizes.exchanged
        exchange = lambda a: jax.lax.psum(a, ('data', 'fsdp'))
        interconnect = sent / _seconds(mesh, (sizes.exchanged,), exchange, 'float32')
    memory = capacity([*mesh.devices.flat])
    return Chip(first.device_kind, flops, memory, bandwidth, interconnect, source='measured here')


def _seconds(mesh: Mesh, shape: tuple[int, ...], function: Callable, dtype: str) -> float:
    """Of a function that every device runs on an array of its own; the quickest of five runs.

    Each result takes the place of its argument, so that no memory is mapped anew under the clock.
    """
    spec = Placement(mesh).batch
    per_device = jax.shard_map(
        lambda a: function(a[0])[None], mesh=mesh, in_specs=spec.spec, out_specs=spec.spec
    )
    # The square of a matrix of these is the matrix itself: no run overflows.
    fill = lambda: jnp.full((mesh.size, *shape), 1 / shape[-1], dtype)
    array = jax.jit(fill, out_shardings=spec)()
    run = jax.jit(per_device, donate_argnums=0)
    array = jax.block_until_ready(run(array))
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        array = jax.block_until_ready(run(array))
        taken.append(time.perf_counter() - began)
    return min(taken)


def capacity(devices: Sequence[jax.Device]) -> float:
    """Bytes of memory of one of the devices at hand; of a CPU's virtual devices, its part."""
    device = devices[0]
    stats = device.memory_stats() if device.platform != 'cpu' else None
    if stats and 'bytes_limit' in stats:
        return float(stats['bytes_limit'])
    pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
    return pages * size / len(devices)


def made_batch(session: Session) -> Batch:
    """A batch of noise, as the pipeline would deliver one."""
    rng = np.random.default_rng(0)
    classes = session.data.classes or 2
    made = {
        name: rng.integers(0, 256 if leaf.dtype == np.uint8 else classes, leaf.shape).astype(
            leaf.dtype
        )
        for name, leaf in session.batch.items()
    }
    made['index'] = np.arange(session.run.batch, dtype=np.int32)
    return session.placement.put(made)


def step_seconds(session: Session, step: Step) -> float:
    """The median time of a real step, on made images."""
    batch = made_batch(session)
    state, taken = session.fresh(), []
    jax.block_until_ready(state)
    for _ in range(WARM + TIMED):
        began = time.perf_counter()
        state, metrics = step.run(state, batch)
        jax.block_until_ready((state, metrics))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[WARM:])
