"""BYOL on CIFAR-10 with a ResNet-18 at batch 256, 1,000 epochs: solo-learn's recipe.

    ssljax train experiments/byol_cifar10.py

Needs `cifar10` prepared by TFDS (`ssljax train` says how where it is not). Published by solo-learn
(arXiv 2108.01775) for its recipe: 92.58% linear top-1. Not run to its end here: it is 1,000 epochs
of a network for an accelerator.

What differs: solo-learn's LARS has |g| + decay * |w| where this one has |g + decay * w|, and
clips the adapted rate so that the schedule only bounds it. This one, of the same trust coefficient
0.02, lets the rate follow the schedule, whose warmup starts at 0 (there at 3e-5). The last layers
of solo-learn's heads have a bias, and its first convolution pads by 2, to maps of 34 x 34. And
5,000 training images are held out for validation.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.byol import BYOL
from ssljax.momentum import Momentum
from ssljax.nets.resnet import ResNet
from ssljax.optim import LARS
from ssljax.views.byol import BYOLViews

PARAMETERS = 11_168_832
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=BYOL(
            encoder=ResNet(depth=18, stem='cifar', zero_init=False),
            momentum=Momentum(0.99, 'cosine'),
        ),
        recipe=BYOLViews(
            size=32,
            blur=(0.0, 0.0),
            solarize=(0.0, 0.2),
            evaluation_crop=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        data=Data(name='cifar10', train='train[:45000]', validation='train[45000:]', test='test'),
        optimizer=LARS(
            learning_rate=1.0,
            scaling='linear',
            weight_decay=1e-5,
            warmup_epochs=10.0,
            form='P',
            trust=0.02,
        ),
        batch=256,
        epochs=1000.0,
        evaluation=Evaluation(every=10.0, k=200),
    )
