"""MoCo v1 on CIFAR-10 with a small network, to train on 2 CPU cores.

    ssljax train experiments/moco_v1_cifar10.py

Needs `cifar10` prepared by TFDS (`ssljax train` says how where it is not). Top-1 on its test images
by 10,000 labels, from a run of this file on two cores (2026-11-27; at the 1,100 images/s that it
reached, a quarter of an hour): 56.4% linear, 55.2% kNN; random weights 42.3 and 33.8
(benchmarks/moco_v1_cifar10).

Version 1 whole, scaled down with network and data: 4,096 negatives (of 45,000 images), an average
that follows in a hundred steps (momentum 0.99), BatchNorm in 8 groups of 32 with shuffling, views
of 32 pixels, the rate a tenth after 60% and 80% of the epochs. Head, temperature, rate and what the
views do to colours are the paper's. The network is that of `moco_v2_fashion_mnist.py`.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.memory import Queue
from ssljax.methods.moco import MoCo
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 311_168
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MoCo(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
                norm_groups=8,
            ),
            head=ProjectionHead(widths=(128,), last_norm='none', last_bias=True),
            temperature=0.07,
            momentum=Momentum(0.99, 'constant'),
            queue=Queue(4096),
        ),
        recipe=SimCLRViews(
            size=32,
            scale=(0.2, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.4,
            jitter=1.0,
            gray=0.2,
            gray_first=True,
            blur=0.0,
            interpolation='bilinear',
            evaluation_crop=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        data=Data(name='cifar10', train='train[:45000]', validation='train[45000:]', test='test'),
        optimizer=SGD(
            learning_rate=0.03,
            scaling='linear',
            decay='steps',
            milestones=(12.0, 16.0),
            weight_decay=1e-4,
        ),
        batch=256,
        epochs=20.0,
        evaluation=Evaluation(every=1.0, k=200),
        checkpoint=Checkpointing(every=175),
    )
