"""Parameters and optimizer state of the largest networks, made where they live: nothing is whole.

    python benchmarks/sharded_init.py                  MAE ViT-H/14 and SimCLR ResNet-50 4x
    python benchmarks/sharded_init.py simclr_r50_4x

The experiment's whole state before the first step is made for real, split over eight virtual
devices of this CPU (`fsdp` 8), and again on one; every array has to have the same bits both ways.
Exit code 0: they have. `a device` is what lies on the first of the eight; the peak is of the
process, which holds all eight. It wants 16 GiB of memory and takes minutes.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import resource
import sys
import time

os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
)

import jax
import numpy as np
from provenance import header

from ssljax.core import Signature, Tree
from ssljax.data.known import Facts
from ssljax.definitions import load_experiment
from ssljax.experiment import Experiment
from ssljax.nets.vit import vit
from ssljax.train.placement import make_mesh
from ssljax.train.session import Session, delivered

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
IMAGENET = Facts(examples=1_281_167, classes=1000, channels=3)
GIB = 2**30


def mae_vit_h() -> Experiment:
    """MAE's ViT-B experiment with the paper's largest encoder."""
    experiment = load_experiment(EXPERIMENTS / 'mae_imagenet_vit_b.py')
    was = experiment.method.encoder
    encoder = vit('H', 14, position=was.position, initial=was.initial, dtype=was.dtype)
    return with_encoder(experiment, encoder)


def simclr_r50_4x() -> Experiment:
    """SimCLR's ResNet-50 experiment, four times as wide."""
    experiment = load_experiment(EXPERIMENTS / 'simclr_imagenet_r50.py')
    return with_encoder(experiment, dataclasses.replace(experiment.method.encoder, width=4))


def with_encoder(experiment: Experiment, encoder) -> Experiment:
    method = dataclasses.replace(experiment.method, encoder=encoder)
    return dataclasses.replace(experiment, method=method)


NETWORKS = {'mae_vit_h': mae_vit_h, 'simclr_r50_4x': simclr_r50_4x}


def made(experiment: Experiment, devices: int) -> tuple[Tree, float]:
    """The state on so many devices, split over all of them, and the seconds that it took."""
    experiment = dataclasses.replace(experiment, fsdp=devices)
    data: Signature = delivered(experiment, IMAGENET)
    session = Session.planned(experiment, data, make_mesh(devices, devices))
    began = time.perf_counter()
    state = jax.block_until_ready(session.fresh())
    return state, time.perf_counter() - began


def bits(state: Tree) -> dict[str, str]:
    """A digest of every array by its path; a device's copy of an array is freed behind it."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[jax.tree_util.keystr(path)] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        leaf.delete()
    return found


def on_first(state: Tree) -> int:
    """Bytes of a state on the first device."""
    first, count = jax.devices()[0], 0
    for leaf in jax.tree.leaves(state):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            count += sum(s.data.nbytes for s in leaf.addressable_shards if s.device == first)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('networks', nargs='*', choices=[*NETWORKS, []], default=list(NETWORKS))
    names = parser.parse_args().networks
    print(header())
    print('\n      network  parameters  devices  a device, GiB  seconds  peak, GiB  the same bits')
    same = True
    for name in names:
        experiment, found = NETWORKS[name](), []
        for devices in (8, 1):
            state, seconds = made(experiment, devices)
            count = sum(leaf.size for leaf in jax.tree.leaves(state.params['encoder']))
            bytes_there = on_first(state)
            found.append(bits(state))
            del state
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            equal = found[0] == found[-1]
            same &= equal
            verdict = '' if devices == 8 else 'yes' if equal else 'NO'
            print(
                f'{name:>13} {count:11,} {devices:8} {bytes_there / GIB:14.2f} {seconds:8.0f} '
                f'{peak / GIB:10.2f}  {verdict:>13}',
                flush=True,
            )
    return 0 if same else 1


if __name__ == '__main__':
    sys.exit(main())
