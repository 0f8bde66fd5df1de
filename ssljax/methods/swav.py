"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Views are compared with prototypes instead of with each other. Of the scores of a whole batch,
Sinkhorn's algorithm makes codes, which use all prototypes evenly, and each view has to predict the
codes of the other views of its image. f is kept. Caron, Misra, Mairal, Goyal, Bojanowski, Joulin
2020, arXiv 2006.09882 (algorithm 1 of its appendix).

Views: two large ones under `image`, as of `SimCLRViews`, and any number of smaller ones under
`local`, as of `MultiCrop`: the local ones predict, and no code is made of them.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import clustering, contrastive
from ssljax.memory import Queue
from ssljax.methods import measures
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet

NAMES = ('image', 'local')
"""The arrays of views, in the order of `outputs['z']`."""


@dataclasses.dataclass(frozen=True)
class SwAV(Method):
    """SwAV, with or without local views, with or without a queue.

    `params['prototypes']` are unit rows, [k, d]. They stand still at first where the optimizer
    freezes them: the authors do so for one epoch.

    Attributes:
        encoder: f, images to features.
        head: g, to embeddings, taken at unit length. Paper: 2048-128, with biases.
        prototypes: their number, k. Paper: 3,000 for ImageNet's 1,000 classes.
        temperature: of the softmax over a view's scores. Paper: 0.1.
        epsilon: of Sinkhorn's algorithm. Paper: 0.05.
        iterations: of Sinkhorn's algorithm. Paper: 3.
        coded: how many views, the first of `image`, codes are made of. Paper: 2.
        queue: embeddings of earlier batches, one queue for each coded view, that codes are made
            together with; None for none. For batches that are small beside k. Paper: 3,840 at
            batch 256.
        queue_from: epoch from which the queues are used. Paper: 15. They take up embeddings from
            the first step (the authors': from this epoch), and are not used before they are full.
    """

    uses: ClassVar[tuple[str, ...]] = NAMES

    encoder: nn.Module = dataclasses.field(default_factory=ResNet)
    head: nn.Module = dataclasses.field(
        default_factory=lambda: ProjectionHead(
            widths=(2048, 128), hidden_bias=True, last_norm='none', last_bias=True
        )
    )
    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    coded: int = 2
    queue: Queue | None = None
    queue_from: float = 15.0

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError if views, prototypes, codes or queue do not fit."""
        views, _ = dict(data.views).get('image', (0, 0))
        if not (self.coded >= 1 and max(2, self.coded) <= views):
            raise ValueError(
                f'SwAV makes codes of {self.coded} view(s) and predicts them from others; the '
                f"recipe makes {views} under 'image'; use a recipe of two views such as "
                'SimCLRViews or MultiCrop'
            )
        if self.prototypes < 2 or self.iterations < 1:
            raise ValueError(
                f'there are {self.prototypes} prototypes and {self.iterations} iterations of '
                "Sinkhorn's algorithm; use 2 prototypes or more, and 1 iteration or more"
            )
        if min(self.temperature, self.epsilon) <= 0:
            raise ValueError(
                f'temperature is {self.temperature} and epsilon {self.epsilon}; both must be above '
                '0, such as 0.1 and 0.05'
            )
        if self.queue is not None:
            self.queue.check(run.batch)
        if self.queue_from < 0:
            raise ValueError(f'queue_from is epoch {self.queue_from}; it must be 0 or later')

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and head, prototypes in random directions, queues of such."""
        k_encoder, k_head, k_prototypes, k_queue = jax.random.split(key, 4)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        z, g = self.head.init_with_output(k_head, h, train=False)
        rows = jax.random.normal(k_prototypes, (self.prototypes, z.shape[-1]), jnp.float32)
        params = {'encoder': f['params'], 'head': g['params'], 'prototypes': unit_rows(rows)}
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        state = {'stats': stats}
        if self.queue is not None:
            state['queue'] = {
                f'view{i}': self.queue.init(jax.random.fold_in(k_queue, i), z.shape[-1])
                for i in range(self.coded)
            }
        return params, state

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """`z`, the unit embedding of every view, local ones last; f sees one size after the other.

        BatchNorm of f normalises the views of one size together, that of g all views.
        """
        n = batch['image'].shape[0]
        stats, features = state['stats'], []
        encoder_stats = stats['encoder']
        for name in NAMES:
            if name in batch:
                x = rearrange(batch[name], 'n v h w c -> (n v) h w c')
                f = {'params': params['encoder'], 'batch_stats': encoder_stats}
                h, f = self.encoder.apply(f, x, train=True, mutable=['batch_stats'])
                encoder_stats = f.get('batch_stats', {})
                features.append(rearrange(h, '(n v) d -> n v d', n=n))
        h = rearrange(jnp.concatenate(features, axis=1), 'n v d -> (n v) d')
        g = {'params': params['head'], 'batch_stats': stats['head']}
        z, g = self.head.apply(g, h, train=True, mutable=['batch_stats'])
        z = rearrange(contrastive.unit(z), '(n v) d -> n v d', n=n)
        return {'z': z}, {'encoder': encoder_stats, 'head': g.get('batch_stats', {})}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Swapped prediction, equation 2; then the embeddings join the queues."""
        z, prototypes = outputs['z'], params['prototypes']
        scores = score(z, prototypes)
        fixed = jax.lax.stop_gradient((z[:, : self.coded], scores[:, : self.coded], prototypes))
        state, codes = self.assign(*fixed, state, now)
        loss = clustering.swapped_prediction(scores, codes, temperature=self.temperature)
        return loss, (state, {**measures.of_views(z[:, :2]), **of_codes(codes)})

    def assign(
        self,
        z: Float[Array, 'n c d'],
        scores: Float[Array, 'n c k'],
        prototypes: Float[Array, 'k d'],
        state: Tree,
        now: Now,
    ) -> tuple[Tree, Float[Array, 'n c k']]:
        """The codes of the coded views, by the queues as they were; and the state with them new."""

        def alone(scores: Float[Array, 'm k']) -> Float[Array, 'm k']:
            return clustering.sinkhorn(scores, epsilon=self.epsilon, iterations=self.iterations)

        if self.queue is None:
            return state, jnp.stack([alone(scores[:, i]) for i in range(self.coded)], axis=1)
        n, codes, queues = len(z), [], {}
        for i in range(self.coded):
            queue = state['queue'][f'view{i}']

            def together(own: Float[Array, 'n k'], queue: Tree = queue) -> Float[Array, 'n k']:
                # What waits in the queue is scored by the prototypes of today.
                earlier = score(self.queue.read(queue), prototypes)
                return alone(jnp.concatenate([own, earlier]))[:n]

            codes.append(jax.lax.cond(self.queue_is_on(now), together, alone, scores[:, i]))
            queues[f'view{i}'] = self.queue.push(queue, z[:, i])
        return {**state, 'queue': queues}, jnp.stack(codes, axis=1)

    def queue_is_on(self, now: Now) -> Bool[Array, '']:
        """Whether codes are made together with the queue: from an epoch on, once it is full."""
        first = round(self.queue_from * now.run.steps_per_epoch)
        return now.step >= max(first, -(-self.queue.length // now.run.batch))

    def after(self, params: Tree, state: Tree, now: Now) -> tuple[Tree, Tree]:
        """Prototypes back to unit length.

        The authors do so ahead of the next forward pass, with these very parameters: the same
        sequence, and no checkpoint holds others.
        """
        return {**params, 'prototypes': unit_rows(params['prototypes'])}, state

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """f, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }


