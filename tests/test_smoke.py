"""What `--smoke` makes of an experiment: everything small, nothing else changed."""

import dataclasses
import pathlib

import jax
import pytest

from ssljax.commands.train import load
from ssljax.core import Signature
from ssljax.data import made
from ssljax.methods.cpc import CPC
from ssljax.methods.supervised import Supervised
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.patch_encoder import PatchEncoder
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet
from ssljax.train.session import Session
from ssljax.views.simclr import SimCLRViews
from ssljax.views.supervised import CropFlip

FILES = sorted(pathlib.Path(__file__).parent.parent.glob('experiments/*.py'))


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_every_experiment_shrinks_to_a_small_state_and_small_views(file):
    small = load(str(file)).smoke()
    views = tuple(small.recipe.views().items())
    assert all(size <= made.SIZE for _, (_, size) in views)
    session = Session.without_data(small, Signature(views, 3, len(made.CLASSES), 64))
    small.recipe.check(3)
    small.method.check(session.data, session.run)
    # A ResNet-10 has 5 million; a target network holds them twice.
    state = session.abstract
    numbers = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.method)))
    assert numbers < 12_000_000
    assert small.smoke() == small


def test_the_largest_experiment_loses_its_size_and_keeps_its_kind():
    whole = load(str(FILES[0].parent / 'simclr_imagenet_r50.py'))
    small = whole.smoke()
    encoder = dataclasses.replace(whole.method.encoder, depth=10)
    head = dataclasses.replace(whole.method.head, widths=(32, 32))
    assert small.method == dataclasses.replace(whole.method, encoder=encoder, head=head)
    assert encoder.dtype == 'bfloat16' and encoder.stem == 'imagenet'
    assert small.recipe == dataclasses.replace(whole.recipe, size=32)


def test_networks_shrink_to_one_that_can_be_built():
    wide = ResNet(depth=101, width=2, inner_width=2, stem='cifar', norm_groups=4, zero_init=False)
    assert wide.smoke() == ResNet(depth=10, stem='cifar', norm_groups=4, zero_init=False)
    head = ProjectionHead(widths=(8192, 8192, 16), last_norm='none', last_bias=True)
    assert head.smoke() == ProjectionHead(widths=(32, 32, 16), last_norm='none', last_bias=True)


def test_recipes_keep_their_other_fields():
    assert SimCLRViews(size=224, strength=0.5).smoke() == SimCLRViews(size=32, strength=0.5)
    assert CropFlip(size=28, flip=0.0).smoke() == CropFlip(size=28, flip=0.0)


def test_supervised_training_gets_the_classes_of_the_made_images():
    small = shrunk(Supervised(ResNet(depth=50), classes=1000, label_smoothing=0.1))
    assert small == Supervised(ResNet(depth=10), classes=len(made.CLASSES), label_smoothing=0.1)
    assert shrunk(Supervised(SmallResNet(), classes=10)).encoder == SmallResNet()


@pytest.mark.parametrize(('group', 'left'), [(None, None), (16, 16), (24, 8), (7, 1)])
def test_groups_shrink_to_some_that_the_small_batch_has(group, left):
    small = shrunk(CPC(PatchEncoder(ResNet(depth=50)), PixelCNN(5, 256), group=group))
    assert small == CPC(PatchEncoder(ResNet(depth=50)).smoke(), PixelCNN(1, 16), group=left)


def shrunk(method):
    """The method of an experiment's smoke."""
    whole = load(str(FILES[0].parent / 'simclr_imagenet_r50.py'))
    return dataclasses.replace(whole, method=method).smoke().method
