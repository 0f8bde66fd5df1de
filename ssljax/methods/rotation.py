"""Rotation prediction (RotNet): which way up is this image?

Every image is shown in all four rotations by quarter turns, and a linear classifier on the
encoder's features tells which is which: to know, the encoder has to know what things look like.
Gidaris, Singh, Komodakis 2018, arXiv 1803.07728.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses.classification import cross_entropy
from ssljax.nets.heads import Classifier
from ssljax.nets.resnet import ResNet

TURNS = 4
"""Rotations by multiples of 90 degrees: the only ones without interpolation or empty corners, which
would give the answer away."""


@dataclasses.dataclass(frozen=True)
class Rotation(Method):
    """Cross-entropy of the four rotations of every image, all in one batch (4N images for N).

    Views must not be flipped upside down, which makes 180 degrees ambiguous; left-right is fine.
    Data that look the same from every side (satellites' images, textures) teach nothing. The last
    layers are the task's own: middle ones (`ssljax evaluate --layer`) often serve better.

    Attributes:
        encoder: images to features.
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: nn.Module = dataclasses.field(default_factory=ResNet)

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless there is one view of an image, of two pixels or more."""
        views, size = dict(data.views).get('image', (0, 0))
        if views != 1:
            raise ValueError(
                f'rotation prediction makes its four images of 1 view, the recipe makes {views}; '
                'use a recipe of one view such as CropFlip'
            )
        if size < 2:
            raise ValueError(f'a view of {size} pixel looks alike from all sides; use 2 or more')

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and classifier."""
        k_encoder, k_head = jax.random.split(key)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        g = Classifier(TURNS).init(k_head, h)
        params = {'encoder': f['params'], 'head': g['params']}
        return params, {'stats': {'encoder': f.get('batch_stats', {})}}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """Scores of the four classes for each of the four rotations: `scores` [n, 4, 4]."""
        x = rearrange(rotations(batch['image'][:, 0]), 'n r h w c -> (n r) h w c')
        f = {'params': params['encoder'], 'batch_stats': state['stats']['encoder']}
        h, f = self.encoder.apply(f, x, train=True, mutable=['batch_stats'])
        scores = Classifier(TURNS).apply({'params': params['head']}, h)
        outputs = {'scores': rearrange(scores, '(n r) k -> n r k', r=TURNS)}
        return outputs, {'encoder': f.get('batch_stats', {})}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Mean softmax cross-entropy, equations 2 and 3: rotation r is class r; ln 4 by chance."""
        scores = outputs['scores']
        turn = jnp.broadcast_to(jnp.arange(TURNS), scores.shape[:-1])
        loss = jnp.mean(cross_entropy(scores, turn))
        return loss, (state, {'accuracy': jnp.mean(jnp.argmax(scores, axis=-1) == turn)})

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """The encoder, without its classifier."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }


def rotations(x: Float[Array, 'n h h c']) -> Float[Array, 'n 4 h h c']:
    """Square images turned by 0, 90, 180 and 270 degrees counterclockwise."""
    return jnp.stack([jnp.rot90(x, turn, axes=(1, 2)) for turn in range(TURNS)], axis=1)
