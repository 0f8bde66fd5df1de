"""NT-Xent, dense against tiled: time and memory of forward and backward, error against float64.

    python benchmarks/nt_xent.py

Targets, at 4096 pairs of 128 dimensions on a CPU: tiled takes at most 1.15 times as long as dense
and at most a quarter of its temporaries; at 32,768 pairs it needs less than 1 GiB; the gradient of
either is within 1e-5 (relative, in norm) of the dense gradient in float64.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from provenance import header

from ssljax.losses.contrastive import nt_xent

MIB = 2**20


def pairs(count: int, dim: int) -> np.ndarray:
    """Two views an example as in training: alike within an example, not orthogonal across."""
    rng = np.random.default_rng(0)
    example = rng.normal(size=(count, 1, dim))
    return (1 + example + rng.normal(size=(count, 2, dim))).astype(np.float32)


def compiled(z, temperature: float, tile: int | None):
    """Loss and gradient, compiled for the shape and dtype of `z`."""

    def loss(z):
        return nt_xent(z, temperature=temperature, tile=tile)

    return jax.jit(jax.value_and_grad(loss)).lower(z).compile()


def temporaries(executable) -> int:
    """Bytes that a compiled function allocates beside its arguments and results."""
    return executable.memory_analysis().temp_size_in_bytes


def seconds(variants: dict, z, repetitions: int) -> dict[str, float]:
    """The median time of each variant, taking turns so that a busy moment hits all alike."""
    times = {name: [] for name in variants}
    for _ in range(repetitions + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(run(z))
            times[name].append(time.perf_counter() - start)
    # The first round warms up.
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def verdict(met: bool, target: str) -> str:
    return f'(target {target}: {"met" if met else "MISSED"})'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--pairs', type=int, default=4096, help='examples, two views each')
    parser.add_argument('--large', type=int, default=32_768, help='pairs for memory alone')
    parser.add_argument('--dim', type=int, default=128, help='dimensions of an embedding')
    parser.add_argument('--tile', type=int, default=256, help='rows of the matrix held at a time')
    parser.add_argument('--temperature', type=float, default=0.1)
    parser.add_argument('--repetitions', type=int, default=9, help='timed runs of each variant')
    options = parser.parse_args()

    print(header())
    print(
        f'nt_xent: {options.pairs} pairs, {options.dim} dimensions, '
        f'temperature {options.temperature}, tile {options.tile}, '
        f'median of {options.repetitions} interleaved runs\n'
    )
    z = jnp.asarray(pairs(options.pairs, options.dim))
    variants = {
        'dense': compiled(z, options.temperature, None),
        'tiled': compiled(z, options.temperature, options.tile),
    }
    with jax.enable_x64(True):
        exact = jnp.asarray(z, jnp.float64)
        exact = np.asarray(compiled(exact, options.temperature, None)(exact)[1])
    taken = seconds(variants, z, options.repetitions)
    errors = {}
    for name, run in variants.items():
        gradient = np.asarray(run(z)[1], np.float64)
        errors[name] = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
        print(
            f'{name}: {1e3 * taken[name]:.4g} ms, temporaries {temporaries(run) / MIB:.1f} MiB, '
            f'gradient error {errors[name]:.1e}'
        )

    slower = taken['tiled'] / taken['dense']
    smaller = temporaries(variants['tiled']) / temporaries(variants['dense'])
    shape = jax.ShapeDtypeStruct((options.large, 2, options.dim), jnp.float32)
    large = temporaries(compiled(shape, options.temperature, options.tile)) / MIB
    worst = max(errors.values())
    print(f'\ntime, tiled / dense: {slower:.2f}', verdict(slower <= 1.15, 'at most 1.15'))
    print(f'temporaries, tiled / dense: {smaller:.3f}', verdict(smaller <= 0.25, 'at most 0.25'))
    print(
        f'temporaries, tiled at {options.large} pairs: {large:.0f} MiB',
        verdict(large < 1024, 'under 1024 MiB'),
    )
    print(f'gradient error against float64: {worst:.1e}', verdict(worst <= 1e-5, 'at most 1e-5'))


if __name__ == '__main__':
    main()
