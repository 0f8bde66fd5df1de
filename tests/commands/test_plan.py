"""`ssljax plan` as a person meets it, on the devices at hand."""

import dataclasses
import json
import math
import pathlib
import re
from unittest import mock

import jax
import pytest
from rich.console import Console

from ssljax import cli
from ssljax.commands import plan
from ssljax.definitions import load_experiment
from ssljax.plan import planning
from ssljax.plan.chips import CHIPS
from ssljax.plan.measure import capacity
from ssljax.plan.memory import TooLarge
from ssljax.plan.topology import Topology

FILE = 'experiments/simclr_fashion_mnist.py'
SMALL = ['--batch', '64', '--method.encoder.widths', '8', '16', '--method.tile', '16']


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    """Exit code, what was printed and what was written, of one measured plan."""
    file = tmp_path_factory.mktemp('plan') / 'plan.json'
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.stdout', type('Out', (), {'write': said.append, 'flush': lambda _: 0})())
        arguments = ['--topology', 'here', '--measure', '--price', '2', '--json', str(file)]
        code = cli.run(['plan', FILE, *arguments, '--examples', '6400', *SMALL])
    return code, ''.join(said), json.loads(file.read_text())


@pytest.mark.slow
def test_it_says_all_that_it_promises(planned):
    code, said, _ = planned
    assert code == 0
    for part in (
        'batch 64 on here (8 x cpu)', 'Memory of a chip: fits', 'parameters', 'optimizer',
        "method's state", 'activations and temporaries', 'compute', 'HBM', 'interconnect', 'bound',
        'all-reduce', 'images/s', 'chip-hours', 'cost', 'host cores for a chip', 'measured:',
        'The run: 4,000 steps of 64 images on 8 chips', 'times the estimate',
    ):  # fmt: skip
        assert part in said, part
    assert '\x1b' not in said  # no colours where there is no terminal


def test_the_figures_written_agree_with_each_other(planned):
    facts = planned[2]
    assert facts['experiment'] == FILE and facts['topology'] == 'here' and facts['fits']
    assert (facts['chips'], facts['batch'], facts['steps']) == (8, 64, 40 * 100)
    parts = dict(facts['memory'])
    assert parts.pop('total') == sum(parts.values())
    assert parts['batch'] == 8 * (2 * 28 * 28 + 4 + 4)
    assert parts['optimizer'] >= 2 * parts['parameters']  # AdamW
    seconds = facts['seconds']
    assert seconds['best'] == max(seconds[k] for k in ('compute', 'hbm', 'interconnect'))
    best = facts['best']
    assert best['images'] == pytest.approx(64 / seconds['best'])
    assert best['hours'] == pytest.approx(4000 * seconds['best'] / 3600)
    assert best['cost'] == pytest.approx(2 * 8 * best['hours'])
    assert facts['sent'] == pytest.approx(sum(c['sent'] for c in facts['collectives']))
    assert facts['measured_seconds'] > 0 and facts['unread_loops'] == 0


