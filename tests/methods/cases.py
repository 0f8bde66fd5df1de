"""The table of methods that `test_every_method.py` runs through: a line for each method.

Small networks on images of 12 pixels, so that 8 devices, float64 and 25 steps stay cheap.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ssljax.core import Method, Run
from ssljax.memory import Queue
from ssljax.methods.byol import BYOL
from ssljax.methods.context_encoder import ContextEncoder
from ssljax.methods.cpc import CPC
from ssljax.methods.deepcluster import DeepCluster
from ssljax.methods.dino import DINO, Temperature
from ssljax.methods.holes import Blocks, Centre
from ssljax.methods.mae import MAE
from ssljax.methods.moco import MoCo
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.methods.npid import NPID
from ssljax.methods.rotation import Rotation
from ssljax.methods.simclr import SimCLR
from ssljax.methods.supervised import Supervised
from ssljax.methods.swav import SwAV
from ssljax.nets.dino_head import DINOHead
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.inpainting import Decoder, Discriminator
from ssljax.nets.mae_decoder import MAEDecoder
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.preact_resnet import PreActResNet
from ssljax.nets.small import SmallResNet
from ssljax.nets.sobel import Sobel
from ssljax.nets.vit import ViT
from ssljax.views.byol import BYOLViews
from ssljax.views.multicrop import MultiCrop
from ssljax.views.recipe import Recipe
from ssljax.views.simclr import SimCLRViews
from ssljax.views.supervised import CropFlip

N, SIZE, CLASSES = 16, 12, 3
RUN = Run(examples=160, batch=N, steps=20, steps_per_epoch=10)
ENCODER = SmallResNet(stem_patch=2, widths=(8, 16), blocks=(1, 1))
TWO_VIEWS = SimCLRViews(size=SIZE, blur=0.5)
CROPS = SimCLRViews(size=SIZE, jitter=0.0, gray=0.0, blur=0.0)
MULTI_CROP = MultiCrop(
    size=SIZE,
    local_size=8,
    local_count=2,
    jitter=0.0,
    gray=0.0,
    blur=(0.0, 0.0),
    solarize=(0.0, 0.5),
    local_blur=0.0,
)
BRANCHES = (ENCODER, *[ProjectionHead(widths=(16, 8), last_norm='none')] * 2)


def falls(losses: Sequence[float]) -> bool:
    """The loss of one batch, seen again and again, goes down."""
    return np.mean(losses[-5:]) < np.mean(losses[:5])


def rises_and_falls(losses: Sequence[float]) -> bool:
    """As random directions leave a queue for images that are hard to tell apart, then are not."""
    return losses[0] < losses[5] and np.mean(losses[-5:]) < np.mean(losses[5:10])


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with what is particular about it.

    Attributes:
        method: small.
        recipe: whose views it takes.
        targets: the outputs of `forward` that the objective takes as constants.
        moves: how the loss of one batch moves over 25 steps.
        learning_rate: of those steps, SGD.
        idle: regular expressions for parameters that get no gradient in the first step.
        variant: whether this is a second form of a method, which only `--all` runs.
    """

    method: Method
    recipe: Recipe
    targets: tuple[str, ...] = ()
    moves: Callable[[Sequence[float]], bool] = falls
    learning_rate: float = 0.05
    idle: tuple[str, ...] = ()
    variant: bool = False


