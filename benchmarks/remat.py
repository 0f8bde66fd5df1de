"""What `remat` of the residual networks saves and costs, by compiling a backward pass.

    python benchmarks/remat.py                     for the device at hand
    python benchmarks/remat.py --topology v5e:2x2  for a TPU, without owning one (extra `tpu-plan`)

Kept: bytes of the forward pass that the backward pass asks for, weights included, before any
compiler sees it. Temporaries: what the compiled program allocates beside arguments and results.
"""

import argparse

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from provenance import header

from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet

MIB = 2**20
NETS = {
    'small': (SmallResNet(blocks=(8, 8)), 28),
    'resnet18': (ResNet(depth=18, stem='cifar'), 32),
    'resnet50': (ResNet(depth=50), 224),
}


def abstract(net, batch: int, size: int, device):
    """Parameters, statistics and images, shapes alone, on a device."""

    def init():
        made = net.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
        return made['params'], made['batch_stats'], jnp.zeros((batch, size, size, 3))

    place = SingleDeviceSharding(device)
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
    return jax.tree.map(like, jax.eval_shape(init))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('net', nargs='?', choices=NETS, default='resnet18')
    parser.add_argument('--batch', type=int, default=256, help='images')
    parser.add_argument('--topology', help="a TPU's, such as v5e:2x2")
    options = parser.parse_args()

    print(header())
    if options.topology:
        found = topologies.get_topology_desc(options.topology, platform='tpu')
        device = found.devices[0]
    else:
        device = jax.devices()[0]
    net, size = NETS[options.net]
    print(f'\n{options.net}, {options.batch} images of {size} pixels, on {device.device_kind}')
    for remat in (False, True):
        of = net.clone(remat=remat)

        def loss(params, stats, x, of=of):
            variables = {'params': params, 'batch_stats': stats}
            y, new = of.apply(variables, x, train=True, mutable=['batch_stats'])
            return jnp.sum(jnp.square(y)), new

        def backward(params, stats, x, loss=loss):
            return jax.vjp(lambda p: loss(p, stats, x), params, has_aux=True)[1]

        shapes = abstract(of, options.batch, size, device)
        kept = sum(
            a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(backward, *shapes))
        )
        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*shapes).compile()
        print(
            f'remat {remat}: kept {kept / MIB:.0f} MiB, temporaries '
            f'{compiled.memory_analysis().temp_size_in_bytes / MIB:.0f} MiB, '
            f'{compiled.cost_analysis()["flops"] / 1e9:.0f} GFLOP'
        )


if __name__ == '__main__':
    main()
