"""Starting from known weights: from where they may come, and what is taken over."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.experiment import Data, Experiment
from ssljax.export import native, torchvision
from ssljax.methods.byol import BYOL
from ssljax.methods.mae import MAE
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.mae_decoder import MAEDecoder
from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet
from ssljax.nets.vit import vit
from ssljax.optim import LARS
from ssljax.train.initial import initial_state, trained_encoder
from ssljax.train.session import Session
from ssljax.views.simclr import SimCLRViews
from ssljax.views.supervised import CropFlip

RESNET = ResNet(depth=18)
SMALL = SmallResNet(stem_patch=4, widths=(8,), blocks=(1,))
HEAD = ProjectionHead(widths=(16, 8))


def session(method, origin=None, recipe=None):
    experiment = Experiment(
        method=method,
        recipe=recipe or SimCLRViews(size=16, blur=0.0),
        optimizer=LARS(learning_rate=0.3, warmup_epochs=0.0),
        data=Data(name='made_images'),
        batch=32,
        steps=3,
        init_from=origin and str(origin),
    )
    return Session.open(experiment, 1)


def drawn(module):
    """Variables that no initialiser gives, statistics included."""
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def resnet(tmp_path_factory):
    """A ResNet-18: its variables, its native export and the one under torchvision's names."""
    folder, variables = tmp_path_factory.mktemp('exports'), drawn(RESNET)
    native.save(folder / 'native', RESNET, variables, {})
    torchvision.save(folder / 'torchvision', RESNET, variables, {})
    return variables, folder


@pytest.mark.slow
def test_a_resnet_exported_either_way_gives_the_same_start(resnet):
    variables, folder = resnet
    states = [
        initial_state(session(SimCLR(RESNET, HEAD), folder / kind))
        for kind in ('native', 'torchvision')
    ]
    for state in states:
        assert_same(state.params['encoder'], variables['params'])
        assert_same(state.method['stats']['encoder'], variables['batch_stats'])
        assert_same(state.params['head'], states[0].params['head'])
        assert int(state.step) == 0
    assert_same(trained_encoder(str(folder / 'torchvision' / 'model.safetensors')), variables)


def test_weights_without_our_config_are_read_by_torchvisions_names(resnet, tmp_path):
    variables, folder = resnet
    weights = (folder / 'torchvision' / 'model.safetensors').read_bytes()
    (tmp_path / 'model.safetensors').write_bytes(weights)
    assert_same(trained_encoder(str(tmp_path)), variables)
    (tmp_path / 'config.json').write_text(json.dumps({'architectures': ['of another library']}))
    assert_same(trained_encoder(str(tmp_path)), variables)


def test_a_target_network_starts_as_the_same_encoder_and_can_be_trained(tmp_path):
    variables = drawn(SMALL)
    native.save(tmp_path, SMALL, variables, {})
    opened = session(BYOL(SMALL, projector=HEAD, predictor=HEAD), tmp_path)
    state, fresh = initial_state(opened), opened.fresh()
    for params, stats in (
        (state.params, state.method['stats']),
        (state.method['target'], state.method['stats']['target']),
    ):
        assert_same(params['encoder'], variables['params'])
        assert_same(stats['encoder'], variables['batch_stats'])
    assert_same(state.params['predictor'], fresh.params['predictor'])
    assert_same(state.method['target']['projector'], fresh.params['projector'])
    assert_same(state.opt, fresh.opt)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    leaves = jax.tree.leaves((state.params, state.method))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # can be donated


@pytest.mark.parametrize('kind', ['native', 'torchvision'])
def test_another_encoder_is_refused_with_the_paths_that_differ(resnet, kind):
    _, folder = resnet
    with pytest.raises(ValueError, match='not the one of this experiment') as caught:
        initial_state(session(SimCLR(SMALL, HEAD), folder / kind))
    said = str(caught.value)
    assert str(folder / kind) in said and 'method.encoder' in said
    assert "['batch_stats']['stage1_block0']['norm1']['mean'] has shape (64,)" in said
    assert "['batch_stats']['stage1_block1']['norm1']['mean'] is not in this encoder" in said


def test_what_is_none_of_the_three_is_refused_with_all_three(tmp_path):
    for origin in (tmp_path, tmp_path / 'missing'):
        with pytest.raises(ValueError, match='neither the folder of a run') as caught:
            trained_encoder(str(origin))
        for kind in ('run.json', 'config.json', 'safetensors', 'torchvision'):
            assert kind in str(caught.value)


def test_damaged_exports_say_what_is_wrong(resnet, tmp_path):
    _, folder = resnet
    weights = (folder / 'torchvision' / 'model.safetensors').read_bytes()
    (tmp_path / 'model.safetensors').write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match='is not a whole safetensors file'):
        trained_encoder(str(tmp_path))
    (tmp_path / 'config.json').write_text('{"format": ')
    with pytest.raises(ValueError, match=r'config.json is not JSON'):
        trained_encoder(str(tmp_path))


def test_without_an_origin_the_state_is_fresh():
    opened = session(SimCLR(SMALL, HEAD))
    key = jax.random.key_data
    same = lambda s: dataclasses.replace(s, key=key(s.key))
    assert_same(same(initial_state(opened)), same(opened.fresh()))


@pytest.mark.slow
def test_an_encoder_without_batch_norm_is_taken_over(tmp_path):
    encoder = vit('Ti', patch=4, width=8, depth=1, heads=2, position='sincos')
    variables = drawn(encoder)
    native.save(tmp_path / 'export', encoder, variables, {})
    small = MAEDecoder(width=8, depth=1, heads=2)
    masked = session(MAE(encoder, small), tmp_path / 'export', CropFlip(size=16))
    state = initial_state(masked)
    assert_same(state.params['encoder'], variables['params'])
    assert_same(state.method, masked.fresh().method)
    state = initial_state(session(BYOL(encoder, HEAD, HEAD), tmp_path / 'export'))
    assert_same(state.method['target']['encoder'], variables['params'])
