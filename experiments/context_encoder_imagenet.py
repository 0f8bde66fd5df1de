"""Context encoder on ImageNet at 128 pixels, the middle missing, with a discriminator.

    ssljax train experiments/context_encoder_imagenet.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. The sizes and rates of the released code for
inpainting (arXiv 1604.07379): L2 0.999 and adversarial 0.001, rim of 4 pixels, Adam with beta1 0.5
and rates 2e-3 and 2e-4, batch 64. It gives no accuracy for these weights: the published features
are trained with L2 alone, `context_encoder_l2_imagenet.py`. 1% of `train` is kept for validation.
Not run here.

The code resizes a picture's shorter side to 350 pixels and cuts 128. It holds all biases of
convolutions at 0, where these have none, and moves the discriminator first and then the generator,
where these move at once. The length is the paper's 100 thousand steps (from memory); the code is
set to 500 passes over data of any size.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.context_encoder import ContextEncoder
from ssljax.methods.holes import Centre
from ssljax.nets.inpainting import ContextNet, Decoder, Discriminator
from ssljax.optim import AdamW, ByPath, Part
from ssljax.views.supervised import CropFlip

PARAMETERS = 35_599_040
"""Of the encoder."""

MEAN_COLOR = (117, 104, 123)


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=ContextEncoder(
            encoder=ContextNet(widths=(64, 64, 128, 256, 512), bottleneck=4000),
            decoder=Decoder(widths=(512, 256, 128, 64)),
            discriminator=Discriminator(widths=(64, 128, 256, 512)),
            hole=Centre(rim=4, rim_weight=10.0),
            adversarial_weight=0.001,
            fill=tuple(2 * color / 255 - 1 for color in MEAN_COLOR),
        ),
        recipe=CropFlip(size=128, square=128 / 350, mean=(0.5,), std=(0.5,)),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=ByPath(default=adam(2e-3), parts=(Part('^discriminator/', adam(2e-4)),)),
        batch=64,
        steps=100_000,
        evaluation=Evaluation(every=1.0, bank=50_000, k=200),
    )


def adam(learning_rate: float) -> AdamW:
    """DCGAN's: no weight decay, a short first moment, a constant rate."""
    return AdamW(
        learning_rate=learning_rate,
        scaling='none',
        decay='constant',
        betas=(0.5, 0.999),
        weight_decay=0.0,
    )
