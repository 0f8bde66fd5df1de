"""RotNet on CIFAR-10: a Network in Network of four blocks, 200 epochs (arXiv 1803.07728).

    ssljax train experiments/rotation_cifar10.py

Needs `cifar10` prepared by TFDS (`ssljax train` says how where it is not). Published, for
classifiers on the features of block 2 trained with all labels: 89.06% with a multi-layer one,
91.16% with a convolutional one, against 92.80% fully supervised (the paper's table 2, quoted from
memory and not re-checked). No such classifier is trained here; `ssljax evaluate --layer block2`
probes that block, averaged over its positions. Not run to its end here.

SGD with Nesterov momentum at batch 128 (512 images), rate 0.1, a fifth of it at epochs 60, 120 and
160, weight decay 5e-4 on everything, as in the released configuration. Its crops are of 32 pixels
after a border of 4 black ones, which show 28 to 32 of them each way; these are squares of as much
of the picture, 77% to 100%, enlarged. And 5,000 training images are held out for validation.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.rotation import Rotation
from ssljax.nets.nin import NIN
from ssljax.optim import SGD
from ssljax.views.supervised import CropFlip

PARAMETERS = 1_410_368
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=Rotation(encoder=NIN(blocks=4)),
        recipe=CropFlip(
            size=32,
            scale=(0.766, 1.0),
            ratio=(1.0, 1.0),
            evaluation_crop=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        data=Data(name='cifar10', train='train[:45000]', validation='train[45000:]', test='test'),
        optimizer=SGD(
            learning_rate=0.1,
            scaling='none',
            decay='steps',
            milestones=(60.0, 120.0, 160.0),
            milestone_factor=0.2,
            weight_decay=5e-4,
            nesterov=True,
        ),
        batch=128,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, k=200),
    )
