"""SwAV on 7,000 images of Fashion-MNIST with four local views, on 2 CPU cores.

ssljax train experiments/swav_fashion_mnist.py
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.swav import SwAV
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW
from ssljax.views.multicrop import MultiCrop

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=SwAV(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            head=ProjectionHead(
                widths=(256, 64), hidden_bias=True, last_norm='none', last_bias=True
            ),
            prototypes=128,
        ),
        recipe=MultiCrop(
            size=28,
            scale=(0.3, 1.0),
            local_size=16,
            local_scale=(0.1, 0.3),
            local_count=4,
            saturation=0.0,
            hue=0.0,
            gray=0.0,
            blur=(0.5, 0.5),
            solarize=(0.0, 0.0),
            local_blur=0.5,
            sigma=(0.1, 1.0),
            mean=(0.286,),
            std=(0.353,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=AdamW(
            learning_rate=5e-3,
            scaling='none',
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            exclude=('(^|/)(bias|scale)$', '^prototypes$'),
            warmup_epochs=5.0,
            frozen=(('^prototypes$', 1.0),),
        ),
        batch=256,
        epochs=50.0,
        evaluation=Evaluation(every=10.0),
        checkpoint=Checkpointing(every=270),
    )