METHODS = {
    'deepcluster': Case(DeepCluster(Sobel(ENCODER), clusters=8, components=8), CropFlip(size=SIZE)),
    'swav': Case(SwAV(ENCODER, ProjectionHead(widths=(16, 8)), prototypes=6), MULTI_CROP),
    # A queue that the batch does not divide, in use from the fourth step.
    'swav_queue': Case(
        SwAV(
            ENCODER,
            ProjectionHead(widths=(16, 8), last_norm='none'),
            prototypes=6,
            queue=Queue(40),
            queue_from=0.0,
        ),
        TWO_VIEWS,
        variant=True,
    ),
    # Temperatures nearer to 1, and a head with BatchNorm: 25 steps of SGD are too few for a centre
    # to follow what networks this small have in common to all images.
    'dino': Case(
        DINO(
            ENCODER,
            DINOHead((16,), bottleneck=8, prototypes=12, batch_norm=True),
            student_temperature=0.5,
            teacher_temperature=Temperature(0.25, 0.25),
        ),
        MULTI_CROP,
        targets=('teacher',),
    ),
    # What the student drops is drawn from the keys of its examples: micro-batches change nothing.
    'dino_vit': Case(
        DINO(
            ViT(width=16, depth=2, heads=2, patch=4, size=SIZE, pool='mean', drop_path=0.3),
            DINOHead((16,), bottleneck=8, prototypes=12, batch_norm=True, learned_gain=True),
            student_temperature=0.5,
            teacher_temperature=Temperature(0.25, 0.25),
        ),
        MULTI_CROP,
        targets=('teacher',),
        variant=True,
    ),
    'simclr': Case(SimCLR(ENCODER, ProjectionHead(widths=(16, 8)), temperature=0.5), TWO_VIEWS),
    'simclr_tiled': Case(
        SimCLR(ENCODER, ProjectionHead(widths=(16, 8)), temperature=0.5, tile=8),
        TWO_VIEWS,
        variant=True,
    ),
    'byol': Case(BYOL(*BRANCHES), BYOLViews(size=SIZE), targets=('target',)),
    'moco_v3': Case(MoCoV3(*BRANCHES, temperature=0.5), BYOLViews(size=SIZE), targets=('target',)),
    # Width 32 and the mean: 25 steps are too few for a class token that starts at 1e-6.
    'moco_v3_vit': Case(
        MoCoV3(
            ViT(
                32,
                2,
                2,
                patch=4,
                position='sincos',
                initial='xavier_apart',
                pool='mean',
                frozen_patch=True,
            ),
            ProjectionHead(widths=(16, 16, 8), last_norm='plain'),
            ProjectionHead(widths=(16, 8), last_norm='plain'),
            temperature=0.2,
        ),
        BYOLViews(size=SIZE),
        targets=('target',),
        idle=(r"\['patch'\]",),
        variant=True,
    ),
    # A queue that the batch does not divide, and one that two keys an example do.
    'moco_v1': Case(
        MoCo(
            ENCODER,
            ProjectionHead(widths=(16,), last_norm='none', last_bias=True),
            temperature=0.07,
            queue=Queue(40),
        ),
        CROPS,
        targets=('key',),
        moves=rises_and_falls,
        variant=True,
    ),
    'moco_v2': Case(
        MoCo(
            ENCODER,
            ProjectionHead(
                widths=(16, 8),
                hidden_norm='none',
                hidden_bias=True,
                last_norm='none',
                last_bias=True,
            ),
            queue=Queue(64),
            symmetric=True,
        ),
        CROPS,
        targets=('key',),
        moves=rises_and_falls,
    ),
    # BatchNorm of 4 groups of 4 images, or of 2 in micro-batches; keys in other groups.
    'moco_groups': Case(
        MoCo(
            dataclasses.replace(ENCODER, norm_groups=4),
            ProjectionHead(widths=(8,), last_norm='none', last_bias=True),
            queue=Queue(40),
        ),
        CROPS,
        targets=('key',),
        moves=rises_and_falls,
        variant=True,
    ),
    # 160 x 8 numbers an image: the bank's 160 rows cost no more.
    'npid_nce': Case(
        NPID(ENCODER, ProjectionHead(widths=(8,), last_norm='none'), 0.2, negatives=160),
        CropFlip(size=SIZE),
    ),
    # Of which 30 x 8 numbers an image are fewer, whatever the tile.
    'npid_rows': Case(
        NPID(ENCODER, ProjectionHead(widths=(8,), last_norm='none'), 0.2, negatives=30, tile=8),
        CropFlip(size=SIZE),
        variant=True,
    ),
    'npid_softmax': Case(
        NPID(
            ENCODER,
            ProjectionHead(widths=(8,), last_norm='none'),
            0.2,
            negatives=None,
            proximal=0.1,
        ),
        CropFlip(size=SIZE),
        variant=True,
    ),
    # A grid of 5 x 5 patches of 4 pixels.
    'cpc': Case(
        CPC(
            PatchEncoder(PreActResNet((8, 16), (1, 1), 'cifar', 'layer'), patch=4, stride=2),
            PixelCNN(1, 16),
            steps=2,
            subcrop=1,
            tile=32,
        ),
        CropFlip(size=SIZE),
    ),
    'mae': Case(
        MAE(ViT(16, 2, 2, patch=4, position='sincos', initial='xavier'), MAEDecoder(8, 1, 2)),
        CropFlip(size=SIZE),
    ),
    'supervised': Case(Supervised(ENCODER, classes=CLASSES), CropFlip(size=SIZE)),
    'rotation': Case(Rotation(ENCODER), CropFlip(size=SIZE)),
    'context_encoder_l2': Case(
        ContextEncoder(ENCODER, Decoder((8,)), hole=Centre(rim=1), adversarial_weight=0.0),
        CropFlip(size=SIZE, mean=(0.5,), std=(0.5,)),
        variant=True,
    ),
    'context_encoder_adversarial': Case(
        ContextEncoder(ENCODER, Decoder((8, 8)), Discriminator((8, 8)), Blocks(), 0.1),
        CropFlip(size=SIZE, mean=(0.5,), std=(0.5,)),
        learning_rate=0.005,
    ),
}
