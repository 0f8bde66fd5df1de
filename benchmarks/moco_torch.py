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
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from provenance import header
from torch import nn
from torch.nn import functional

from ssljax.commands.train import load
from ssljax.core import with_keys
from ssljax.data.graph import tensorflow
from ssljax.data.picture import Picture
from ssljax.data.pipeline import batches
from ssljax.data.registry import open_source
from ssljax.nets.resnet import LAYOUTS
from ssljax.train.session import Session

ROOT = pathlib.Path(__file__).parent.parent
DEVICE = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
MOMENTUM, EPSILON = 0.1, 1e-5


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


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c, d, stride, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(c, d, 3, stride, 1, bias=False)
        self.norm1 = GroupedNorm(d, groups)
        self.conv2 = nn.Conv2d(d, d, 3, 1, 1, bias=False)
        self.norm2 = GroupedNorm(d, groups)
        if stride != 1 or c != d:
            self.shortcut_conv = nn.Conv2d(c, d, 1, stride, bias=False)
            self.shortcut_norm = GroupedNorm(d, groups)

    def forward(self, x):
        """The maps behind the block."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if hasattr(self, 'shortcut_conv'):
            x = self.shortcut_norm(self.shortcut_conv(x))
        return functional.relu(x + y)


class Network(nn.Module):
    """ResNet with the CIFAR stem and a linear head; names as in `ssljax.nets.resnet`."""

    def __init__(self, depth, groups, width):
        super().__init__()
        self.stem_conv = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.stem_norm = GroupedNorm(64, groups)
        blocks, c = {}, 64
        for i, count in enumerate(LAYOUTS[depth][1]):
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks[f'stage{i + 1}_block{j}'] = Block(c, 64 * 2**i, stride, groups)
                c = 64 * 2**i
        self.blocks = nn.ModuleDict(blocks)
        self.linear1 = nn.Linear(c, width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name != 'stem_conv':
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def features(self, x):
        """Pooled, ahead of the head."""
        x = functional.relu(self.stem_norm(self.stem_conv(x)))
        for block in self.blocks.values():
            x = block(x)
        return x.mean((2, 3))

    def forward(self, x):
        """The head's output at unit length."""
        return functional.normalize(self.linear1(self.features(x)), dim=1)

    def load(self, params):
        """Takes the parameters of an encoder and a head of ours."""
        for path, value in traverse_util.flatten_dict(params, sep='.').items():
            name = path.removeprefix('encoder.').removeprefix('head.')
            name = f'blocks.{name}' if name.startswith('stage') else name
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


def knn(bank, labels, queries, wanted, k=200, temperature=0.1):
    """Weighted votes of the nearest, top-1."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit(queries) @ unit(bank).T
    near = np.argpartition(-similarity, k, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(similarity, near, 1) / temperature)
    votes = np.zeros((len(queries), labels.max() + 1))
    np.add.at(votes, (np.arange(len(queries))[:, None], labels[near]), weight)
    return float(np.mean(votes.argmax(1) == wanted))


def images_of(session, split, count):
    """Evaluation images [n, h, w, c], normalised, and labels."""
    tf = tensorflow()
    source = open_source(session.experiment.data.name, split)
    recipe = session.experiment.recipe
    records = source.records(tf.range(count, dtype=tf.int64))
    data = tf.data.Dataset.from_tensor_slices(records['image'])
    data = data.map(lambda image: recipe.evaluation(Picture(image, source.channels)))
    images = np.stack(list(data.as_numpy_iterator()))
    return np.asarray(recipe.standardize(images / np.float32(255))), source.labels()[:count]


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

    module, variables = method.product(state.params, state.method)
    head = {'params': state.params['head']}
    embed = jax.jit(lambda x: module.apply(variables, x, train=False))
    project = jax.jit(lambda h: method.head.apply(head, h, train=False))
    parts = lambda x: np.array_split(x, -(-len(x) // 500))
    theirs.query.eval()

    @torch.no_grad()
    def of_torch(x, layer):
        x = torch.tensor(x).to(DEVICE).permute(0, 3, 1, 2)
        return (theirs.query(x) if layer == 'head' else theirs.query.features(x)).cpu().numpy()

    def embeddings(x, who, layer):
        if who == 'PyTorch':
            return np.concatenate([of_torch(part, layer) for part in parts(x)])
        h = np.concatenate([np.asarray(embed(part)) for part in parts(x)])
        return np.asarray(project(jnp.asarray(h))) if layer == 'head' else h

    bank, labels = images_of(session, experiment.data.train, options.bank)
    queries, wanted = images_of(session, experiment.data.validation, 5000)
    for layer in ('head', 'features'):
        scores = [
            knn(embeddings(bank, who, layer), labels, embeddings(queries, who, layer), wanted)
            for who in ('ours', 'PyTorch')
        ]
        print(f'kNN by {layer}: ours {100 * scores[0]:.1f}, PyTorch {100 * scores[1]:.1f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
