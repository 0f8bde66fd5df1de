"""DeepCluster on ImageNet with a ResNet-50, 200 epochs at batch 256 (arXiv 1807.05520's recipe).

    ssljax train experiments/deepcluster_imagenet_r50.py

Needs `imagenet2012` prepared by TFDS as ArrayRecord. The paper has no ResNet: it trains an AlexNet
and a VGG-16, and clusters what their last hidden layer is ahead of its ReLU. Here it is a
ResNet-50's pooled features, which makes the numbers of the two no measure for each other; linear
top-1 published for its AlexNet is 37.9. Not run here: it needs an accelerator for days, and the
features of all images at once in its memory, 10 GB.

Sobel filters ahead of the network; 10,000 clusters of 256 whitened components, found anew each
epoch by 20 iterations of k-means; crops of all scales and flips; SGD with learning rate 0.05,
momentum 0.9 and weight decay 1e-5, all constant. Different from the authors': the classifier has
momentum as well (theirs none), and starts without any after each clustering.
"""

from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.deepcluster import DeepCluster
from ssljax.nets.resnet import ResNet
from ssljax.nets.sobel import Sobel
from ssljax.optim import SGD
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
        optimizer=SGD(
            learning_rate=0.05, scaling='none', decay='constant', momentum=0.9, weight_decay=1e-5
        ),
        batch=256,
        epochs=200.0,
        evaluation=Evaluation(every=10.0, bank=50_000, k=200),
    )
