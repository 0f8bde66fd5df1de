"""SimCLR on CIFAR-10 with a ResNet-18, with the hyper-parameters of the authors' code.

    ssljax train experiments/simclr_cifar10.py

Needs `cifar10` prepared by TFDS (`ssljax train` says how where it is not). The README of that code
gives about 91% linear top-1 for a ResNet-18 (1,000 epochs, batch 512); the paper's own 94.0
(arXiv 2002.05709, appendix B.9) is a ResNet-50's. The head has that code's three layers. Unlike
there, 5,000 training images are kept back for validation, images are normalised by their mean and
deviation, and the loss is the paper's, half of that code's: biases and BatchNorm, which LARS does
not scale, take half its steps. Not run to its end here: it is 1,000 epochs of a network for an
accelerator.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.resnet import ResNet
from ssljax.optim import LARS
from ssljax.views.simclr import SimCLRViews

PARAMETERS = 11_168_832
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=SimCLR(
            encoder=ResNet(depth=18, stem='cifar'),
            head=ProjectionHead(widths=(512, 512, 128)),
            temperature=0.5,
        ),
        recipe=SimCLRViews(
            size=32,
            strength=0.5,
            blur=0.0,
            evaluation_crop=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        data=Data(name='cifar10', train='train[:45000]', validation='train[45000:]', test='test'),
        optimizer=LARS(
            learning_rate=1.0, scaling='linear', weight_decay=1e-4, warmup_epochs=10.0, form='C'
        ),
        batch=512,
        epochs=1000.0,
        evaluation=Evaluation(every=10.0, k=200),
    )
