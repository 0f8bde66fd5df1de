"""MAE: masked autoencoders are scalable vision learners.

Most patches of an image are taken away at random. The encoder sees the few that are left, and a
small decoder, which sees what the encoder made of them and where patches are missing, predicts the
pixels of the missing ones. The encoder is kept. He, Chen, Xie, Li, Dollar, Girshick 2021, arXiv
2111.06377 (section 3).
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int, Key, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import reconstruction
from ssljax.nets.mae_decoder import MAEDecoder
from ssljax.nets.patches import grid_of, patchify
from ssljax.nets.vit import ViT, vit

MASK = 0x3A5C
"""Folded into an example's key to draw its mask."""

Encoder = functools.partial(vit, 'B', position='sincos', initial='xavier')
"""ViT-B/16 with fixed positions."""


@dataclasses.dataclass(frozen=True)
class MAE(Method):
    """MAE on one view of each image.

    Attributes:
        encoder: f, sees the patches that are left.
        decoder: g, predicts those that were taken away.
        masked: share of the patches that is taken away; int((1 - masked) t) of t patches are left,
            in every image. Paper: 0.75, which leaves 49 of 196.
        normalize: whether the target is each patch at mean 0 and variance 1, or its pixels as they
            are. Paper: better with (table 1d).
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: ViT = dataclasses.field(default_factory=Encoder)
    decoder: MAEDecoder = dataclasses.field(default_factory=MAEDecoder)
    masked: float = 0.75
    normalize: bool = True

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless there is one view, of patches both to keep and to take away."""
        views, size = dict(data.views).get('image', (0, 0))
        if views != 1:
            raise ValueError(
                f'MAE reconstructs one view of an image, the recipe makes {views}; use a recipe of '
                'one view such as CropFlip'
            )
        rows, columns = grid_of(size, size, self.encoder.patch)
        if not 0 < self.masked < 1 or not 0 < self.kept(rows * columns) < rows * columns:
            raise ValueError(
                f'masked is {self.masked}, which leaves {self.kept(rows * columns)} of '
                f'{rows * columns} patches; it must leave at least one and take away at least one'
            )

    def kept(self, patches: int) -> int:
        """How many of so many patches the encoder sees."""
        return int(patches * (1 - self.masked) + 1e-6)  # 10 of 100 at 0.9, too

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and decoder."""
        k_encoder, k_decoder = jax.random.split(key)
        x = batch['image'][:, 0]
        seen, f = self.encoder.init_with_output(k_encoder, x, train=False, method='features')
        patches = patchify(x, self.encoder.patch)
        rank = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
        g = self.decoder.init(k_decoder, seen, rank, self._grid(x), patches.shape[2])
        return {'encoder': f['params'], 'decoder': g['params']}, {'stats': {}}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """g(f(patches left)) for all patches, their pixels, and which of them were taken away."""
        x, keys = batch['image'][:, 0], batch['key']
        target = patchify(x, self.encoder.patch)
        order = orders(keys, target.shape[1])
        rank = jnp.argsort(order, axis=1)  # the inverse permutation
        k = self.kept(target.shape[1])
        f, g = {'params': params['encoder']}, {'params': params['decoder']}
        seen = self.encoder.apply(f, x, train=True, keep=order[:, :k], keys=keys, method='features')
        prediction = self.decoder.apply(g, seen, rank, self._grid(x), target.shape[2])
        return {'prediction': prediction, 'target': target, 'mask': rank >= k}, {}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Mean squared error of the patches taken away."""
        loss = reconstruction.masked_mse(
            outputs['prediction'], outputs['target'], outputs['mask'], normalize=self.normalize
        )
        return loss, (state, {})

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """The encoder, which from now on sees all patches."""
        return self.encoder, {'params': params['encoder']}

    def _grid(self, x: Array) -> tuple[int, int]:
        return grid_of(x.shape[1], x.shape[2], self.encoder.patch)


def orders(keys: Key[Array, ' n'], patches: int) -> Int[Array, 'n t']:
    """For each example a random order of its patches, drawn from the example's own key."""
    # float32 whatever the default: the same masks in every precision.
    noise = lambda key: jax.random.uniform(jax.random.fold_in(key, MASK), (patches,), jnp.float32)
    return jnp.argsort(jax.vmap(noise)(keys), axis=1)
