"""Instance discrimination on 7,000 images of Fashion-MNIST: the race's network and images.

    ssljax train experiments/npid_fashion_mnist.py

As in the authors' run on CIFAR-10 there is no estimate: the softmax runs over the whole bank, one
row for each of the 7,000 images, at temperature 0.1. Views: those of the race, one an image.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.npid import NPID
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=NPID(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            head=ProjectionHead(widths=(128,), last_norm='none', last_bias=True),
            temperature=0.1,
            negatives=None,
        ),
        recipe=SimCLRViews(
            size=28,
            count=1,
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
            learning_rate=3e-3,
            scaling='none',
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            warmup_epochs=2.0,
        ),
        batch=256,
        epochs=50.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
