"""SimCLR: a simple framework for contrastive learning of visual representations.

Two views of each of N images are encoded (h = f(view)), projected (z = g(h)), and each z has to
pick out its partner among the 2N - 1 others. f is kept, g is thrown away. Chen, Kornblith, Norouzi,
Hinton 2020, arXiv 2002.05709 (algorithm 1); v2: arXiv 2006.10029.
"""

import dataclasses

import jax
from einops import rearrange
from flax import linen as nn
from jaxtyping import PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import contrastive
from ssljax.methods import measures
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class SimCLR(Method):
    """SimCLR v1 and v2 (they differ in encoder, head and optimizer, which are all fields).

    Attributes:
        encoder: f, images to features h.
        head: g, features to embeddings z. Paper: 2048-2048-128 (v1), three layers (v2).
        temperature: of the softmax over similarities. Paper: 0.1 on ImageNet, 0.5 on CIFAR-10.
        tile: rows of the similarity matrix held at a time; None holds all of it.
    """

    encoder: nn.Module = dataclasses.field(default_factory=ResNet)
    head: nn.Module = dataclasses.field(default_factory=ProjectionHead)
    temperature: float = 0.1
    tile: int | None = None

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless there are at least two views and a positive temperature."""
        views, _ = dict(data.views).get('image', (0, 0))
        if views < 2:
            raise ValueError(
                f'SimCLR compares views and needs at least 2, the recipe makes {views}; '
                'use a recipe of two views such as SimCLRViews'
            )
        if self.temperature <= 0:
            raise ValueError(f'temperature is {self.temperature}; it must be above 0, such as 0.1')

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and head."""
        k_encoder, k_head = jax.random.split(key)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        g = self.head.init(k_head, h, train=False)
        params = {'encoder': f['params'], 'head': g.get('params', {})}
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        return params, {'stats': stats}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """z = g(f(view)) for every view."""
        stats = state['stats']
        n = batch['image'].shape[0]
        x = rearrange(batch['image'], 'n v h w c -> (n v) h w c')
        f = {'params': params['encoder'], 'batch_stats': stats['encoder']}
        g = {'params': params['head'], 'batch_stats': stats['head']}
        h, f = self.encoder.apply(f, x, train=True, mutable=['batch_stats'])
        z, g = self.head.apply(g, h, train=True, mutable=['batch_stats'])
        outputs = {'z': rearrange(z, '(n v) d -> n v d', n=n)}
        return outputs, {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """NT-Xent, equation 1."""
        z = outputs['z']
        loss = contrastive.nt_xent(z, temperature=self.temperature, tile=self.tile)
        return loss, (state, measures.of_views(z))

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """f, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }
