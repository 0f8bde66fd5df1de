"""Every experiment file: it runs when shrunk, and its full size has the shapes it states."""

import dataclasses
import pathlib

import chex
import jax
import jax.numpy as jnp
import pytest

from ssljax.commands.train import load
from ssljax.core import Run
from ssljax.data.known import facts
from ssljax.evaluate.monitor import monitor
from ssljax.optim.restart import restart
from ssljax.train import metrics
from ssljax.train.folder import RunFolder
from ssljax.train.loop import train
from ssljax.train.placement import make_mesh
from ssljax.train.session import Session, delivered
from ssljax.train.step import make_step

FILES = sorted(pathlib.Path(__file__).parent.parent.glob('experiments/*.py'))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request):
    return request.param


def full_size(experiment):
    data = delivered(experiment, facts(experiment.data.name, experiment.data.train))
    return Session.planned(experiment, data, make_mesh(devices=1))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_header_opens_with_its_command(file):
    assert f'ssljax train experiments/{file.name}' in file.read_text()


@pytest.mark.slow
def test_runs_when_shrunk(file, tmp_path):
    # On two devices, not eight: each one keeps and updates all of a ResNet-10.
    session = Session.open(load(str(file)).smoke(), devices=2)
    outcome = train(session, RunFolder.at(str(tmp_path)), monitor(session))
    assert outcome.finished and outcome.step == 3
    records = metrics.read(tmp_path)
    assert [r['step'] for r in records if 'loss' in r] == [1, 2, 3]
    assert 'knn_top1' in records[-1]['validation']


@pytest.mark.slow
def test_full_size_step_has_its_shapes(file):
    experiment = load(str(file))
    session = full_size(experiment)
    state = session.abstract
    module_parameters = load_constant(file, 'PARAMETERS')
    assert count(state.params['encoder']) == module_parameters
    schedule = experiment.optimizer.schedule(session.run)
    step = make_step(experiment.method, experiment.recipe, session.transform, schedule, session.run)
    after, out = jax.eval_shape(step, state, session.batch)
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert jax.tree.all(jax.tree.map(same, after, state))
    assert all(leaf.shape == () for leaf in jax.tree.leaves(out))


def load_constant(file, name):
    scope = {}
    exec(file.read_text(), scope)
    return scope[name]


def test_deepclusters_classifier_alone_has_no_momentum_which_goes_on_after_a_clustering():
    experiment = load(str(FILES[0].parent / 'deepcluster_imagenet_r50.py'))
    default, part = experiment.optimizer.default, experiment.optimizer.parts[0].optimizer
    assert part == dataclasses.replace(default, momentum=0.0)  # one rate, one weight decay
    params = {'encoder': {'w': jnp.ones(3)}, 'head': {'linear': {'kernel': jnp.ones((3, 2))}}}
    transform = experiment.optimizer.build(Run(examples=8, batch=4, steps=4, steps_per_epoch=2))
    _, opt = transform.update(params, transform.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(opt) if leaf.shape]
    assert [leaf.shape for leaf in moments] == [(3,)]
    after = restart(transform, opt, params, experiment.method.resets())
    chex.assert_trees_all_equal(after, opt)


@pytest.mark.parametrize(('width', 'parameters'), [(2, 93_907_072), (4, 375_378_176)])
def test_wide_simclr_has_the_published_sizes(width, parameters):
    experiment = load(str(FILES[0].parent / 'simclr_imagenet_r50.py'))
    encoder = dataclasses.replace(experiment.method.encoder, width=width)
    method = dataclasses.replace(experiment.method, encoder=encoder)
    state = full_size(dataclasses.replace(experiment, method=method)).abstract
    assert count(state.params['encoder']) == parameters