def test_the_gradient_crosses_the_interconnect_once(planned):
    facts = planned[2]
    reduced = sum(
        c['payload'] * c['count'] for c in facts['collectives'] if c['kind'] == 'all-reduce'
    )
    assert facts['memory']['parameters'] <= reduced < 1.5 * facts['memory']['parameters']


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--topology', 'v5e:9'], 'Usual ones: v5e:1x1'),
        (['--topology', 'v5e:4x4', '--measure'], 'takes steps and v5e:4x4 is not here'),
        (['--topology', 'here', '--batch', '63'], 'cannot be split evenly over 8 devices'),
        (['--topology', 'here', '--data.name', 'folder:nowhere'], '--examples 1281167'),
    ],
)
def test_bad_input_is_explained(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr('ssljax.commands.plan.quiet', lambda: None)
    assert cli.run(['plan', FILE, *arguments]) == cli.EXIT_USAGE
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_largest_batch_is_found_and_planned_for(monkeypatch, capsys):
    compiled = planning.compiled

    def small_memory(session):
        """As on a chip that has room for three images."""
        if session.run.batch > 24:
            return TooLarge(used=2.0**35, limit=2.0**34)
        return compiled(session)

    at = Topology('here', jax.devices(), CHIPS['v5e'])
    monkeypatch.setattr('ssljax.plan.topology.topology', lambda name, devices: at)
    monkeypatch.setattr(planning, 'compiled', small_memory)
    options = ['--method.encoder.widths', '8', '16', '--method.head.widths', '16', '8']
    assert (
        cli.run(['plan', FILE, '--topology', 'here', '--sweep-batch', '--batch', '8', *options])
        == 0
    )
    said = capsys.readouterr().out
    trials = re.findall(r'batch ([\d,]+): [\d.]+ .iB a chip, (fits|does not fit)', said)
    assert trials == [
        ('8', 'fits'), ('16', 'fits'), ('32', 'does not fit'), ('24', 'fits'),
    ]  # fmt: skip
    assert 'largest batch that fits: 24 on here' in said
    assert 'of 24 images on 8 chips' in said


def test_a_batch_that_the_method_refuses_is_too_large(monkeypatch, capsys):
    file, at = 'experiments/moco_v2_fashion_mnist.py', Topology('here', jax.devices(), None)
    small = mock.Mock(spec=planning.Step, memory=mock.Mock(total=1.0))
    monkeypatch.setattr(planning, 'compiled', lambda session: small)
    experiment = dataclasses.replace(load_experiment(file), batch=64)
    options = cli.Plan(experiment=file, topology='here')
    session, step = plan._largest(experiment, options, at, Console())
    # A queue of 2,048 keys holds no larger batch.
    assert session.run.batch == 2048 and step is small
    assert 'batch 4,096: refused: ' in capsys.readouterr().out


def swept(monkeypatch, experiment, devices, room):
    """Batches that a sweep compiles for, of which `room` images fit; the last is what it found."""
    tried = []

    def takes(session):
        tried.append(session.run.batch)
        return mock.Mock(spec=planning.Step, memory=mock.Mock(total=float(session.run.batch)))

    monkeypatch.setattr(planning, 'compiled', takes)
    monkeypatch.setattr('ssljax.plan.measure.capacity', lambda devices: float(room))
    at = Topology('here', jax.devices()[:devices], None)
    session, _ = plan._largest(
        experiment, cli.Plan(experiment='it', topology='here'), at, Console()
    )
    return [*tried, session.run.batch]


@pytest.mark.parametrize('devices', [1, 3])
@pytest.mark.parametrize('file', sorted(pathlib.Path('experiments').glob('*.py')), ids=str)
def test_a_sweep_tries_what_every_method_takes(file, devices, monkeypatch, capsys):
    experiment = load_experiment(str(file))
    unit = math.lcm(devices, experiment.method.batch_unit())
    tried = swept(monkeypatch, experiment, devices, 5 * unit)
    assert 'refused' not in capsys.readouterr().out
    assert tried[-1] == 5 * unit and not any(batch % unit for batch in tried)


@pytest.mark.parametrize(
    ('file', 'unit'), [('cpc_imagenet_r101', 16), ('moco_v2_cifar10', 32), ('byol_cifar10', 4)]
)
def test_micro_batches_are_parted_as_the_method_needs(file, unit, monkeypatch):
    # CPC's 16 images may come of all micro-batches, MoCo's 8 are of each of the four.
    experiment = load_experiment(f'experiments/{file}.py')
    experiment = dataclasses.replace(experiment, microbatches=4)
    assert swept(monkeypatch, experiment, 1, unit)[-1] == unit


def test_a_sweep_of_what_no_batch_mends_says_what_is_wrong(monkeypatch):
    experiment = load_experiment('experiments/cpc_imagenet_r101.py')
    wrong = dataclasses.replace(experiment.method, group=0)
    with pytest.raises(ValueError, match='groups of 0 images cannot be made of a batch of 512'):
        swept(monkeypatch, dataclasses.replace(experiment, method=wrong), 1, 100)
    with pytest.raises(ValueError, match='microbatches is 0'):
        swept(monkeypatch, dataclasses.replace(experiment, microbatches=0), 1, 100)


def test_devices_that_no_table_knows_have_the_memory_they_say(monkeypatch):
    assert swept(monkeypatch, load_experiment(FILE), 8, 100)[-1] == 96


def test_virtual_devices_of_a_cpu_share_its_memory():
    one, eight = capacity(jax.devices()[:1]), capacity(jax.devices())
    assert one == 8 * eight > 2**30


def test_what_does_not_fit_is_said_with_what_to_do(monkeypatch, capsys):
    def refuse(self, *arguments):
        raise RuntimeError('Ran out of memory in memory space hbm. Used 30.00G of 15.75G hbm.')

    monkeypatch.setattr('ssljax.train.placement.Compiled.lower', refuse)
    assert cli.run(['plan', FILE, '--topology', 'here', *SMALL]) == cli.EXIT_FAILED
    said = capsys.readouterr().out
    assert 'DOES NOT FIT: the compiler needs 30.00 GiB of the 15.75 GiB' in said
    assert '--microbatches 2' in said
