"""MoCo v3 on 7,000 images of Fashion-MNIST: the race's network and images.

    ssljax train experiments/moco_v3_fashion_mnist.py

Projector and predictor have the layers of the ResNet's, 256 and 64 wide; temperature 1 and a
momentum that rises from 0.99 to 1 are the paper's. Views: those of the race, solarised in one
view of five on one side, as the paper's are.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.byol import BYOLViews

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MoCoV3(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            projector=ProjectionHead(widths=(256, 64), last_norm='plain'),
            predictor=ProjectionHead(widths=(256, 64), last_norm='none'),
            momentum=Momentum(0.99, 'cosine'),
            temperature=1.0,
        ),
        recipe=BYOLViews(
            size=28,
            scale=(0.3, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.0,
            hue=0.0,
            gray=0.0,
            blur=(0.5, 0.5),
            solarize=(0.0, 0.2),
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
