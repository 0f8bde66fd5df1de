"""MoCo on CIFAR-10 with a ResNet-18, as in the authors' demonstration.

    ssljax train experiments/moco_v2_cifar10.py                                 # asymmetric
    ssljax train experiments/moco_v2_cifar10.py --method.symmetric True         # symmetric
    ssljax train experiments/moco_v2_cifar10.py --method.shuffle False          # no shuffling BN

Needs `cifar10` prepared by TFDS (`ssljax train` says how where it is not). Published for this
recipe, kNN of 200 neighbours after 200 / 400 / 800 epochs: 82.6 / 86.3 / 88.7 asymmetric and 85.3 /
88.5 / 89.7 symmetric, which is 90.7 by a linear probe. Those neighbours are of the head's output,
128 numbers, at temperature 0.1 among all 50,000 images, on which it also trains; this file trains
on 45,000, and `ssljax evaluate` takes the encoder's 512 features, standardised, at 0.07 and a k
chosen on validation. Not run to its end here.

SGD with learning rate 0.06 at batch 512 and cosine decay without warmup, weight decay 5e-4 on all
parameters; 4,096 negatives, momentum 0.99, temperature 0.1; a linear head, as in version 1;
BatchNorm in 8 groups; views without blur.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.memory import Queue
from ssljax.methods.moco import MoCo
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet
from ssljax.optim import SGD
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 11_168_832
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MoCo(
            encoder=ResNet(depth=18, stem='cifar', zero_init=False, norm_groups=8),
            head=ProjectionHead(widths=(128,), last_norm='none', last_bias=True),
            temperature=0.1,
            momentum=Momentum(0.99, 'constant'),
            queue=Queue(4096),
        ),
        recipe=SimCLRViews(
            size=32,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            blur=0.0,
            interpolation='bilinear',
            evaluation_crop=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        data=Data(name='cifar10', train='train[:45000]', validation='train[45000:]', test='test'),
        optimizer=SGD(learning_rate=0.03, scaling='linear', weight_decay=5e-4),
        batch=512,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, k=200),
    )
