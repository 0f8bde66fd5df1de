"""Instance discrimination on ImageNet with a ResNet-50, 200 epochs (arXiv 1805.01978).

    ssljax train experiments/npid_imagenet_r50.py
    ssljax train experiments/npid_imagenet_r50.py --method.estimate softmax

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published: kNN top-1 46.8 by the authors'
released code, whose neighbours are rows of the bank (`ssljax evaluate` takes the encoder's
features); linear top-1 52.7 for this recipe in VISSL. With 16,384 negatives and cross-entropy
(`--method.estimate softmax --method.negatives 16384`), by CMC's authors: linear 58.5. Not run here:
it needs several accelerators for days. 1% of `train` is kept for validation; the published numbers
are of training on all of it.

SGD with learning rate 0.03 at batch 256, a tenth of it at epochs 120 and 160, weight decay 1e-4 on
all parameters; 4,096 noise rows, temperature 0.07, bank momentum 0.5. The bank has a row of 128
numbers for every image, 650 MB; of the noise rows, those of 32 images are held at a time.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.npid import NPID
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet
from ssljax.optim import SGD
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 23_508_032
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=NPID(
            encoder=ResNet(depth=50, stem='imagenet', zero_init=False),
            head=ProjectionHead(widths=(128,), last_norm='none', last_bias=True),
            temperature=0.07,
            negatives=4096,
            tile=32,
        ),
        recipe=SimCLRViews(
            size=224,
            count=1,
            scale=(0.2, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.4,
            jitter=1.0,
            gray=0.2,
            gray_first=True,
            blur=0.0,
            interpolation='bilinear',
        ),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=SGD(
            learning_rate=0.03,
            scaling='linear',
            decay='steps',
            milestones=(120.0, 160.0),
            weight_decay=1e-4,
        ),
        batch=256,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
