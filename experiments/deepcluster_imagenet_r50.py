"""DeepCluster on ImageNet with a ResNet-50, 200 epochs at batch 256 (arXiv 1807.05520's recipe).

    ssljax train experiments/deepcluster_imagenet_r50.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. The paper and its code have no ResNet: they
train an AlexNet and a VGG-16, and cluster what their last hidden layer is ahead of its ReLU. Here
it is a ResNet-50's pooled features, behind the ReLU of its last block, as the mean over positions
comes after that; so the numbers of the two are no measure for each other. Linear top-1 published
for the AlexNet is 37.9. Not run here: it needs an accelerator for days, and the features of all
images at once in its memory, 10 GB. 1% of `train` is kept for validation; the published number is
of training on all of it.

Sobel filters ahead of the network; 10,000 clusters of 256 whitened components, found anew each
epoch by 20 iterations of k-means; crops of all scales and flips; SGD with learning rate 0.05 and
weight decay 1e-5, both constant, and momentum 0.9 but for the classifier, which is new after each
clustering and has none.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.deepcluster import DeepCluster
from ssljax.nets.resnet import ResNet
from ssljax.nets.sobel import Sobel
from ssljax.optim import SGD, ByPath, Part
from ssljax.views.supervised import CropFlip

PARAMETERS = 23_504_896
"""Of the encoder, whose first layer sees two channels."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=DeepCluster(
            encoder=Sobel(ResNet(depth=50, stem='imagenet')),
            clusters=10_000,
            components=256,
            iterations=20,
        ),
        recipe=CropFlip(size=224, interpolation='bilinear'),
        data=Data(
            name='imagenet2012',
            train='train[:99%]',
            validation='train[99%:]',
            test='validation',
        ),
        optimizer=ByPath(default=sgd(0.9), parts=(Part('^head/', sgd(0.0)),)),
        batch=256,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )


def sgd(momentum: float) -> SGD:
    """At the paper's rate and weight decay, both constant."""
    return SGD(
        learning_rate=0.05,
        scaling='none',
        decay='constant',
        momentum=momentum,
        weight_decay=1e-5,
    )
