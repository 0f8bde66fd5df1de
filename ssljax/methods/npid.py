"""NPID, instance discrimination: every image is a class of its own.

The embedding v = g(f(view)), at unit length, has to find its own image's row in a memory bank that
holds a vector for every image of the data set, and that row then moves towards v. f is kept. Wu,
Xiong, Yu, Lin 2018, arXiv 1805.01978.

Views: one of each image. ImageNet: `SimCLRViews` with `count=1, scale=(0.2, 1.0), brightness=0.4,
contrast=0.4, saturation=0.4, hue=0.4, jitter=1.0, blur=0.0`; CIFAR-10: the same with `flip=0.0`.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import nce
from ssljax.losses.contrastive import unit
from ssljax.memory import Bank
from ssljax.methods import measures
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet

NOISE = 0x4E504944
"""Folded into an example's key for its noise rows: other numbers than its views are drawn from."""

NUMBERS_OF_A_ROW = 8
"""A row of the bank costs an image about as much as so many numbers of rows drawn: with 4,096 of
width 128 for each of 32 images, loss and gradient took 40 ms and 66 MiB on a core, and by the whole
bank 37 ms and 40 MiB at 65,536 rows, 48 ms and 49 MiB at 80,000, 90 ms and 92 MiB at 150,000."""


@dataclasses.dataclass(frozen=True)
class NPID(Method):
    """Instance discrimination with a memory bank.

    Attributes:
        encoder: f, images to features.
        head: g, features to v. Paper: one linear layer of width 128.
        temperature: of the softmax. Paper: 0.07 on ImageNet, 0.1 on CIFAR-10 (authors' code).
        bank: the rows; their momentum is 0.5 in the authors' code.
        negatives: rows drawn for each image, uniformly and with replacement, its own row not
            excepted. Paper: 4,096 on ImageNet. None: no estimate, but the softmax over the whole
            bank, as on CIFAR-10.
        estimate: what is made of these rows: `nce`, the paper's noise-contrastive estimation with a
            constant Z, which is set by the first batch; or `softmax`, cross-entropy among them
            (CMC's authors found it better: 57.1 against 56.5 with 4,096 rows).
        proximal: weight of |v - M|^2, M being the image's own row before the step. Paper: section
            3.3; 0 in the authors' code.
        tile: images whose rows, or rows of the bank's matrix of similarities, are held at a time.
            None holds all: the matrix too, which is the same loss, where it takes no longer, with
            up to an eighth as many rows in the bank as the rows drawn for an image have numbers.
    """

    encoder: nn.Module = dataclasses.field(default_factory=ResNet)
    head: nn.Module = dataclasses.field(
        default_factory=lambda: ProjectionHead(widths=(128,), last_norm='none', last_bias=True)
    )
    temperature: float = 0.07
    bank: Bank = dataclasses.field(default_factory=Bank)
    negatives: int | None = 4096
    estimate: Literal['nce', 'softmax'] = 'nce'
    proximal: float = 0.0
    tile: int | None = None

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError if views or hyper-parameters do not fit."""
        views, _ = dict(data.views).get('image', (0, 0))
        if views != 1:
            raise ValueError(
                f'NPID compares 1 view of an image with its row in the bank, the recipe makes '
                f'{views}; use CropFlip, or SimCLRViews with count=1'
            )
        if self.temperature <= 0:
            raise ValueError(f'temperature is {self.temperature}; it must be above 0, such as 0.07')
        if self.negatives is not None and self.negatives < 1:
            raise ValueError(
                f'negatives is {self.negatives}; use 1 or more, such as 4096, or None for the '
                'softmax over the whole bank'
            )
        if self.proximal < 0:
            raise ValueError(f'proximal is {self.proximal}; a weight is 0 or more')

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and head, a bank of random directions, and no Z yet."""
        k_encoder, k_head, k_bank = jax.random.split(key, 3)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        z, g = self.head.init_with_output(k_head, h, train=False)
        params = {'encoder': f['params'], 'head': g.get('params', {})}
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        bank = self.bank.init(k_bank, run.examples, z.shape[-1])
        z = {'log': jnp.zeros((), jnp.float32), 'known': jnp.zeros((), bool)}
        return params, {'stats': stats, 'bank': bank, 'z': z}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """v, the image's index, and the indices of its noise rows."""
        stats = state['stats']
        f = {'params': params['encoder'], 'batch_stats': stats['encoder']}
        g = {'params': params['head'], 'batch_stats': stats['head']}
        h, f = self.encoder.apply(f, batch['image'][:, 0], train=True, mutable=['batch_stats'])
        v, g = self.head.apply(g, h, train=True, mutable=['batch_stats'])
        outputs = {'v': unit(v), 'index': batch['index']}
        if self.negatives is not None:
            outputs['noise'] = noise_rows(batch['key'], self.negatives, len(state['bank']))
        return outputs, {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """-log P(i|v) against the bank as it was; then the rows of this batch move."""
        v, index = outputs['v'], outputs['index']
        bank = self.bank.read(state['bank'])
        if self.negatives is None:
            loss = nce.instance_softmax(
                v, bank, index, temperature=self.temperature, tile=self.tile
            )
            z = state['z']
        else:
            loss, z = self.estimated(v, bank, index, outputs['noise'], state['z'])
        own = bank[index]
        loss = loss + self.proximal * jnp.mean(jnp.sum(jnp.square(v - own), axis=1))
        state = {**state, 'bank': self.bank.update(state['bank'], index, v), 'z': z}
        return loss, (state, measures.of_views(jnp.stack([v, own], axis=1)))

    def estimated(
        self,
        v: Float[Array, 'n d'],
        bank: Float[Array, 'm d'],
        index: Int[Array, 'n'],
        noise: Int[Array, 'n k'],
        z: Tree,
    ) -> tuple[Float[Array, ''], Tree]:
        """The loss from noise rows, and Z as it is known from now on."""
        of_rows = functools.partial(nce.similarities, v, bank, temperature=self.temperature)
        positive, times = of_rows(index[:, None])[:, 0], None
        # The whole bank, where that is less work than the rows that an example has drawn.
        if self.tile is None and NUMBERS_OF_A_ROW * len(bank) <= noise.shape[1] * v.shape[1]:
            times = nce.counts(noise, len(bank))
            noise = nce.similarities_to_all(v, bank, temperature=self.temperature)
        else:
            noise = of_rows(noise, tile=self.tile)
        if self.estimate == 'softmax':
            return nce.sampled_softmax(positive, noise, times), z
        estimate = nce.log_partition(positive, noise, len(bank), times)
        log_z = jax.lax.stop_gradient(jnp.where(z['known'], z['log'], estimate))
        known = {'log': log_z.astype(z['log'].dtype), 'known': jnp.ones_like(z['known'])}
        return nce.nce(positive, noise, log_z, rows=len(bank), times=times), known

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """f, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }

    def smoke(self) -> 'NPID':
        """The same method with few negatives."""
        negatives = None if self.negatives is None else min(self.negatives, 16)
        return dataclasses.replace(self, negatives=negatives)


def noise_rows(keys: Key[Array, 'n'], count: int, rows: int) -> Int[Array, 'n k']:
    """`count` numbers below `rows` for each example, uniform and from its own key."""

    def of_example(key: PRNGKeyArray) -> Int[Array, 'k']:
        return jax.random.randint(jax.random.fold_in(key, NOISE), (count,), 0, rows, jnp.int32)

    return jax.vmap(of_example)(keys)
