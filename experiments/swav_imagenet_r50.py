"""SwAV on ImageNet with a ResNet-50 and multi-crop, 800 epochs at batch 4096 (arXiv 2006.09882).

    ssljax train experiments/swav_imagenet_r50.py                     # 800 epochs
    ssljax train experiments/swav_imagenet_r50.py --epochs 200

Needs `imagenet2012` prepared by TFDS as ArrayRecord. Published linear top-1: 75.3 after 800 epochs,
73.9 after 200, 72.1 after 100 (74.3 at batch 256 after 400, with a queue). Not run here: it needs a
pod. 1% of `train` is kept for validation; the published numbers are of training on all of it.

Two views of 224 and six of 96 pixels; 3,000 prototypes, frozen in the first epoch; LARS of all
parameters, biases and BatchNorm included, with learning rate 4.8 = 0.3 x batch / 256, weight decay
1e-6, 10 epochs of warmup and cosine decay to 0.0048. Different from the authors': the warmup starts
at 0 where theirs starts at 0.3, and BatchNorm sees the whole batch where theirs sees that of 8
GPUs. bfloat16 computation in the encoder; parameters, head and loss in float32.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.swav import SwAV
from ssljax.nets.resnet import ResNet
from ssljax.optim import LARS
from ssljax.views.multicrop import MultiCrop

PARAMETERS = 23_508_032
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=SwAV(encoder=ResNet(depth=50, stem='imagenet', zero_init=False, dtype='bfloat16')),
        recipe=MultiCrop(
            size=224,
            scale=(0.14, 1.0),
            local_size=96,
            local_scale=(0.05, 0.14),
            local_count=6,
            brightness=0.8,
            contrast=0.8,
            saturation=0.8,
            hue=0.2,
            blur=(0.5, 0.5),
            solarize=(0.0, 0.0),
            local_blur=0.5,
            interpolation='bilinear',
        ),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=LARS(
            learning_rate=0.3,
            scaling='linear',
            final_learning_rate=0.0048,
            weight_decay=1e-6,
            warmup_epochs=10.0,
            form='P',
            exclude=(),
            frozen=(('^prototypes$', 1.0),),
        ),
        batch=4096,
        epochs=800.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
