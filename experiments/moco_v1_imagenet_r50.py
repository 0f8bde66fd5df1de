"""MoCo v1 on ImageNet with a ResNet-50, 200 epochs at batch 256 (arXiv 1911.05722).

    ssljax train experiments/moco_v1_imagenet_r50.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1: 60.6 (the paper's
table 1; 60.8 ± 0.2 over five runs of the authors' released code). Not run here: it needs eight
accelerators for days. 1% of `train` is kept for validation; the published numbers are of training
on all of it.

SGD with learning rate 0.03 at batch 256, a tenth of it at epochs 120 and 160, weight decay 1e-4 on
all parameters; a linear head of 128; 65,536 negatives, momentum 0.999, temperature 0.07; BatchNorm
in 8 groups, as the paper's 8 GPUs had it, shuffled for the keys. Views drop the colour ahead of the
jitter, which every view has, and have no blur. float32 throughout.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.memory import Queue
from ssljax.methods.moco import MoCo
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet
from ssljax.optim import SGD
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 23_508_032
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=MoCo(
            encoder=ResNet(depth=50, stem='imagenet', zero_init=False, norm_groups=8),
            head=ProjectionHead(widths=(128,), last_norm='none', last_bias=True),
            temperature=0.07,
            momentum=Momentum(0.999, 'constant'),
            queue=Queue(65_536),
        ),
        recipe=SimCLRViews(
            size=224,
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
