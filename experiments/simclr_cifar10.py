"""SimCLR on CIFAR-10 with a ResNet-18, as the paper's appendix B.9 has it.

    ssljax train experiments/simclr_cifar10.py

Needs `cifar10` prepared by TFDS (`ssljax train` says how where it is not). Published for this
recipe (1000 epochs, batch 512): about 91% linear top-1. Not run to its end here: it is 1,000 epochs
of a network for an accelerator.
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
            head=ProjectionHead(widths=(512, 128)),
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
