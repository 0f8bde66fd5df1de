"""MoCo's CIFAR-10 recipe here and in PyTorch, from the same weights and on the same views.

    python benchmarks/moco_torch.py                              # the recipe: for a GPU
    python benchmarks/moco_torch.py --depth 10 --size 16 --batch 256 --steps 300 --every 20
    python benchmarks/moco_torch.py ... --initial torch          # PyTorch's half as it begins there

The second form is for two CPU cores, most of an hour. PyTorch's half is written for this
comparison after algorithm 1 of arXiv 1911.05722: queries and keys in 8 groups of BatchNorm, keys
shuffled, SGD with coupled weight decay. Both see every batch's views, bit for bit; each shuffles
and fills its first queue by numbers of its own. Printed are the losses side by side, then kNN (200
neighbours, temperature 0.1) on validation images, by the head's output and by the features ahead of
it. Needs torch.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import sys

import jax
import numpy as np
import torch
from flax import traverse_util
from provenance import header
from torch import nn
from torch.nn import functional
from torch_resnet import TorchResNet

from ssljax.commands.train import load
from ssljax.core import with_keys
from ssljax.data.pipeline import batches, in_order
from ssljax.data.registry import open_source
from ssljax.evaluate.embed import jitted
from ssljax.evaluate.features import extract
from ssljax.evaluate.knn import knn
from ssljax.train.session import Session

ROOT = pathlib.Path(__file__).parent.parent
DEVICE = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
MOMENTUM, EPSILON = 0.1, 1e-5
K, TEMPERATURE = 200, 0.1


class GroupedNorm(nn.Module):
    """BatchNorm of consecutive parts of the batch."""

    def __init__(self, width, groups):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer('mean', torch.zeros(width))
        self.register_buffer('var', torch.ones(width))
        self.groups = groups

    def forward(self, x):
        """In training by each part's own statistics, else by the running ones."""
        if not self.training:
            return functional.batch_norm(
                x, self.mean, self.var, self.scale, self.bias, False, 0.0, EPSILON
            )
        parts, means, variances = [], [], []
        for part in x.chunk(self.groups):
            mean, var = torch.zeros_like(self.mean), torch.zeros_like(self.var)
            part = functional.batch_norm(part, mean, var, self.scale, self.bias, True, 1.0, EPSILON)
            parts.append(part)
            means.append(mean)
            variances.append(var)
        with torch.no_grad():
            self.mean.lerp_(torch.stack(means).mean(0), MOMENTUM)
            self.var.lerp_(torch.stack(variances).mean(0), MOMENTUM)
        return torch.cat(parts)


class Network(nn.Module):
    """ResNet and linear head, as PyTorch's own ResNets start."""

    def __init__(self, depth, groups, width):
        super().__init__()
        self.encoder = TorchResNet(depth, functools.partial(GroupedNorm, groups=groups))
        self.linear1 = nn.Linear(self.encoder.width, width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith('stem_conv'):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x):
        """The head's output at unit length."""
        return functional.normalize(self.linear1(self.encoder(x)), dim=1)

    def load(self, params):
        """Takes the parameters of an encoder and a head of ours."""
        for path, value in traverse_util.flatten_dict(params, sep='.').items():
            name = path.removeprefix('head.').replace('encoder.stage', 'encoder.blocks.stage')
            value = torch.tensor(np.asarray(value))
            if name.endswith('.kernel'):  # HWIO, or [in, out]
                name = name.replace('.kernel', '.weight')
                value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
            self.get_parameter(name).data = value.contiguous()


