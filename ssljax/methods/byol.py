"""BYOL: bootstrap your own latent.

An online network predicts, from one view of an image, what a slowly moving average of itself makes
of another view. There are no negatives; what keeps it from collapsing is the predictor together
with a target that gets no gradient. Grill et al. 2020, arXiv 2006.07733.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import linen as nn

from ssljax.core import Now, Tree
from ssljax.losses import regression
from ssljax.methods import measures
from ssljax.methods.branches import TwoBranches
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet

Head = functools.partial(
    ProjectionHead, (4096, 256), hidden_norm='affine', hidden_bias=True, last_norm='none'
)
"""Projector and predictor of the paper: 4096 with bias, BatchNorm, ReLU, then 256 without bias."""


@dataclasses.dataclass(frozen=True)
class BYOL(TwoBranches):
    """BYOL, in its symmetric form: each view is predicted from the other.

    A collapse does not show in the loss, which is 0 then; it shows in `std`.

    Attributes:
        encoder: f, images to features. The paper starts no BatchNorm at scale 0.
        projector: g, features to projections. Paper: 4096-256.
        predictor: q, projections to predictions. Paper: 4096-256.
        momentum: of the target. Paper: cosine to 1 from 0.996 (1000 epochs), 0.99 (100 and 300).
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: nn.Module = dataclasses.field(
        default_factory=functools.partial(ResNet, zero_init=False)
    )
    projector: nn.Module = dataclasses.field(default_factory=Head)
    predictor: nn.Module = dataclasses.field(default_factory=Head)
    momentum: Momentum = dataclasses.field(
        default_factory=functools.partial(Momentum, 0.996, 'cosine')
    )

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """2 - 2 cos(p1, t2) + 2 - 2 cos(p2, t1), the mean over the batch: equation 2, both ways."""
        p, t = outputs['prediction'], jax.lax.stop_gradient(outputs['target'])
        there = regression.negative_cosine(p[:, 0], t[:, 1])
        back = regression.negative_cosine(p[:, 1], t[:, 0])
        metrics = {**measures.of_views(p), 'momentum': self.momentum.at(now)}
        return there + back, (state, metrics)
