"""A run is opened only if its splits share no image, and test stays closed where it may."""

import dataclasses
import pathlib

import numpy as np
import pytest

from ssljax.commands.train import load
from ssljax.core import Signature
from ssljax.data import made, splits
from ssljax.data.known import SETS
from ssljax.experiment import Data, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train.placement import make_mesh
from ssljax.train.session import Session
from ssljax.views.multicrop import MultiCrop
from ssljax.views.simclr import SimCLRViews

EXPERIMENT = Experiment(
    method=SimCLR(
        SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
    ),
    recipe=SimCLRViews(size=16, blur=0.0),
    optimizer=SGD(learning_rate=0.1, scaling='none'),
    batch=16,
    steps=2,
)
FILES = sorted(pathlib.Path(__file__).parents[2].glob('experiments/*.py'))


def opened(**data):
    return Session.open(dataclasses.replace(EXPERIMENT, data=Data(**data)), 1)


@pytest.mark.parametrize(
    ('data', 'says'),
    [
        (
            {'validation': 'test[:50%]'},
            r"validation \('test\[:50%\]'\) and test \('test'\) share 32 images, so that .* "
            r'chosen on test; set --data.validation to a split that shares nothing with it',
        ),
        ({'train': 'train+test[60:]'}, r"and test \('test'\) share 4 images, .* set --data.train"),
        ({'train': 'all'}, "train .'all'. and test .'test'. share 64 images"),
        ({'test': 'train'}, "train and test are both 'train', so that"),
        ({'validation': 'train[-8:]'}, 'share 8 images, so that an image would be its own nearest'),
        ({'validation': 'train'}, "train and validation are both 'train', so that an image"),
    ],
)
def test_splits_that_share_images_are_refused(data, says):
    with pytest.raises(ValueError, match=says):
        opened(name='made_images', **data)


@pytest.mark.parametrize('kind', ['arrays', 'folder'])
def test_slices_of_ones_own_images(kind, tmp_path):
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (100, 20, 20, 3), np.uint8)
    name = f'arrays:{tmp_path / "images.npy"}'
    np.save(tmp_path / 'images.npy', images)
    if kind == 'folder':
        name = f'folder:{tmp_path / "images"}'
        (tmp_path / 'images').mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / 'images' / f'{i:03}.png')
    apart = {'train': 'train[:80%]', 'validation': 'train[80%:90%]', 'test': 'train[90%:]'}
    assert opened(name=name, **apart).run.examples == 80
    with pytest.raises(ValueError, match=r'validation .* and test .* share 5 images'):
        opened(name=name, **{**apart, 'validation': 'train[80:95]'})


@pytest.mark.parametrize(
    'data',
    [
        {},
        {'train': 'train[:50%]', 'validation': 'train[50%:]', 'test': 'test'},
        {'validation': None, 'test': 'there is none'},
        {'validation': 'none', 'test': 'none[:10]'},
        {'validation': None, 'test': 'test['},
    ],
)
def test_a_split_that_is_not_needed_is_not_opened_and_need_not_be_there(monkeypatch, data):
    loaded, load_made = [], made.load

    def recorded(split):
        loaded.append(split)
        return load_made(split)

    monkeypatch.setattr(made, 'load', recorded)
    session = opened(name='made_images', **data)
    assert {split for split in loaded if split not in ('none',)} == {session.experiment.data.train}


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_experiments_here_share_no_image_between_their_splits(file):
    data = load(str(file)).data
    sizes = SETS[data.name].sizes
    data.check(lambda one, other: splits.shared(one, other, sizes.__getitem__))


def test_a_batch_whose_parts_cannot_be_grouped_is_refused():
    """Eight groups divide the batch of 24, and not its halves of 12."""
    found = load(str(FILES[0].parent / 'moco_v1_cifar10.py')).smoke()
    assert found.method.norm_groups == 8
    Session.open(dataclasses.replace(found, batch=24), 1)
    with pytest.raises(ValueError, match=r'24 in 2 micro-batches .* multiple of 16'):
        Session.open(dataclasses.replace(found, batch=24, microbatches=2), 1)


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_local_views_are_refused_by_every_method_that_does_not_look_at_them(file):
    experiment = load(str(file))
    size = experiment.recipe.size
    views, _ = experiment.recipe.views()['image']
    crops = MultiCrop(
        size, local_size=size, local_count=3, blur=(0.0,) * views, solarize=(0.0,) * views
    )
    experiment = dataclasses.replace(experiment, recipe=crops)
    data = Signature(tuple(crops.views().items()), 3, 10, 1_300_000)
    if 'local' in experiment.method.uses:
        Session.planned(experiment, data, make_mesh(devices=1))
        return
    with pytest.raises(ValueError, match=f'looks at views named image; .* 3 x local of {size} pix'):
        Session.planned(experiment, data, make_mesh(devices=1))
