"""Context encoder for features on ImageNet: random regions missing, squared error alone.

    ssljax train experiments/context_encoder_l2_imagenet.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published for the paper's AlexNet (arXiv
1604.07379, table 2, quoted from memory and not re-checked), each time fine-tuned as a whole: 56.5%
mean average precision on VOC07 classification, 44.5% on VOC07 detection, and 29.7% mean
intersection over union on VOC12 segmentation; from random weights, 53.3, 43.4 and 19.8. None is a
linear probe, and no transfer to VOC is part of this project. Not run here: it needs several
accelerators for days. 1% of `train` is kept for validation; the published numbers are of training
on all of it.

There is no AlexNet here: the encoder is a ResNet-50, whose last maps, 7 x 7 at 224 pixels, take the
place of its 6 x 6 at 227. The rest follows the paper: a channel-wise layer and a 1 x 1 convolution
between encoder and decoder, five convolutions that double the side, and squared error inside the
hole, as the adversarial loss did not converge with AlexNet. The hole, of the mean colour, is a
random shape of a fifth to three tenths of the image, as in the released code; the paper cuts out
the shapes of VOC12's objects. From memory and not re-checked: Adam at 1e-4, constant, for 100
thousand steps, and the decoder's widths. Of this file's own are the batch, crops of 224 from 256
pixels, and BatchNorm in the decoder; the paper drops half of the channel-wise layer's units in
training, which this one does not. float32 throughout.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.context_encoder import ContextEncoder
from ssljax.methods.holes import Region
from ssljax.nets.inpainting import Decoder
from ssljax.nets.resnet import ResNet
from ssljax.optim import AdamW
from ssljax.views.supervised import CropFlip

PARAMETERS = 23_508_032
"""Of the encoder."""

MEAN_COLOR = (117, 104, 123)


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=ContextEncoder(
            encoder=ResNet(depth=50, stem='imagenet'),
            decoder=Decoder(widths=(256, 128, 64, 64, 32)),
            # Cells of 17 pixels, as in the code.
            hole=Region(cells=13),
            adversarial_weight=0.0,
            fill=tuple(2 * color / 255 - 1 for color in MEAN_COLOR),
            layer='stage4',
        ),
        recipe=CropFlip(size=224, square=224 / 256, mean=(0.5,), std=(0.5,)),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=AdamW(learning_rate=1e-4, scaling='none', decay='constant', weight_decay=0.0),
        batch=256,
        steps=100_000,
        evaluation=Evaluation(every=1.0, bank=50_000, k=200),
    )
