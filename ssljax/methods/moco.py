"""MoCo: momentum contrast for unsupervised visual representation learning, versions 1 and 2.

A query q = g(f(view 1)) has to find its key k, the embedding of view 2 of the same image by a
slowly moving average of f and g, among the keys of the last batches, which wait in a queue. f is
kept. He, Fan, Wu, Xie, Girshick 2019, arXiv 1911.05722 (v1, algorithm 1); Chen, Fan, Girshick, He
2020, arXiv 2003.04297 (v2: a head of two layers, blur, temperature 0.2, cosine decay).

Views: `SimCLRViews` with `scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4`, for v2
`hue=0.1` and for v1 `hue=0.4, jitter=1.0, gray_first=True, blur=0.0`. The authors flip last,
`SimCLRViews` right behind the crop: the same views, since a flip commutes with all that lies
between.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import contrastive
from ssljax.memory import Queue
from ssljax.methods import measures
from ssljax.momentum import Momentum, average
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class MoCo(Method):
    """MoCo v1 and v2: they differ in head, temperature, views and optimizer.

    Attributes:
        encoder: f. With `norm_groups` above 1 its BatchNorm sees a part of the batch at a time, as
            on so many devices (paper: 8); BatchNorm over the whole batch lets it cheat.
        head: g, without BatchNorm. Paper: widths 128 (v1), 2048-128 (v2), with biases.
        temperature: of the softmax over similarities. Paper: 0.07 (v1), 0.2 (v2).
        momentum: of the average that makes the keys. Paper: 0.999, constant. Where it is scheduled,
            the average used at step k was updated with the momentum at step k - 1.
        queue: the negatives.
        shuffle: whether keys are normalised in other groups than the queries, drawn anew each step
            (shuffling BN), so that batch statistics do not tell which key belongs to a query. Of no
            effect with `norm_groups` 1.
        symmetric: whether each view is a query once, and the two losses are added (as in the
            authors' CIFAR-10 demonstration); else only the first view is.
        tile: rows of the matrix of similarities held at a time; None holds all of it.
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: nn.Module = dataclasses.field(default_factory=lambda: ResNet(norm_groups=8))
    head: nn.Module = dataclasses.field(
        default_factory=lambda: ProjectionHead(
            widths=(2048, 128),
            hidden_norm='none',
            hidden_bias=True,
            last_norm='none',
            last_bias=True,
        )
    )
    temperature: float = 0.2
    momentum: Momentum = dataclasses.field(default_factory=lambda: Momentum(0.999, 'constant'))
    queue: Queue = dataclasses.field(default_factory=Queue)
    shuffle: bool = True
    symmetric: bool = False
    tile: int | None = None

    @property
    def roles(self) -> tuple[tuple[int, int], ...]:
        """The view that is the query and the view that is the key, for every pass."""
        return ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)

    @property
    def norm_groups(self) -> int:
        """Parts of the batch that the encoder normalises each by itself."""
        return getattr(self.encoder, 'norm_groups', 1)

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError if views, temperature, queue or groups do not fit."""
        views, _ = dict(data.views).get('image', (0, 0))
        if views != 2:
            raise ValueError(
                f'MoCo takes a query and a key view of each image, the recipe makes {views}; '
                'use a recipe of two views such as SimCLRViews'
            )
        if self.temperature <= 0:
            raise ValueError(f'temperature is {self.temperature}; it must be above 0, such as 0.2')
        if run.batch % self.batch_unit():
            raise ValueError(
                f'a global batch of {run.batch} cannot be split evenly into the {self.norm_groups} '
                f'norm_groups of the encoder; use a multiple of {self.norm_groups}'
            )
        self.queue.check(run.batch, len(self.roles))

    def batch_unit(self, microbatches: int = 1) -> int:
        """An image in every group that the encoder normalises of a micro-batch."""
        return self.norm_groups * microbatches

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and head, a target that equals them, and a queue of random directions."""
        k_encoder, k_head, k_queue = jax.random.split(key, 3)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        z, g = self.head.init_with_output(k_head, h, train=False)
        params = {'encoder': f['params'], 'head': g['params']}
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        # Copies: what is donated to the step must not be two names of one array.
        target, target_stats = jax.tree.map(jnp.copy, (params, stats))
        return params, {
            'stats': {**stats, 'target': target_stats},
            'target': target,
            'queue': self.queue.init(k_queue, z.shape[-1]),
        }

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """Queries of one view, keys of the other; each network by statistics of its own."""
        own, theirs = state['stats'], state['stats']['target']
        image, queries, keys = batch['image'], [], []
        for number, (query, key_view) in enumerate(self.roles):
            q, own = self.embed(params, own, image[:, query])
            shuffling = jax.random.fold_in(key, number)
            k, theirs = self.embed_keys(state['target'], theirs, image[:, key_view], shuffling)
            queries.append(q)
            keys.append(k)
        outputs = {'query': jnp.stack(queries, axis=1), 'key': jnp.stack(keys, axis=1)}
        return outputs, {**own, 'target': theirs}

    def embed(
        self, params: Tree, stats: Tree, image: Float[Array, 'n h w c']
    ) -> tuple[Float[Array, 'n d'], Tree]:
        """g(f(image)) at unit length, and the new running statistics."""
        f = {'params': params['encoder'], 'batch_stats': stats['encoder']}
        g = {'params': params['head'], 'batch_stats': stats['head']}
        h, f = self.encoder.apply(f, image, train=True, mutable=['batch_stats'])
        z, g = self.head.apply(g, h, train=True, mutable=['batch_stats'])
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        return contrastive.unit(z), stats

    def embed_keys(
        self, target: Tree, stats: Tree, image: Float[Array, 'n h w c'], key: PRNGKeyArray
    ) -> tuple[Float[Array, 'n d'], Tree]:
        """`embed` by the target network, as constants, in groups drawn from `key`."""
        if self.shuffle and self.norm_groups > 1:
            order, back = permutation(key, image.shape[0])
            k, stats = self.embed(target, stats, shared_out(image[order]))
            k = shared_out(k[back])
        else:
            k, stats = self.embed(target, stats, image)
        return jax.lax.stop_gradient(k), stats

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """InfoNCE against the queue as it was (equation 1), then the keys join the queue."""
        q, k = outputs['query'], outputs['key']
        negatives = self.queue.read(state['queue'])
        loss = sum(
            contrastive.info_nce(
                q[:, i], k[:, i], negatives, temperature=self.temperature, tile=self.tile
            )
            for i in range(len(self.roles))
        )
        queue = self.queue.push(state['queue'], rearrange(k, 'n p d -> (n p) d'))
        pair = jnp.stack([q[:, 0], k[:, 0]], axis=1)
        return loss, ({**state, 'queue': queue}, measures.of_views(pair))

    def after(self, params: Tree, state: Tree, now: Now) -> tuple[Tree, Tree]:
        """The target moves towards the new parameters, equation 2.

        Algorithm 1 does so ahead of the next step's keys, with these very parameters: the same
        sequence. Batch statistics are not averaged: the target has its own.
        """
        target = average(state['target'], params, self.momentum.at(now))
        return params, {**state, 'target': target}

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """f of the queries, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }


def shared_out(x: Float[Array, 'n *rest']) -> Float[Array, 'n *rest']:
    """Asks for the examples to be split over all devices; the identity where no mesh is in sight.

    What a permutation of a split batch gives is whole on every device otherwise, and each would
    compute all of the keys.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Auto not in mesh.axis_types or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def permutation(key: PRNGKeyArray, n: int) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
    """A random order of n examples, and the one that undoes it."""
    order = jax.random.permutation(key, n)
    return order, jnp.argsort(order)
