"""SimCLR on ImageNet with a ResNet-50 at 1x, 2x or 4x width, at batch 4096 (arXiv 2002.05709).

    ssljax train experiments/simclr_imagenet_r50.py                               # 1x, or with

    --method.encoder.width 2 --method.head.widths 4096 128                        # 2x
    --method.encoder.width 4 --method.head.widths 8192 128                        # 4x

Needs `imagenet2012` prepared by TFDS as ArrayRecord. The paper's linear top-1/top-5 after 1,000
epochs (table 6): 69.3/89.0 (1x), 74.2/92.0 (2x), 76.5/93.2 (4x), with 24M, 94M and 375M parameters.
Not run here: it needs a pod. 1% of `train` is kept for validation; the published numbers are of
training on all of it.

LARS with learning rate 0.3 x batch / 256 = 4.8, weight decay 1e-6, 10 epochs of warmup, cosine
decay; temperature 0.1; views of strength 1 with blur; the head is as wide as the features. Unlike
in the authors' code images are normalised, and the loss is the paper's, half of that code's: biases
and BatchNorm, which LARS does not scale, take half its steps. bfloat16 computation in the encoder;
parameters, head and loss in float32.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet
from ssljax.optim import LARS
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 23_508_032
"""Of the encoder at 1x; 93,907,072 at 2x and 375,378,176 at 4x."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=SimCLR(
            encoder=ResNet(depth=50, stem='imagenet', dtype='bfloat16'),
            head=ProjectionHead(widths=(2048, 128)),
            temperature=0.1,
            tile=1024,
        ),
        recipe=SimCLRViews(size=224, strength=1.0, blur=0.5),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=LARS(
            learning_rate=0.3, scaling='linear', weight_decay=1e-6, warmup_epochs=10.0, form='C'
        ),
        batch=4096,
        epochs=1000.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
