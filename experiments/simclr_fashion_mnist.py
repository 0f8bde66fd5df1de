"""SimCLR on 7,000 images of Fashion-MNIST: the quickstart, under 5 minutes on 2 CPU cores.

    ssljax train experiments/simclr_fashion_mnist.py
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 0
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=SimCLR(
            encoder=SmallResNet(stem_patch=4, widths=(64, 128), blocks=(1, 1), grid=2),
            head=ProjectionHead(widths=(256, 64)),
            temperature=0.2,
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
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(learning_rate=2e-3, scaling='none', weight_decay=1e-4, warmup_epochs=2.0),
        batch=256,
        epochs=20.0,
        evaluation=Evaluation(every=5.0),
        checkpoint=Checkpointing(every=100),
    )
