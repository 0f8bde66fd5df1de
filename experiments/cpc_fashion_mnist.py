"""CPC on 7,000 images of Fashion-MNIST, for some minutes on 2 CPU cores.

    ssljax train experiments/cpc_fashion_mnist.py

A grid of 6 x 6 patches of 8 pixels, every 4; the rows 2 to 4 further down are predicted. The
encoder has LayerNorm, as CPC v2's, and no BatchNorm, which would give the answer away. It sees
8 x 8 pixels at a time, 36 times an image: a smaller network than the race's.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.cpc import CPC
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.preact_resnet import PreActResNet
from ssljax.optim import AdamW
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 28_656
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=CPC(
            encoder=PatchEncoder(
                encoder=PreActResNet(
                    widths=(16, 32), blocks=(1, 1), stem='cifar', norm='layer', zero_init=False
                ),
                patch=8,
                stride=4,
            ),
            context=PixelCNN(blocks=2, hidden=64),
            steps=3,
            first_step=2,
            subcrop=1,
        ),
        recipe=SimCLRViews(
            size=28,
            count=1,
            scale=(0.5, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.0,
            hue=0.0,
            gray=0.0,
            blur=0.0,
            mean=(0.286,),
            std=(0.353,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(
            learning_rate=2e-3,
            scaling='none',
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            warmup_epochs=2.0,
        ),
        batch=64,
        epochs=10.0,
        evaluation=Evaluation(every=5.0),
        checkpoint=Checkpointing(every=270),
    )
