"""Would a ring of columns pay for the tiled losses? Temporaries and bytes moved, by compiling.

    python benchmarks/ring.py

NT-Xent's denominators, value and gradient, on 8 virtual devices: `log_sum_exp_self` gathers the
columns on every device once; the ring, here and nowhere else, holds one device's columns at a time
and hands them on to the neighbour (`ppermute`), in the forward and once more in the backward pass.
Both hold the same number of logits. At a small size both are run and compared first.
"""

import argparse
import functools
import os
import re

DEVICES = 8
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={DEVICES}'
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from provenance import header  # noqa: E402

from ssljax.losses.tiling import LEFT_OUT, by_rows, log_sum_exp_self, matmul  # noqa: E402

MIB = 2**20
RING = [(i, (i + 1) % DEVICES) for i in range(DEVICES)]


def handed_on(tree):
    """Every device's arrays, on its neighbour."""
    return jax.tree.map(lambda a: jax.lax.ppermute(a, 'data', RING), tree)


def logits(x, y, of_x, of_y):
    return matmul(x, y.T) + jnp.where(of_x[:, None] == of_y, LEFT_OUT, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def ring_log_sum_exp_self(x, number, tile):
    """`log_sum_exp_self` of rows that are split over the devices; for use inside `shard_map`."""
    return ring_forward(x, number, tile)[0]


def ring_forward(x, number, tile):
    def over(block, every):
        return jax.nn.logsumexp(logits(block[0], every[0], block[1], every[1]), axis=1)

    def hop(carry, _):
        columns, total = carry
        total = jnp.logaddexp(total, by_rows(over, (x, number), columns, tile))
        return (handed_on(columns), total), None

    start = ((x, number), jnp.full_like(x[:, 0], LEFT_OUT))
    (_, total), _ = jax.lax.scan(hop, start, length=DEVICES)
    return total, (x, number, total)


def ring_backward(tile, saved, g):
    x, number, total = saved

    def to_x(block, every):
        x, number, row_total, row_g = block
        y, numbers, total, g = every
        s = logits(x, y, number, numbers)
        as_row = row_g[:, None] * jnp.exp(s - row_total[:, None])
        return matmul(as_row + g * jnp.exp(s - total), y)

    rows = (x, number, total, g)

    def hop(carry, _):
        columns, dx = carry
        return (handed_on(columns), dx + by_rows(to_x, rows, columns, tile)), None

    (_, dx), _ = jax.lax.scan(hop, (rows, jnp.zeros_like(x)), length=DEVICES)
    return dx, None


ring_log_sum_exp_self.defvjp(ring_forward, ring_backward)


def compiled(rows: int, dim: int, tile: int, ring: bool):
    """The mean denominator and its gradient, for rows split over the devices."""
    mesh = jax.make_mesh((DEVICES,), ('data',), axis_types=(AxisType.Auto,))
    split = PartitionSpec('data')

    def of_all(x):
        number = jnp.arange(rows) // 2
        if not ring:
            return jnp.mean(log_sum_exp_self(x, number, tile))
        # As many logits as in the global view: an eighth of the columns, eight times the rows.
        own = lambda x, number: ring_log_sum_exp_self(x, number, tile)
        return jnp.mean(jax.shard_map(own, in_specs=split, out_specs=split)(x, number))

    place = NamedSharding(mesh, split)
    x = jax.ShapeDtypeStruct((rows, dim), jnp.float32, sharding=place)
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        jitted = jax.jit(jax.value_and_grad(of_all), out_shardings=(whole, place))
        return jitted.lower(x).compile(), place


COLLECTIVE = re.compile(
    r'= \(?(.*?)\)?\s(?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\('
)


def moved(executable) -> float:
    """Bytes of the results of a device's collectives, those inside of a loop at every hop."""
    total = 0
    for computation in re.split(r'\n(?=\S)', executable.as_text()):
        times = 1 if computation.startswith('ENTRY') else DEVICES
        for shapes in COLLECTIVE.findall(computation):
            for sizes in re.findall(r'[fs]32\[([\d,]*)\]', shapes):
                total += times * 4 * int(np.prod([int(size) for size in sizes.split(',') if size]))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--pairs', type=int, default=32_768, help='examples, two views each')
    parser.add_argument('--dim', type=int, default=128, help='dimensions of an embedding')
    parser.add_argument('--tile', type=int, default=256, help='rows held at a time by all devices')
    options = parser.parse_args()

    print(header())
    x = np.random.default_rng(0).normal(size=(512, 32)).astype(np.float32)
    results = []
    for ring in (False, True):
        run, place = compiled(*x.shape, 64, ring)
        results.append([np.asarray(leaf) for leaf in run(jax.device_put(x, place))])
    apart = max(np.abs(a - b).max() for a, b in zip(*results, strict=True))
    print(f'\nlargest difference between the two at 256 pairs: {apart:.1e}\n')
    assert apart < 1e-5

    for name, ring in (('gathered', False), ('ring', True)):
        run, _ = compiled(2 * options.pairs, options.dim, options.tile, ring)
        size = run.memory_analysis().temp_size_in_bytes
        print(
            f'{name}: temporaries {size / MIB:.1f} MiB a device, '
            f'results of collectives {moved(run) / MIB:.1f} MiB a device'
        )


if __name__ == '__main__':
    main()
