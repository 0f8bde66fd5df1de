"""MoCo v2 on 7,000 images of Fashion-MNIST: the race's network, images and views.

    ssljax train experiments/moco_v2_fashion_mnist.py

Scaled down with the data: 2,048 negatives (of 7,000 images), an average that follows in a hundred
steps (momentum 0.99), BatchNorm in 8 groups of 32 with shuffling. Temperature and head are those of
version 2, the head as narrow as SimCLR's.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.memory import Queue
from ssljax.methods.moco import MoCo
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 306_560
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
            head=ProjectionHead(
                widths=(256, 64),
                hidden_norm='none',
                hidden_bias=True,
                last_norm='none',
                last_bias=True,
            ),
            temperature=0.2,
            momentum=Momentum(0.99, 'constant'),
            queue=Queue(2048),
        ),
        recipe=SimCLRViews(
            size=28,
            scale=(0.3, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.0,
            hue=0.0,
            gray=0.0,
            sigma=(0.1, 1.0),
            mean=(0.286,),
            std=(0.353,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(
            learning_rate=1e-2,
            scaling='none',
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            warmup_epochs=5.0,
        ),
        batch=256,
        epochs=50.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
