"""MoCo v3 on ImageNet with a ResNet-50 at batch 4096, 1,000 epochs (arXiv 2104.02057).

    ssljax train experiments/moco_v3_imagenet_r50.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1: 74.6 (72.8 after 300
epochs, 68.9 after 100). Not run here: it needs a pod. 1% of `train` is kept for validation; the
published numbers are of training on all of it.

LARS (the rate behind the momentum) with learning rate 0.3 x batch / 256 = 4.8, weight decay 1.5e-6,
10 epochs of warmup, cosine decay; temperature 1; crops of at least a fifth of the picture; the
momentum of the key encoder rises from 0.996 to 1 along a cosine. The shorter runs: 300 epochs with
weight decay 1e-6 and momentum 0.99; 100 epochs the same with learning rate 0.6. bfloat16
computation in the encoder; heads, parameters and loss in float32.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.momentum import Momentum
from ssljax.nets.resnet import ResNet
from ssljax.optim import LARS
from ssljax.views.byol import BYOLViews

PARAMETERS = 23_508_032
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MoCoV3(
            encoder=ResNet(depth=50, stem='imagenet', dtype='bfloat16'),
            momentum=Momentum(0.996, 'cosine'),
            temperature=1.0,
        ),
        recipe=BYOLViews(size=224, scale=(0.2, 1.0), interpolation='bilinear'),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=LARS(
            learning_rate=0.3, scaling='linear', weight_decay=1.5e-6, warmup_epochs=10.0, form='P'
        ),
        batch=4096,
        epochs=1000.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
