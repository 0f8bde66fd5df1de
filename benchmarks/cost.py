"""Every method's step against the bare passes of its networks that it cannot do without.

    python benchmarks/cost.py                      # all methods: ResNet-18, 32 px, batch 256
    python benchmarks/cost.py moco_v2 byol         # some of them
    python benchmarks/cost.py --flops              # only count operations: quick, free of noise

A gradient pass is forward and backward in training mode, a forward pass is forward alone: SimCLR
needs one gradient pass over both views, MoCo one over the queries and a forward pass over the keys,
BYOL two and two. Decoders, context networks and discriminators are networks that a method needs;
heads are not. What a step adds is augmentation on the device, heads, loss, optimizer, moving
averages and the skipping of non-finite updates. Target: at most 1.15 times the bare passes in time.

ResNet-18 wherever the method allows: CPC has a smaller one without BatchNorm over a grid of 7 x 7
patches, MAE a small transformer over 16 of 64 patches.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from provenance import header

from ssljax.core import Method, Signature
from ssljax.experiment import Data, Experiment
from ssljax.memory import Queue
from ssljax.methods.byol import BYOL
from ssljax.methods.context_encoder import ContextEncoder
from ssljax.methods.cpc import CPC
from ssljax.methods.deepcluster import DeepCluster
from ssljax.methods.dino import DINO
from ssljax.methods.holes import Centre
from ssljax.methods.mae import MAE
from ssljax.methods.moco import MoCo
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.methods.npid import NPID
from ssljax.methods.rotation import Rotation
from ssljax.methods.simclr import SimCLR
from ssljax.methods.supervised import Supervised
from ssljax.methods.swav import SwAV
from ssljax.nets.dino_head import DINOHead
from ssljax.nets.inpainting import Decoder, Discriminator
from ssljax.nets.mae_decoder import MAEDecoder
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.preact_resnet import PreActResNet
from ssljax.nets.resnet import ResNet
from ssljax.nets.vit import ViT
from ssljax.optim import SGD
from ssljax.plan.measure import made_batch
from ssljax.plan.work import work_of
from ssljax.train.session import Session
from ssljax.views.byol import BYOLViews
from ssljax.views.multicrop import MultiCrop
from ssljax.views.recipe import Recipe
from ssljax.views.simclr import SimCLRViews
from ssljax.views.supervised import CropFlip

SIZE, CHANNELS, CLASSES, EXAMPLES = 32, 3, 10, 45_000
TWO = SimCLRViews(size=SIZE, blur=0.0, evaluation_crop=1.0)
ONE = CropFlip(size=SIZE)
RESNET = ResNet(depth=18, stem='cifar')
PATCH, PATCH_OF_VIT = 8, 4


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a network over inputs.

    Attributes:
        views: inputs for each example of the batch, all in one go.
        backward: whether a gradient to the parameters is taken.
        shape: of one input.
        network: gives the network of the method.
        name: of the network in the table; passes of one name share parameters.
        call: what the network does with inputs [n, ...]; default: `network(x, train=True)`.
        to_input: whether a gradient to the input is taken, as by what stands behind a network.
    """

    views: int = 1
    backward: bool = True
    shape: tuple[int, ...] = (SIZE, SIZE, CHANNELS)
    network: Callable[[Method], nn.Module] = lambda method: method.encoder
    name: str = ''
    call: Callable[[nn.Module, jax.Array], Any] = lambda network, x: network(x, train=True)
    to_input: bool = False

    def __str__(self) -> str:
        many = f'{self.views} view{"s" * (self.views > 1)}'
        return ' '.join(
            (many, *[self.name] * bool(self.name), 'gradient' if self.backward else 'forward')
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, and the passes of its networks without which it could not be."""

    method: Method
    recipe: Recipe
    passes: tuple[Pass, ...]


def encoded(network: ViT, x: jax.Array) -> jax.Array:
    """What MAE's encoder makes of the first quarter of the patches, class token ahead."""
    tokens = (SIZE // PATCH_OF_VIT) ** 2
    keep = jnp.broadcast_to(jnp.arange(tokens // 4), (len(x), tokens // 4))
    seen = network.features(x, train=True, keep=keep)
    return jnp.concatenate([seen['cls'][:, None], seen['tokens']], axis=1)


def decoded(network: MAEDecoder, x: jax.Array) -> jax.Array:
    """What MAE's decoder makes of a quarter of the patches, class token ahead."""
    side = SIZE // PATCH_OF_VIT
    rank = jnp.broadcast_to(jnp.arange(side**2), (len(x), side**2))
    seen = {'cls': x[:, 0], 'tokens': x[:, 1:]}
    return network(seen, rank, (side, side), PATCH_OF_VIT**2 * CHANNELS)


GRADIENT, FORWARD = Pass(), Pass(backward=False)
DISCRIMINATOR = {
    'shape': (SIZE // 2, SIZE // 2, CHANNELS),
    'network': lambda method: method.discriminator,
    'name': 'discriminator',
}
CPC_OF_16 = CPC(
    PatchEncoder(
        PreActResNet(widths=(32, 64, 128), blocks=(2, 2, 2), stem='cifar'),
        patch=PATCH,
        stride=PATCH // 2,
    ),
    PixelCNN(blocks=2, hidden=64),
    steps=3,
    group=16,
)
CPC_PASSES = (
    Pass(
        shape=(7, 7, PATCH, PATCH, CHANNELS),
        call=lambda network, x: network.of_patches(x, train=True),
    ),
    Pass(
        shape=(7, 7, 512),
        network=lambda method: method.context,
        name='context network',
        to_input=True,
    ),
)
CASES = {
    'supervised': Case(Supervised(RESNET, classes=CLASSES), ONE, (GRADIENT,)),
    'simclr': Case(SimCLR(RESNET, temperature=0.5), TWO, (Pass(2),)),
    'moco_v2': Case(
        MoCo(ResNet(depth=18, stem='cifar', norm_groups=8), queue=Queue(4096)),
        TWO,
        (GRADIENT, FORWARD),
    ),
    'moco_v3': Case(MoCoV3(RESNET), BYOLViews(size=SIZE), (GRADIENT, GRADIENT, FORWARD, FORWARD)),
    # By 4,096 rows an image, as on ImageNet; by the whole bank, the authors' way on CIFAR-10.
    'npid': Case(NPID(RESNET), ONE, (GRADIENT,)),
    'npid_softmax': Case(NPID(RESNET, temperature=0.1, negatives=None), ONE, (GRADIENT,)),
    'rotation': Case(Rotation(RESNET), ONE, (Pass(4),)),
    'swav': Case(SwAV(RESNET, prototypes=512), TWO, (Pass(2),)),
    # Two global views by student and teacher, two local ones of half the size by the student.
    'dino': Case(
        DINO(RESNET, DINOHead(prototypes=4096)),
        MultiCrop(size=SIZE, local_size=SIZE // 2, local_count=2),
        (Pass(2), Pass(2, shape=(SIZE // 2, SIZE // 2, CHANNELS)), Pass(2, backward=False)),
    ),
    'byol': Case(BYOL(RESNET), BYOLViews(size=SIZE), (GRADIENT, GRADIENT, FORWARD, FORWARD)),
    'deepcluster': Case(DeepCluster(RESNET, clusters=512), ONE, (GRADIENT,)),
    # Candidates of 16 images, as the paper had on a GPU; below, of all.
    'cpc': Case(CPC_OF_16, ONE, CPC_PASSES),
    'cpc_batch': Case(dataclasses.replace(CPC_OF_16, group=None), ONE, CPC_PASSES),
    'mae': Case(
        MAE(
            ViT(width=192, depth=12, heads=3, patch=PATCH_OF_VIT),
            MAEDecoder(width=96, depth=4, heads=3),
        ),
        ONE,
        (
            Pass(call=encoded),
            Pass(
                shape=(17, 192),
                network=lambda method: method.decoder,
                name='decoder',
                call=decoded,
                to_input=True,
            ),
        ),
    ),
    'context_encoder': Case(
        ContextEncoder(
            RESNET,
            Decoder(widths=(256, 128)),
            Discriminator(widths=(64, 128, 256)),
            hole=Centre(rim=2),
            layer='stage4',
        ),
        ONE,
        (
            Pass(call=lambda network, x: network.features(x, train=True)['stage4']),
            Pass(
                shape=(4, 4, 512),
                network=lambda method: method.decoder,
                name='decoder',
                call=lambda network, x: network(x, (SIZE // 2, CHANNELS), train=True),
                to_input=True,
            ),
            # Of itself: real and painted. Through it, to the painter: painted.
            Pass(2, **DISCRIMINATOR),
            Pass(backward=False, to_input=True, **DISCRIMINATOR),
        ),
    ),
}


def session_of(case: Case, batch: int) -> Session:
    experiment = Experiment(
        method=case.method,
        recipe=case.recipe,
        optimizer=SGD(learning_rate=0.03),
        data=Data('made_images'),
        batch=batch,
        epochs=10.0,
    )
    views = tuple(case.recipe.views().items())
    return Session.without_data(experiment, Signature(views, CHANNELS, CLASSES, EXAMPLES))


def whole_step(session: Session) -> tuple[Callable, float]:
    """The step, to be run, and its floating-point operations."""
    batch = made_batch(session)
    lowered = session.step.lower(session.abstract, batch)
    compiled = lowered.compile()
    held = [session.fresh()]

    def run():
        held[0], metrics = compiled(held[0], batch)
        return metrics['loss']

    return run, work_of(lowered, compiled).flops


def bare(session: Session, method: Method, passes: tuple[Pass, ...]) -> tuple:
    """The passes, one behind the other in one program, and their floating-point operations."""
    batch = session.run.batch
    shapes = [(batch * p.views, *p.shape) for p in passes]
    inputs = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    variables = {}
    for p, x in zip(passes, inputs, strict=True):
        if p.name not in variables:
            init = functools.partial(p.network(method).init, method=p.call)
            variables[p.name] = jax.jit(init)(jax.random.key(1), x)
    params = {name: found['params'] for name, found in variables.items()}
    stats = {name: found.get('batch_stats', {}) for name, found in variables.items()}
    other = jax.tree.map(jnp.copy, params)

    def program(params, other, inputs):
        def outcome(p, params, x):
            params = (params if p.backward else jax.lax.stop_gradient(other))[p.name]
            net = {'params': params, 'batch_stats': stats[p.name]}
            x = x if p.to_input else jax.lax.stop_gradient(x)
            h, new = p.network(method).apply(net, x, mutable=['batch_stats'], method=p.call)
            return jnp.mean(h**2), new

        def loss(params, inputs):
            parts = [outcome(p, params, x) for p, x in zip(passes, inputs, strict=True)]
            return sum(value for value, _ in parts), [new for _, new in parts]

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)

    lowered = jax.jit(program).lower(params, other, inputs)
    compiled = lowered.compile()
    return lambda: compiled(params, other, inputs), work_of(lowered, compiled).flops


def seconds(variants: dict[str, Callable], repetitions: int) -> dict[str, float]:
    """Median seconds of each, taking turns: a busy moment hits all alike."""
    times = {name: [] for name in variants}
    for _ in range(repetitions + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'methods', nargs='*', metavar='method', help=f'of {", ".join(CASES)}; default: all'
    )
    parser.add_argument('--batch', type=int, default=256, help='images a step')
    parser.add_argument('--repetitions', type=int, default=3, help='timed runs of each')
    parser.add_argument('--flops', action='store_true', help='count operations, time nothing')
    options = parser.parse_args()
    print(header())
    print(f'\nbatch {options.batch}, {SIZE} px, median of {options.repetitions} interleaved runs\n')
    print('| method | bare passes | operations, step / bare | time, step / bare | step |')
    print('| --- | --- | ---: | ---: | ---: |')
    for name in options.methods or CASES:
        case = CASES[name]
        session = session_of(case, options.batch)
        step, step_flops = whole_step(session)
        passes, bare_flops = bare(session, case.method, case.passes)
        ratio = step_flops / bare_flops
        time_ratio, took = '', ''
        if not options.flops:
            taken = seconds({'step': step, 'bare': passes}, options.repetitions)
            time_ratio = f'{taken["step"] / taken["bare"]:.2f}'
            took = f'{1e3 * taken["step"]:.4g} ms'
        told = ' + '.join(str(p) for p in case.passes)
        print(f'| {name} | {told} | {ratio:.3f} | {time_ratio} | {took} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
