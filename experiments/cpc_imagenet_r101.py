"""CPC on ImageNet: a ResNet-101 v2 up to its third stack, on 7 x 7 patches (arXiv 1807.03748).

    ssljax train experiments/cpc_imagenet_r101.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1 48.7, top-5 73.6 (the
paper's tables 3 and 4, quoted from memory and not re-checked). Not run here: it needs a pod. 1% of
`train` is kept for validation; the published numbers are of training on all of it.

Views are 256 of 300 pixels, two in three of them without colour; patches of 64 every 32, each a
random 60 x 60 of its pixels; predictions of the rows 2 to 5 further down, as the next row shares
pixels. Adam, rate 2e-4, 32 GPUs of 16 images each, whose patches are candidates for one another
there, from memory too; warmup, cosine and 200 epochs are ours, the paper does not say how long. The
share of grey views, which keeps colour from giving neighbours away, is that of other tasks on
patches (arXiv 1901.09005): were all of them grey, as in the paper, the encoder would be evaluated
on colours that it has never seen. bfloat16 computation in encoder and context network; parameters
and loss in float32. Representation: the mean over the 49 patches' 1,024 features; the paper's
linear classifier is on these.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.cpc import CPC
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.preact_resnet import PreActResNet
from ssljax.optim import AdamW
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 27_494_016
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=CPC(
            encoder=PatchEncoder(
                encoder=PreActResNet(
                    widths=(64, 128, 256), blocks=(3, 4, 23), norm='none', dtype='bfloat16'
                ),
                patch=64,
                stride=32,
            ),
            context=PixelCNN(blocks=5, hidden=256, dtype='bfloat16'),
            steps=4,
            first_step=2,
            subcrop=4,
            group=16,
        ),
        recipe=SimCLRViews(
            size=256,
            count=1,
            square=256 / 300,
            jitter=0.0,
            gray=0.66,
            blur=0.0,
        ),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=AdamW(learning_rate=2e-4, scaling='none', weight_decay=0.0, warmup_epochs=5.0),
        batch=512,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
