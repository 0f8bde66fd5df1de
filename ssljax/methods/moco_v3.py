"""MoCo v3: momentum contrast without a queue, for residual networks and Vision Transformers.

The queries, predicted from one view, have to pick out their keys, made of the other view by a
momentum encoder, among the keys of the whole batch. Chen, Xie, He 2021, arXiv 2104.02057.
"""

import dataclasses
import functools

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.core import Now, Run, Signature, Tree
from ssljax.losses import contrastive
from ssljax.methods import measures
from ssljax.methods.branches import TwoBranches
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet

Projector = functools.partial(ProjectionHead, (4096, 256), last_norm='plain')
"""4096, BatchNorm, ReLU, 256, BatchNorm without parameters; no biases."""

Predictor = functools.partial(ProjectionHead, (4096, 256), last_norm='none')
"""The same without the last BatchNorm."""


@dataclasses.dataclass(frozen=True)
class MoCoV3(TwoBranches):
    """MoCo v3, symmetric, with the heads of its ResNet-50.

    As in algorithm 1, the momentum encoder is averaged at the end of a step. The published code
    does it at the start of the next: the same but for m, which is read one step later there.

    Attributes:
        encoder: f, images to features.
        projector: g, features to keys, and to what the queries are predicted from.
        predictor: q, on the online branch only.
        momentum: of the momentum encoder. Paper: cosine to 1 from 0.99, or from 0.996 for a
            ResNet-50 over 1000 epochs.
        temperature: of the softmax over similarities. Paper: 1.0 for ResNet-50, 0.2 for ViT.
        tile: rows of the similarity matrix held at a time; None holds all of it.
    """

    encoder: nn.Module = dataclasses.field(default_factory=ResNet)
    projector: nn.Module = dataclasses.field(default_factory=Projector)
    predictor: nn.Module = dataclasses.field(default_factory=Predictor)
    momentum: Momentum = dataclasses.field(
        default_factory=functools.partial(Momentum, 0.99, 'cosine')
    )
    temperature: float = 1.0
    tile: int | None = None

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless there are two views, negatives and a positive temperature."""
        super().check(data, run)
        if run.batch < 2:
            raise ValueError(
                f'MoCo v3 takes its negatives from the batch and the batch is {run.batch}; '
                'use 2 or more'
            )
        if self.temperature <= 0:
            raise ValueError(f'temperature is {self.temperature}; it must be above 0, such as 1.0')

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """ctr(q1, k2) + ctr(q2, k1): algorithm 1."""
        q, k = outputs['prediction'], jax.lax.stop_gradient(outputs['target'])
        loss = self._ctr(q[:, 0], k[:, 1]) + self._ctr(q[:, 1], k[:, 0])
        return loss, (state, {**measures.of_views(q), 'momentum': self.momentum.at(now)})

    def _ctr(self, q: Float[Array, 'n d'], k: Float[Array, 'n d']) -> Float[Array, '']:
        """InfoNCE among the keys of the batch, times 2 tau: so its gradient's size forgets tau."""
        loss = contrastive.info_nce(q, k, temperature=self.temperature, tile=self.tile)
        return 2 * self.temperature * loss