def score(z: Float[Array, '*n d'], prototypes: Float[Array, 'k d']) -> Float[Array, '*n k']:
    """The cosines of unit vectors with unit prototypes."""
    # Divided by an epsilon of 0.05, a coarser product would be off by tenths.
    return jnp.matmul(z, prototypes.T, precision=jax.lax.Precision.HIGHEST)


def unit_rows(rows: Float[Array, 'k d']) -> Float[Array, 'k d']:
    """Rows at length 1; those that have it, to rounding, keep their bits, as frozen ones should."""
    squares = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
    settled = jnp.abs(squares - 1) < 32 * jnp.finfo(rows.dtype).eps
    return jnp.where(settled, rows, contrastive.unit(rows))


def of_codes(codes: Float[Array, 'n c k']) -> dict[str, Float[Array, '']]:
    """How decided codes are, and how many prototypes they choose.

    Returns:
        `code_entropy`, the mean entropy of a code: 0 where each is one prototype, log k where all
        are even; and `prototypes_used`, the share of prototypes that some code has most of.
    """
    most = jax.nn.one_hot(jnp.argmax(codes, axis=-1), codes.shape[-1], dtype=codes.dtype)
    used = jnp.max(most, axis=tuple(range(codes.ndim - 1)))
    return {
        'code_entropy': -jnp.mean(jnp.sum(jax.scipy.special.xlogy(codes, codes), axis=-1)),
        'prototypes_used': jnp.mean(used),
    }
