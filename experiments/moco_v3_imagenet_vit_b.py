"""MoCo v3 on ImageNet with a ViT-B/16 at batch 4096, 300 epochs (arXiv 2104.02057).

    ssljax train experiments/moco_v3_imagenet_vit_b.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published top-1: 76.7 by a linear probe, 83.2
fine-tuned. Not run here: it needs a pod. 1% of `train` is kept for validation; the published
numbers are of training on all of it.

AdamW with learning rate 1.5e-4 x batch / 256 = 2.4e-3, weight decay 0.1 on all parameters, 40
epochs of warmup, cosine decay; temperature 0.2; the momentum of the key encoder rises from 0.99 to
1 along a cosine. Positions are fixed sines and cosines, and the projection of the patches stays as
it was drawn: the paper found that spikes of its gradient are what makes ViTs unstable (section
4.2). That takes two: `frozen_patch`, so that it has no gradient and none shows in the norm, and
`frozen`, as weight decay would still shrink it. Projector of three layers, predictor of two, each
ending in a BatchNorm without parameters. bfloat16 computation in the encoder; heads, parameters and
loss in float32.
"""

import math

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.vit import vit
from ssljax.optim import AdamW
from ssljax.views.byol import BYOLViews

PARAMETERS = 85_647_360
"""Of the encoder; 85,798,656 with the fixed positions, which are computed here."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MoCoV3(
            encoder=vit(
                'B',
                16,
                position='sincos',
                initial='xavier_apart',
                frozen_patch=True,
                dtype='bfloat16',
            ),
            projector=ProjectionHead(widths=(4096, 4096, 256), last_norm='plain'),
            predictor=ProjectionHead(widths=(4096, 256), last_norm='plain'),
            momentum=Momentum(0.99, 'cosine'),
            temperature=0.2,
        ),
        recipe=BYOLViews(size=224, scale=(0.08, 1.0), interpolation='bilinear'),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=AdamW(
            learning_rate=1.5e-4,
            scaling='linear',
            weight_decay=0.1,
            exclude=(),
            warmup_epochs=40.0,
            frozen=(('^encoder/patch/', math.inf),),
        ),
        batch=4096,
        epochs=300.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
