"""MoCo v2 on ImageNet with a ResNet-50, 200 epochs at batch 256 (arXiv 2003.04297).

    ssljax train experiments/moco_v2_imagenet_r50.py                   # 200 epochs
    ssljax train experiments/moco_v2_imagenet_r50.py --epochs 800      # 800 epochs

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1: 67.5 after 200 epochs,
71.1 after 800. Not run here: it needs eight accelerators for days. 1% of `train` is kept for
validation; the published numbers are of training on all of it.

SGD with learning rate 0.03 at batch 256 and cosine decay without warmup, weight decay 1e-4 on all
parameters; 65,536 negatives, momentum 0.999, temperature 0.2; BatchNorm in 8 groups, as the paper's
8 GPUs had it, shuffled for the keys. float32 throughout.
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
            head=ProjectionHead(
                widths=(2048, 128),
                hidden_norm='none',
                hidden_bias=True,
                last_norm='none',
                last_bias=True,
            ),
            temperature=0.2,
            momentum=Momentum(0.999, 'constant'),
            queue=Queue(65_536),
        ),
        recipe=SimCLRViews(
            size=224,
            scale=(0.2, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            jitter=0.8,
            gray=0.2,
            blur=0.5,
            interpolation='bilinear',
        ),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=SGD(learning_rate=0.03, scaling='linear', weight_decay=1e-4),
        batch=256,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
