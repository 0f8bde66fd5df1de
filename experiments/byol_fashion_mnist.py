"""BYOL on 7,000 images of Fashion-MNIST: the race's network and images.

    ssljax train experiments/byol_fashion_mnist.py

Projector and predictor have the layers of the paper's, 256 and 64 wide; the momentum rises from
0.99 to 1, the paper's value for its shorter runs. Views: those of the race, solarised in one
view of five on one side, as the paper's are.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.byol import BYOL
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
        method=BYOL(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            projector=ProjectionHead(
                widths=(256, 64), hidden_norm='affine', hidden_bias=True, last_norm='none'
            ),
            predictor=ProjectionHead(
                widths=(256, 64), hidden_norm='affine', hidden_bias=True, last_norm='none'
            ),
            momentum=Momentum(0.99, 'cosine'),
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
