"""Rotation prediction on ImageNet with a ResNet-50, 105 epochs: VISSL's recipe.

    ssljax train experiments/rotation_imagenet_r50.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1: 48.2 for this recipe
(VISSL's model zoo, quoted from memory and not re-checked); RotNet itself (arXiv 1803.07728) is an
AlexNet, 38.7 at best, and the best known a RevNet-50 of four times the width, 55.4 (arXiv
1901.09005). Not run here: it needs a pod. 1% of `train` is kept for validation; the published
numbers are of training on all of it.

SGD with momentum 0.9 and rate 0.1 x batch / 256, a tenth of it at epochs 30, 60, 90 and 100; weight
decay 1e-4 on all but BatchNorm. VISSL turns every image once, at random; here, as in RotNet,
each is seen in all four rotations, so that a batch of 256 is 1,024 images. bfloat16 computation in
the encoder; classifier, parameters and loss in float32.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.rotation import Rotation
from ssljax.nets.resnet import ResNet
from ssljax.optim import SGD
from ssljax.views.supervised import CropFlip

PARAMETERS = 23_508_032
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=Rotation(
            encoder=ResNet(depth=50, stem='imagenet', zero_init=False, dtype='bfloat16')
        ),
        recipe=CropFlip(size=224, interpolation='bilinear'),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=SGD(
            learning_rate=0.1,
            scaling='linear',
            decay='steps',
            milestones=(30.0, 60.0, 90.0, 100.0),
            weight_decay=1e-4,
            exclude=('norm[^/]*/(scale|bias)$',),
        ),
        batch=256,
        epochs=105.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
