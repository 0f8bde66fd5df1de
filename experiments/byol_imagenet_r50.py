"""BYOL on ImageNet with a ResNet-50 at batch 4096, 1,000 epochs (arXiv 2006.07733).

    ssljax train experiments/byol_imagenet_r50.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1: 74.3. Not run here: it
needs a pod. 1% of `train` is kept for validation; the published number is of training on all of it.

LARS (the rate behind the momentum) with learning rate 0.2 x batch / 256 = 3.2, weight decay 1.5e-6,
10 epochs of warmup, cosine decay; the target's momentum rises from 0.996 to 1 along a cosine. The
paper's shorter runs: 300 epochs with learning rate 0.3, weight decay 1e-6 and momentum 0.99; 100
epochs the same with 0.45. Colours are jittered as torchvision does it, not as BYOL's code (see
`BYOLViews`). No BatchNorm of the encoder starts at scale 0. bfloat16 computation in
the encoder; heads, parameters and loss in float32.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.byol import BYOL
from ssljax.momentum import Momentum
from ssljax.nets.resnet import ResNet
from ssljax.optim import LARS
from ssljax.views.byol import BYOLViews

PARAMETERS = 23_508_032
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=BYOL(
            encoder=ResNet(depth=50, stem='imagenet', zero_init=False, dtype='bfloat16'),
            momentum=Momentum(0.996, 'cosine'),
        ),
        recipe=BYOLViews(size=224),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=LARS(
            learning_rate=0.2, scaling='linear', weight_decay=1.5e-6, warmup_epochs=10.0, form='P'
        ),
        batch=4096,
        epochs=1000.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
