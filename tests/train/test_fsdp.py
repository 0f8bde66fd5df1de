"""Parameters and optimizer state split over devices: the same numbers, a share of the bytes."""

import dataclasses
import functools
import math
import pathlib

import jax
import method_run
import pytest
from cases import METHODS

from ssljax.core import Signature
from ssljax.definitions import load_experiment
from ssljax.nets.vit import vit
from ssljax.plan.memory import held
from ssljax.train import placement
from ssljax.train.placement import Placement, make_mesh, shardings
from ssljax.train.session import Session

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
PLAIN = [name for name, case in METHODS.items() if not case.variant]


@functools.cache
def on_one_device(name):
    with jax.enable_x64(True):
        return method_run.steps(name, devices=1)[0]


@pytest.mark.parametrize(
    ('name', 'fsdp'),
    [
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in PLAIN if name != 'moco_v2'),
        *(pytest.param(name, 8, marks=pytest.mark.slow) for name in ('dino', 'moco_v2')),
        ('moco_v2', 2),  # a queue and BatchNorm over both axes of the mesh
    ],
)
def test_split_parameters_compute_what_whole_ones_do(name, fsdp, x64, monkeypatch):
    wanted = on_one_device(name)
    monkeypatch.setattr(placement, 'SMALLEST_SHARDED', 16)
    found, state = method_run.steps(name, devices=8, fsdp=fsdp)
    averages = [state.method['target']] if 'target' in state.method else []
    for tree in (state.params, state.opt, *averages):
        split = [leaf for leaf in jax.tree.leaves(tree) if not leaf.sharding.is_fully_replicated]
        assert split, 'nothing is split'
        for leaf in split:
            assert math.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size // fsdp
    method_run.assert_close(found, wanted)


def large(name):
    """A network that wants splitting, as its experiment trains it."""
    file, encoder = {
        'mae_vit_h': ('mae_imagenet_vit_b', ('H', 14)),
        'moco_v3_vit_h': ('moco_v3_imagenet_vit_b', ('H', 14)),
        'simclr_r50_4x': ('simclr_imagenet_r50', None),
    }[name]
    experiment = load_experiment(EXPERIMENTS / f'{file}.py')
    was = experiment.method.encoder
    if encoder is None:
        wide = dataclasses.replace(was, width=4)
    else:
        wide = vit(*encoder, position=was.position, initial=was.initial, dtype=was.dtype)
    return dataclasses.replace(
        experiment, method=dataclasses.replace(experiment.method, encoder=wide)
    )


def session(experiment, fsdp):
    """Its session on eight devices, without data."""
    data = Signature(tuple(experiment.recipe.views().items()), 3, 1000, 1_268_355)
    return Session(experiment, data, experiment.run(data.examples), Placement(make_mesh(fsdp)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'parameters'),
    [('mae_vit_h', 632e6), ('moco_v3_vit_h', 632e6), ('simclr_r50_4x', 375e6)],
)
def test_bytes_a_device_fall_as_the_devices_they_are_split_over(name, parameters):
    experiment = large(name)
    whole = session(experiment, 1).abstract
    count = sum(leaf.size for leaf in jax.tree.leaves(whole.params['encoder']))
    assert count == pytest.approx(parameters, rel=0.02)
    for fsdp in (2, 8):
        split = session(experiment, fsdp).abstract
        for part in ('params', 'opt'):
            before, after = (held(getattr(state, part)) for state in (whole, split))
            assert after == pytest.approx(before / fsdp, rel=0.03), part
        if 'target' in whole.method:
            before, after = (held(s.method['target']) for s in (whole, split))
            assert after == pytest.approx(before / fsdp, rel=0.03)


@pytest.mark.slow
def test_what_is_split_is_never_whole_on_a_device():
    experiment = large('mae_vit_h')
    small = dataclasses.replace(
        experiment.method.encoder, depth=1, width=640, heads=8, dtype='float32'
    )
    method = dataclasses.replace(experiment.method, encoder=small)
    of = {fsdp: session(dataclasses.replace(experiment, method=method), fsdp) for fsdp in (1, 8)}
    compiled = {
        fsdp: one.placement.compile_init(one._init, one.abstract).lower().compile()
        for fsdp, one in of.items()
    }
    at = shardings(of[8].abstract)
    same = lambda found, wanted, leaf: found.is_equivalent_to(wanted, leaf.ndim)
    assert jax.tree.all(jax.tree.map(same, compiled[8].output_shardings, at, of[8].abstract))
    most = {
        fsdp: one.memory_analysis().output_size_in_bytes + one.memory_analysis().temp_size_in_bytes
        for fsdp, one in compiled.items()
    }
    assert most[8] < 0.2 * most[1]
