"""SimCLR on 7,000 images of Fashion-MNIST: the quickstart, under 5 minutes on 2 CPU cores.

ssljax train experiments/simclr_fashion_mnist.py

Network and views were chosen on validation images and on part of the training images
(benchmarks/README.md): garments fill the picture, so that large crops do best, and differ in
brightness within a class, so that strong changes of it do.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 208_960
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=SimCLR(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(32, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            head=ProjectionHead(widths=(256, 64), last_norm='none'),
            temperature=0.5,
        ),
        recipe=SimCLRViews(
            size=28,
            scale=(0.5, 1.0),
            brightness=0.8,
            contrast=0.8,
            jitter=1.0,
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
            warmup_epochs=4.0,
        ),
        batch=256,
        epochs=40.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
