"""Every study that is shipped: all its variants fit, at full size and shrunk."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.known import facts
from ssljax.definitions import load_study
from ssljax.train.placement import make_mesh
from ssljax.train.session import Session, batch_shapes, delivered
from ssljax.train.step import make_step

FILES = sorted(pathlib.Path(__file__).parent.parent.glob('experiments/ablations/*.py'))
PLANNED = ('race_60k', 'cifar10_long')
"""Of data that need not be there: known by their facts alone."""

EMBEDDED = [path for path in FILES if path.stem not in PLANNED]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request):
    return request.param


def test_header_opens_with_its_command(file):
    assert f'ssljax sweep experiments/ablations/{file.name}' in file.read_text()


def test_variants_differ(file):
    variants = load_study(file).variants
    experiments = [variant.experiment for variant in variants]
    assert all(experiments.count(experiment) == 1 for experiment in experiments)
    factors = [variant.factors for variant in variants if variant.factors]
    assert len(set(factors)) == len(factors)


@pytest.mark.slow
def test_every_variant_fits_when_shrunk(file):
    for variant in load_study(file).smoke().variants:
        Session.open(variant.experiment, 1)


@pytest.mark.parametrize('path', EMBEDDED, ids=lambda path: path.stem)
def test_every_variant_fits_at_full_size(path):
    for variant in load_study(path).variants:
        Session.open(variant.experiment, 1)


@pytest.mark.parametrize('path', [p for p in FILES if p.stem in PLANNED], ids=lambda p: p.stem)
def test_every_variant_fits_at_full_size_where_the_data_are_not(path):
    for variant in load_study(path).variants:
        experiment = variant.experiment
        data = delivered(experiment, facts(experiment.data.name, experiment.data.train))
        assert Session.planned(experiment, data, make_mesh(devices=1)).run.steps > 100


@pytest.mark.slow
@pytest.mark.parametrize('path', EMBEDDED, ids=lambda path: path.stem)
def test_every_variant_has_a_step_at_full_size(path):
    variants = load_study(path).variants
    for variant in variants[:: -(-len(variants) // 20)]:  # all but of the largest grid
        experiment = variant.experiment
        session = Session.open(experiment, 1)
        schedule = experiment.optimizer.schedule(session.run)
        parts = (experiment.method, experiment.recipe, session.transform, schedule, session.run)
        shapes = batch_shapes(session.data, experiment.batch)
        after, _ = jax.eval_shape(make_step(*parts), session.abstract, shapes)
        assert jax.tree.structure(after) == jax.tree.structure(session.abstract)


def test_without_a_head_the_loss_acts_on_the_features():
    variant = next(
        v
        for v in load_study(FILES[0].parent / 'simclr_temperature_head.py').smoke().variants
        if dict(v.factors)['head'] == 'none'
    )
    session = Session.open(variant.experiment, 1)
    assert session.abstract.params['head'] == {}
    parts = (variant.experiment.method, variant.experiment.recipe, session.transform)
    schedule = variant.experiment.optimizer.schedule(session.run)
    step = make_step(*parts, schedule, session.run)
    rng = np.random.default_rng(0)
    shapes = batch_shapes(session.data, 16)
    batch = {k: jnp.asarray(rng.integers(0, 4, s.shape), s.dtype) for k, s in shapes.items()}
    after, metrics = jax.jit(step)(session.fresh(), batch)
    assert metrics['skipped'] == 0 and np.isfinite(metrics['loss'])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, session.fresh().params)
    assert any(jax.tree.leaves(moved['encoder']))


@pytest.mark.parametrize('name', ['race', 'race_60k'])
def test_everybody_in_the_race_draws_as_many_images(name):
    study = load_study(FILES[0].parent / f'{name}.py')
    examples = {'race': 7_000, 'race_60k': 54_000}[name]
    for variant in study.variants:
        run = variant.experiment.run(examples)
        assert abs(run.steps * run.batch - 100_000) <= run.batch / 2, variant.name
    files = FILES[0].parent.parent.glob('*_fashion_mnist.py')
    names = {variant.name for variant in study.variants}
    stems = {path.stem.removesuffix('_fashion_mnist') for path in files}
    assert stems - {'simclr_common'} <= names and 'simclr_common' in stems
    encoders = {v.name: v.experiment.method.encoder for v in study.variants}
    assert encoders['simclr'] == encoders['byol'] == encoders['supervised']
    assert [v.name for v in study.variants if len(study.seeds_of(v)) == 3] == ['moco_v2', 'simclr']


def test_the_runs_of_a_study_are_as_many_as_its_header_says(file):
    said = re.search(r'(\d+) runs', file.read_text().splitlines()[0])
    if said is not None:
        assert len(load_study(file).runs()) == int(said[1])
