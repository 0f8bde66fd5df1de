"""DeepCluster on 7,000 images of Fashion-MNIST, on 2 CPU cores.

ssljax train experiments/deepcluster_fashion_mnist.py

No Sobel filters: these images have no colours to hide. An epoch is but 27 steps, in which a fresh
classifier learns little: images are clustered every third one.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.deepcluster import DeepCluster
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.supervised import CropFlip

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=DeepCluster(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            clusters=100,
            components=64,
            every=3.0,
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
            learning_rate=5e-3,
            scaling='none',
            decay='constant',
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            warmup_epochs=1.0,
        ),
        batch=256,
        epochs=50.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
