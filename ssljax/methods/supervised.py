"""Supervised classification: the upper reference of every table."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import linen as nn
from jaxtyping import PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.nets.heads import Classifier
from ssljax.nets.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """Cross-entropy on the labels, of every view of an image.

    Attributes:
        encoder: images to features.
        classes: number of classes; the data set must have as many.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: nn.Module = dataclasses.field(default_factory=ResNet)
    classes: int = 1000
    label_smoothing: float = 0.0

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless the data set has labels of the stated number of classes."""
        if 'image' not in dict(data.views):
            raise ValueError("supervised training needs views named 'image'; use CropFlip")
        if data.classes is None:
            raise ValueError('supervised training needs labels and this data set has none')
        if data.classes != self.classes:
            raise ValueError(
                f'the classifier has {self.classes} classes and the data set {data.classes}; '
                f'use --method.classes {data.classes}'
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f'label_smoothing is {self.label_smoothing}; it must be in [0, 1)')

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and classifier."""
        k_encoder, k_head = jax.random.split(key)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        g = self._head.init(k_head, h)
        params = {'encoder': f['params'], 'head': g['params']}
        return params, {'stats': {'encoder': f.get('batch_stats', {})}}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """Class scores of every view; the labels travel along."""
        n = batch['image'].shape[0]
        x = rearrange(batch['image'], 'n v h w c -> (n v) h w c')
        f = {'params': params['encoder'], 'batch_stats': state['stats']['encoder']}
        h, f = self.encoder.apply(f, x, train=True, mutable=['batch_stats'])
        scores = self._head.apply({'params': params['head']}, h)
        outputs = {'scores': rearrange(scores, '(n v) k -> n v k', n=n), 'label': batch['label']}
        return outputs, {'encoder': f.get('batch_stats', {})}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Mean softmax cross-entropy."""
        scores, label = outputs['scores'], outputs['label'][:, None]
        target = optax.smooth_labels(jax.nn.one_hot(label, self.classes), self.label_smoothing)
        target = jnp.broadcast_to(target, scores.shape)
        loss = jnp.mean(optax.losses.softmax_cross_entropy(scores, target))
        return loss, (state, {'accuracy': jnp.mean(jnp.argmax(scores, axis=-1) == label)})

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """The encoder, without its classifier."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }

    def smoke(self) -> 'Supervised':
        """The same method for the four classes of `made_images`."""
        return dataclasses.replace(self, classes=4)

    @property
    def _head(self) -> Classifier:
        return Classifier(self.classes)