class TorchMoCo:
    """Both networks, the queue and the optimizer."""

    def __init__(self, method, network, rate, weight_decay, steps):
        self.method, self.steps, self.rate = method, steps, rate
        self.query, self.key = network().to(DEVICE), network().to(DEVICE)
        self.follow(0.0)
        for p in self.key.parameters():
            p.requires_grad = False
        self.queue = functional.normalize(
            torch.randn(method.queue.length, 128, device=DEVICE), dim=1
        )
        self.at = 0
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay
        )

    @torch.no_grad()
    def follow(self, m):
        """The keys' network becomes m itself + (1 - m) the queries'."""
        for k, q in zip(self.key.parameters(), self.query.parameters(), strict=True):
            k.mul_(m).add_(q, alpha=1 - m)

    def step(self, number, views):
        """Algorithm 1 on one batch; its loss."""
        one, two = (torch.tensor(v).to(DEVICE).permute(0, 3, 1, 2) for v in views)
        for group in self.optimizer.param_groups:
            group['lr'] = self.rate * (1 + math.cos(math.pi * number / self.steps)) / 2
        q = self.query(one)
        with torch.no_grad():
            self.follow(self.method.momentum.start)
            order = torch.randperm(len(two), device=DEVICE)
            k = self.key(two[order])[torch.argsort(order)]
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1)
        logits = logits / self.method.temperature
        loss = functional.cross_entropy(
            logits, torch.zeros(len(q), dtype=torch.long, device=DEVICE)
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        places = (self.at + torch.arange(len(k), device=DEVICE)) % len(self.queue)
        self.queue[places], self.at = k, (self.at + len(k)) % len(self.queue)
        return float(loss.detach())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--depth', type=int, choices=(10, 18), default=18)
    parser.add_argument('--size', type=int, default=32, help='pixels of a view')
    parser.add_argument('--batch', type=int, default=512)
    parser.add_argument('--steps', type=int, default=None, help='default: those of the recipe')
    parser.add_argument('--every', type=int, default=100, help='steps that a line is the mean of')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='ours')
    parser.add_argument('--initial', choices=('ours', 'torch'), default='ours')
    parser.add_argument('--bank', type=int, default=10_000, help='images of the kNN bank')
    options = parser.parse_args()
    experiment = load(str(ROOT / 'experiments' / 'moco_v2_cifar10.py'))
    encoder = experiment.method.encoder.clone(depth=options.depth, dtype=options.dtype)
    experiment = dataclasses.replace(
        experiment,
        method=dataclasses.replace(experiment.method, encoder=encoder),
        recipe=dataclasses.replace(experiment.recipe, size=options.size),
        batch=options.batch,
        **({'epochs': None, 'steps': options.steps} if options.steps else {}),
    )
    session = Session.open(experiment, devices=1)
    method, recipe, run = experiment.method, experiment.recipe, session.run
    state = session.fresh()
    rate = float(experiment.optimizer.schedule(run)(0))

    def network():
        torch.manual_seed(0)
        net = Network(options.depth, method.norm_groups, 128).train()
        if options.initial == 'ours':
            net.load(jax.device_get(state.params))
        return net

    theirs = TorchMoCo(method, network, rate, experiment.optimizer.weight_decay, run.steps)

    @jax.jit
    def views(batch, key, step):
        key = jax.random.split(jax.random.fold_in(key, step), 4)[0]
        return recipe.on_device(with_keys(batch, key))['image']

    print(header(), f'\n{options}, rate {rate}\n', sep='')
    print('| step | ours | PyTorch |\n| ---: | ---: | ---: |')
    losses = []
    stream = batches(session.source, recipe, session.stream(), stop=run.steps)
    for number, batch in enumerate(stream):
        seen = np.asarray(views(batch, state.key, number))
        told = theirs.step(number, [seen[:, v] for v in range(2)])
        state, metrics = session.step(state, session.placement.put(batch))
        losses.append((float(metrics['loss']), told))
        if (number + 1) % options.every == 0:
            ours, others = np.mean(losses[-options.every :], axis=0)
            print(f'| {number + 1} | {ours:.3f} | {others:.3f} |', flush=True)

    of_features = jitted(method, recipe, state.params, state.method)
    head = {'params': state.params['head']}
    project = jax.jit(lambda h: method.head.apply(head, h, train=False))
    theirs.query.eval()

    @torch.no_grad()
    def of_torch(network, images):
        x = torch.tensor(np.asarray(recipe.normalize(images))).to(DEVICE).permute(0, 3, 1, 2)
        return network(x).cpu().numpy()

    def score(embed):
        def features(split):
            source = open_source(experiment.data.name, split)
            return extract(embed, in_order(source, recipe, 500))

        bank, queries = features(f'train[:{options.bank}]'), features(experiment.data.validation)
        return 100 * knn(bank, queries, ks=(K,), temperature=TEMPERATURE)[K].top1

    for layer, ours, net in (
        ('head', lambda images: project(of_features(images)), theirs.query),
        ('features', of_features, theirs.query.encoder),
    ):
        other = score(functools.partial(of_torch, net))
        print(f'kNN by {layer}: ours {score(ours):.1f}, PyTorch {other:.1f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
