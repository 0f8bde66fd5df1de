"""Every method's step against the bare passes of its networks that it cannot do without.

    python benchmarks/cost.py                      # all methods: ResNet-18, 32 px, batch 256
    python benchmarks/cost.py moco_v2 byol         # some of them
    python benchmarks/cost.py --flops              # only count operations: quick, free of noise

A gradient pass is forward and backward in training mode, a forward pass is forward alone: SimCLR
needs one gradient pass over both views, MoCo one over the queries and a forward pass over the keys,
BYOL two and two. What a step adds is augmentation on the device, heads, loss, optimizer, moving
averages and the skipping of non-finite updates. Target: at most 1.15 times the bare passes in time.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from provenance import header

from ssljax.core import Method, Signature
from ssljax.experiment import Data, Experiment
from ssljax.memory import Queue
from ssljax.methods.byol import BYOL
from ssljax.methods.dino import DINO
from ssljax.methods.moco import MoCo
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.methods.npid import NPID
from ssljax.methods.rotation import Rotation
from ssljax.methods.simclr import SimCLR
from ssljax.methods.supervised import Supervised
from ssljax.methods.swav import SwAV
from ssljax.nets.dino_head import DINOHead
from ssljax.nets.resnet import ResNet
from ssljax.optim import SGD
from ssljax.plan.measure import made_batch
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


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a network over images.

    Attributes:
        views: images for each example of the batch, all in one go.
        backward: whether a gradient is taken.
        size: of an image, in pixels.
    """

    views: int = 1
    backward: bool = True
    size: int = SIZE


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, and the passes of its encoder without which it could not be."""

    method: Method
    recipe: Recipe
    passes: tuple[Pass, ...]


GRADIENT, FORWARD = Pass(), Pass(backward=False)
CASES = {
    'supervised': Case(Supervised(RESNET, classes=CLASSES), ONE, (GRADIENT,)),
    'simclr': Case(SimCLR(RESNET, temperature=0.5), TWO, (Pass(2),)),
    'moco_v2': Case(
        MoCo(ResNet(depth=18, stem='cifar', norm_groups=8), queue=Queue(4096)),
        TWO,
        (GRADIENT, FORWARD),
    ),
    'moco_v3': Case(MoCoV3(RESNET), BYOLViews(size=SIZE), (GRADIENT, GRADIENT, FORWARD, FORWARD)),
    'npid': Case(NPID(RESNET), ONE, (GRADIENT,)),
    'rotation': Case(Rotation(RESNET), ONE, (Pass(4),)),
    'swav': Case(SwAV(RESNET, prototypes=512), TWO, (Pass(2),)),
    # Two global views by student and teacher, two local ones of half the size by the student.
    'dino': Case(
        DINO(RESNET, DINOHead(prototypes=4096)),
        MultiCrop(size=SIZE, local_size=SIZE // 2, local_count=2),
        (Pass(2), Pass(2, size=SIZE // 2), Pass(2, backward=False)),
    ),
    'byol': Case(BYOL(RESNET), BYOLViews(size=SIZE), (GRADIENT, GRADIENT, FORWARD, FORWARD)),
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


def whole_step(session: Session) -> tuple[Callable, Callable]:
    """The step, to be run and to be analysed."""
    batch = made_batch(session)
    compiled = session.step.lower(session.abstract, batch).compile()
    held = [session.fresh()]

    def run():
        held[0], metrics = compiled(held[0], batch)
        return metrics['loss']

    return run, compiled


def bare(session: Session, encoder: nn.Module, passes: tuple[Pass, ...]) -> tuple:
    """The passes, one behind the other in one program; `run` and the compiled program."""
    batch = session.run.batch
    shapes = [(batch * p.views, p.size, p.size, CHANNELS) for p in passes]
    images = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    init = jax.jit(functools.partial(encoder.init, train=False))
    variables = init(jax.random.key(1), images[0][:2])
    params, stats = variables['params'], variables.get('batch_stats', {})
    other = jax.tree.map(jnp.copy, params)

    def program(params, other, images):
        def features(params, x):
            net = {'params': params, 'batch_stats': stats}
            h, new = encoder.apply(net, x, train=True, mutable=['batch_stats'])
            return jnp.mean(h**2), new

        def loss(params):
            parts = [
                features(params if p.backward else jax.lax.stop_gradient(other), x)
                for p, x in zip(passes, images, strict=True)
            ]
            return sum(value for value, _ in parts), [new for _, new in parts]

        return jax.value_and_grad(loss, has_aux=True)(params)

    compiled = jax.jit(program).lower(params, other, images).compile()
    return lambda: compiled(params, other, images), compiled


def operations(compiled) -> float:
    """Floating-point operations of a compiled program, as XLA counts them."""
    return compiled.cost_analysis()['flops']


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
        step, step_program = whole_step(session)
        passes, bare_program = bare(session, case.method.encoder, case.passes)
        ratio = operations(step_program) / operations(bare_program)
        time_ratio, took = '', ''
        if not options.flops:
            taken = seconds({'step': step, 'bare': passes}, options.repetitions)
            time_ratio = f'{taken["step"] / taken["bare"]:.2f}'
            took = f'{taken["step"]:.2f} s'
        told = ' + '.join(
            f'{p.views} view{"s" * (p.views > 1)} {"gradient" if p.backward else "forward"}'
            for p in case.passes
        )
        print(f'| {name} | {told} | {ratio:.3f} | {time_ratio} | {took} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
