"""Rotation prediction on 7,000 images of Fashion-MNIST, for a few minutes on 2 CPU cores.

ssljax train experiments/rotation_fashion_mnist.py

The encoder is that of `simclr_common_fashion_mnist.py`. A batch of 128 is 512 images: all four
rotations.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.rotation import Rotation
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.supervised import CropFlip

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=Rotation(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            )
        ),
        recipe=CropFlip(
            size=28,
            scale=(0.3, 1.0),
            mean=(0.286,),
            std=(0.353,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(
            learning_rate=3e-3,
            scaling='none',
            betas=(0.9, 0.99),
            weight_decay=1e-2,
            warmup_epochs=2.0,
        ),
        batch=128,
        epochs=20.0,
        evaluation=Evaluation(every=5.0),
        checkpoint=Checkpointing(every=270),
    )
