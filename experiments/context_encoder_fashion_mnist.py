"""Context encoder on 7,000 images of Fashion-MNIST, for a few minutes on 2 CPU cores.

ssljax train experiments/context_encoder_fashion_mnist.py

Four random blocks of every image are missing; weights and rates are those of the paper, decoder and
discriminator narrower. The encoder is that of `simclr_common_fashion_mnist.py`.
"""

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.context_encoder import ContextEncoder
from ssljax.methods.holes import Blocks
from ssljax.nets.inpainting import Decoder, Discriminator
from ssljax.nets.small import SmallResNet
from ssljax.optim import AdamW, ByPath, Part
from ssljax.views.supervised import CropFlip

PARAMETERS = 306_560
"""Of the encoder."""


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        method=ContextEncoder(
            encoder=SmallResNet(
                stem_patch=4,
                stem_kernel=6,
                widths=(64, 128),
                blocks=(1, 1),
                shortcut='pool',
                grid=2,
            ),
            decoder=Decoder(widths=(64, 32)),
            discriminator=Discriminator(widths=(16, 32, 64)),
            hole=Blocks(count=4, share=0.25),
            adversarial_weight=0.001,
            fill=(-0.428,),
        ),
        recipe=CropFlip(
            size=28,
            scale=(0.3, 1.0),
            mean=(0.5,),
            std=(0.5,),
            evaluation_crop=1.0,
            interpolation='bilinear',
        ),
        data=Data(name='fashion_mnist_10k'),
        optimizer=ByPath(default=adam(2e-3), parts=(Part('^discriminator/', adam(2e-4)),)),
        batch=128,
        epochs=20.0,
        evaluation=Evaluation(every=5.0),
        checkpoint=Checkpointing(every=270),
    )


def adam(learning_rate: float) -> AdamW:
    """DCGAN's: no weight decay, a short first moment, a constant rate."""
    return AdamW(
        learning_rate=learning_rate,
        scaling='none',
        decay='constant',
        betas=(0.5, 0.999),
        weight_decay=0.0,
    )
