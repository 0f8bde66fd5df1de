"""SimCLR's whole step against the bare passes of its encoder, and against PyTorch's.

    python benchmarks/step.py                    # the quickstart's encoder and batch
    python benchmarks/step.py resnet18           # ResNet-18 (CIFAR stem), 32 px, batch 256
    python benchmarks/step.py resnet18 --torch   # and PyTorch's bare passes of the same network

The step adds to the bare passes: augmentation on the device, projection head, NT-Xent, optimizer,
skipping of non-finite updates and metrics. Target: at most 1.10 times the bare passes.
"""

import argparse
import dataclasses
import pathlib
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from provenance import header

from ssljax.commands.train import load
from ssljax.core import Signature
from ssljax.plan.measure import made_batch
from ssljax.train.session import Session

ROOT = pathlib.Path(__file__).parent.parent


def session_of(case: str, batch: int) -> Session:
    if case == 'quickstart':
        experiment = load(str(ROOT / 'experiments' / 'simclr_fashion_mnist.py'))
        channels, examples = 1, 7_000
    else:
        experiment = load(str(ROOT / 'experiments' / 'simclr_cifar10.py'))
        channels, examples = 3, 45_000
    experiment = dataclasses.replace(experiment, batch=batch)
    views = tuple(experiment.recipe.views().items())
    return Session.without_data(experiment, Signature(views, channels, 10, examples))


def whole_step(session: Session):
    batch = made_batch(session)
    held = [session.fresh()]

    def run():
        held[0], metrics = session.step(held[0], batch)
        return metrics['loss']

    return run


def bare_passes(session: Session):
    views, size = dict(session.data.views)['image']
    shape = (session.run.batch * views, size, size, session.data.channels)
    images = jax.random.normal(jax.random.key(0), shape)
    encoder = session.experiment.method.encoder
    variables = jax.jit(lambda k: encoder.init(k, images[:2], train=False))(jax.random.key(1))
    stats = variables['batch_stats']

    @jax.jit
    def run(params):
        def loss(params):
            h, new = encoder.apply(
                {'params': params, 'batch_stats': stats},
                images,
                train=True,
                mutable=['batch_stats'],
            )
            return jnp.mean(h**2), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    return lambda: run(variables['params'])


def torch_passes(images: int):
    """ResNet-18 with the CIFAR stem in PyTorch: the same network, written for this comparison.

    On a GPU if that is where JAX computes, with the same TF32 products of float32 that JAX takes.
    """
    import torch
    from torch_resnet import TorchResNet

    net = TorchResNet(18)
    assert sum(p.numel() for p in net.parameters()) == 11_168_832
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    x = torch.randn(images, 3, 32, 32, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    net = net.to(device, memory_format=torch.channels_last).train()

    def run():
        net.zero_grad(set_to_none=True)
        (net(x) ** 2).mean().backward()
        if device == 'cuda':
            torch.cuda.synchronize()

    return run


def measured(variants: dict, repetitions: int) -> tuple[dict[str, float], ...]:
    """Medians of seconds, page faults and CPU seconds of each; they take turns."""
    times, faults, cpu = ({name: [] for name in variants} for _ in range(3))
    used = lambda: resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(repetitions + 1):
        for name, run in variants.items():
            before = used()
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
            after = used()
            faults[name].append(after.ru_minflt - before.ru_minflt)
            cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return tuple(
        {name: statistics.median(taken[1:]) for name, taken in table.items()}
        for table in (times, faults, cpu)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('case', nargs='?', choices=('quickstart', 'resnet18'), default='quickstart')
    parser.add_argument('--torch', action='store_true', help='PyTorch too (resnet18 only)')
    parser.add_argument('--repetitions', type=int, default=None, help='timed runs of each')
    parser.add_argument('--batch', type=int, default=256, help='images a step')
    options = parser.parse_args()
    if options.torch and options.case != 'resnet18':
        parser.error('--torch compares resnet18 only')
    session = session_of(options.case, options.batch)
    variants = {'step': whole_step(session), 'bare': bare_passes(session)}
    if options.torch:
        variants['torch'] = torch_passes(2 * session.run.batch)
    repetitions = options.repetitions or (20 if options.case == 'quickstart' else 3)
    print(header())
    print(f'{options.case}: batch {session.run.batch}, median of {repetitions} interleaved runs')
    taken, faults, cpu = measured(variants, repetitions)
    for name, value in taken.items():
        print(
            f'{name}: {1e3 * value:.4g} ms, {session.run.batch / value:.0f} pairs/s, '
            f'{faults[name]:,.0f} page faults, {cpu[name]:.2f} CPU seconds'
        )
    ratio = taken['step'] / taken['bare']
    print(f'step / bare: {ratio:.2f} (target at most 1.10: {"met" if ratio <= 1.1 else "MISSED"})')
    print(f'times the step was traced: {session.step.traces}')
    if options.torch:
        print(f'bare / torch: {taken["bare"] / taken["torch"]:.2f}')
        print(f'step / torch: {taken["step"] / taken["torch"]:.2f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
