"""Supervised training on 7,000 images of Fashion-MNIST: what labels give the common encoder.

    ssljax train experiments/supervised_fashion_mnist.py

Encoder, images, batch and epochs are those of `simclr_common_fashion_mnist.py`. Views are milder,
as the labels already say what does not matter, and the learning rate is lower.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.supervised import Supervised
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.supervised import CropFlip

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=Supervised(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            classes=10,
        ),
        recipe=CropFlip(
            size=28,
            scale=(0.6, 1.0),
            mean=(0.286,),
            std=(0.353,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(learning_rate=2e-3, scaling='none', weight_decay=1e-4, warmup_epochs=5.0),
        batch=256,
        epochs=50.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
