"""Memory of the losses in row blocks, by batch: every batch from 4,096 to 131,072, by compiling.

    python benchmarks/linear_memory.py            memory alone, nothing is run
    python benchmarks/linear_memory.py --seconds  times NT-Xent and SigLIP's loss up to 32,768 too
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/linear_memory.py

A loss and its gradient to all arguments is compiled for float32 embeddings, split over all devices
there are (the last line makes eight of one CPU); what counts are the bytes that a device allocates
beside arguments and results. For CPC, n are the positions of all
sequences of 8, of which it predicts 2 steps. Target: an exponent of n, the slope between the
logarithms, of at most 1.05, where the whole matrix has 2.
"""

import argparse
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from provenance import header

from ssljax.losses.contrastive import info_nce, nt_xent, sigmoid_pairs
from ssljax.losses.prediction import log_bilinear

MIB = 2**20
SIZES = tuple(2**power for power in range(12, 18))
TIMED = ('nt_xent', 'sigmoid_pairs')
LONGEST_TIMED = 2**15


def losses(tile: int | None) -> dict:
    """Functions of embeddings by name."""
    return {
        'nt_xent': lambda z: nt_xent(z, temperature=0.1, tile=tile),
        'info_nce': lambda query, key: info_nce(query, key, temperature=0.1, tile=tile),
        'log_bilinear': lambda c, z, w: log_bilinear(c, z, w, tile=tile),
        'sigmoid_pairs': lambda a, b: sigmoid_pairs(
            a, b, log_temperature=math.log(10), bias=-10.0, tile=tile
        ),
    }


def shapes(name: str, n: int, d: int) -> list[tuple[int, ...]]:
    """Of the arguments of a loss."""
    return {
        'nt_xent': [(n, 2, d)],
        'info_nce': [(n, d), (n, d)],
        'log_bilinear': [(n // 8, 8, d), (n // 8, 8, d), (2, d, d)],
        'sigmoid_pairs': [(n, d), (n, d)],
    }[name]


def compiled(name: str, n: int, d: int, tile: int | None):
    """Loss and gradient, compiled; examples are split over the devices, CPC's weights are whole."""
    mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',)))
    places = tuple(whole if shape[1:] == (d, d) else split for shape in shapes(name, n, d))
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(name, n, d)]
    loss = jax.value_and_grad(losses(tile)[name], argnums=tuple(range(len(like))))
    with jax.set_mesh(mesh):
        jitted = jax.jit(loss, in_shardings=places, out_shardings=(whole, places))
        return jitted.lower(*like).compile()


def mebibytes(executable) -> float:
    """What a compiled function allocates beside its arguments and results."""
    return executable.memory_analysis().temp_size_in_bytes / MIB


def seconds(executable, shapes: list[tuple[int, ...]], repetitions: int) -> float:
    """The median time of a run; the first warms up."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays = jax.device_put(arrays, list(executable.input_shardings[0]))
    taken = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready(executable(*arrays))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def exponent(sizes, values) -> float:
    """The slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dim', type=int, default=128, help='dimensions of an embedding')
    parser.add_argument('--tile', type=int, default=256, help='rows of the matrix held at a time')
    parser.add_argument('--seconds', action='store_true', help='run and time as well')
    parser.add_argument('--repetitions', type=int, default=3, help='timed runs of each size')
    options = parser.parse_args()

    print(header())
    print(f'\ntemporaries in MiB a device, {options.dim} dimensions, tile {options.tile}\n')
    print('n'.rjust(15), *(f'{n:>9,}' for n in SIZES), ' exponent  whole matrix at 4,096')
    worst = 0.0
    for name in losses(None):
        sizes = [mebibytes(compiled(name, n, options.dim, options.tile)) for n in SIZES]
        worst = max(worst, exponent(SIZES, sizes))
        whole = mebibytes(compiled(name, SIZES[0], options.dim, None))
        print(
            name.rjust(15), *(f'{size:9.1f}' for size in sizes),
            f'{exponent(SIZES, sizes):9.2f} {whole:9.1f}',
        )  # fmt: skip
    met = 'met' if worst <= 1.05 else 'MISSED'
    print(f'\nlargest exponent: {worst:.2f} (target at most 1.05: {met})')

    if options.seconds:
        timed = [n for n in SIZES if n <= LONGEST_TIMED]
        print('\nseconds\n')
        print('n'.rjust(15), *(f'{n:>9,}' for n in timed))
        for name in TIMED:
            taken = [
                seconds(
                    compiled(name, n, options.dim, options.tile),
                    shapes(name, n, options.dim),
                    options.repetitions,
                )
                for n in timed
            ]
            print(name.rjust(15), *(f'{t:9.4g}' for t in taken))


if __name__ == '__main__':
    main()
