"""MAE on 7,000 images of Fashion-MNIST: a ViT of four blocks on patches of 4 pixels.

    ssljax train experiments/mae_fashion_mnist.py

12 of 49 patches are seen. Images, batch and data are those of `simclr_common_fashion_mnist.py`; the
encoder is a transformer of about its number of parameters, pooled by the mean over the patches.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.mae import MAE
from ssljax.nets.mae_decoder import MAEDecoder
from ssljax.nets.vit import ViT
from ssljax.optim import AdamW
from ssljax.views.supervised import CropFlip

PARAMETERS = 301_056
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MAE(
            encoder=ViT(
                width=96,
                depth=4,
                heads=4,
                patch=4,
                mlp_ratio=2.0,
                position='sincos',
                size=28,
                pool='mean',
                initial='xavier',
            ),
            decoder=MAEDecoder(width=64, depth=2, heads=4, mlp_ratio=2.0),
            masked=0.75,
            normalize=True,
        ),
        recipe=CropFlip(
            size=28,
            scale=(0.5, 1.0),
            mean=(0.286,),
            std=(0.353,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(
            learning_rate=2e-3,
            scaling='none',
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup_epochs=5.0,
        ),
        batch=256,
        epochs=50.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
