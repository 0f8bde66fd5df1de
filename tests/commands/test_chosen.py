"""Which checkpoint evaluate, export and report take; runs of classes that are the user's own."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from ssljax import cli
from ssljax.definitions import defined_in
from ssljax.export import native
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state

OWN = '''
"""A method and a study of somebody's own, outside the package."""

import dataclasses

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.study import Study, Variant
from ssljax.views.simclr import SimCLRViews


@dataclasses.dataclass(frozen=True)
class Louder(SimCLR):
    """SimCLR by another name."""

    volume: float = 11.0


def config():
    return Experiment(
        method=Louder(
            SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
        ),
        recipe=SimCLRViews(size=16, blur=0.0),
        data=Data(name='made_images', train='train[:40]'),
        optimizer=SGD(learning_rate=0.1, scaling='none'),
        batch=16,
        steps=6,
        evaluation=Evaluation(every=1.0, batch=16, k=3),
        checkpoint=Checkpointing(keep_last=1, keep_best=1),
        log_every=1,
    )


def study():
    return Study(title='Loud', variants=(Variant('louder', config()),))
'''


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    """A file of the user's, and the folder of its run."""
    folder = tmp_path_factory.mktemp('own')
    (folder / 'mine.py').write_text(OWN)
    assert cli.run(['train', str(folder / 'mine.py'), '--folder', str(folder / 'run')]) == 0
    return str(folder / 'mine.py'), str(folder / 'run')


@pytest.fixture
def copied(own, tmp_path):
    """The file and a copy of the run."""
    shutil.copytree(own[1], tmp_path / 'copied')
    return own[0], str(tmp_path / 'copied')


COMMANDS = ('evaluate', 'export', 'report', 'train')


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS)
def test_a_class_of_the_users_is_loaded_only_from_the_file_named(copied, command, capsys):
    file, run = copied
    assert cli.run([command, run]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert 'defined_mine.Louder is not from the package ssljax' in said
    assert '--definition FILE' in said
    assert cli.run([command, run, '--definition', file]) == 0


@pytest.mark.slow
def test_a_definition_that_is_not_there_is_named(own, capsys):
    assert cli.run(['export', own[1], '--definition', own[0] + 'x']) == cli.EXIT_USAGE
    assert 'no Python file' in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_of_the_users_classes_runs(own, tmp_path):
    assert cli.run(['sweep', own[0], '--folder', str(tmp_path)]) == 0
    assert (tmp_path / 'runs' / 'louder' / '0' / 'result.json').exists()


@pytest.fixture
def best_first(copied):
    """A run whose checkpoint of highest score is the one before the last, with zeros in it."""
    file, run = copied
    folder = RunFolder.at(run, defined_in(file))
    _, state = load_state(folder)
    shutil.rmtree(folder.checkpoints)
    checkpoints = Checkpoints(folder.checkpoints, 1, 1)
    nothing = jax.tree.map(lambda leaf: 0 * leaf, state.params)
    zeros = dataclasses.replace(state, params=nothing, step=state.step - 2)
    checkpoints.save(4, zeros, {'skipped': 0}, 0.9)
    checkpoints.save(6, state, {'skipped': 0}, 0.1)
    checkpoints.close()
    return file, run


def weights(path):
    _, variables, meta = native.load(path)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(variables['params'])]), meta


@pytest.mark.slow
def test_best_and_a_step_are_exported_and_latest_by_default(best_first, tmp_path):
    file, run = best_first
    for checkpoint, zero in (('best', True), ('4', True), ('6', False), (None, False)):
        to = tmp_path / str(checkpoint)
        chosen = [] if checkpoint is None else ['--checkpoint', checkpoint]
        arguments = ['export', run, '--definition', file, '--to', str(to), *chosen]
        assert cli.run(arguments) == 0
        found, _ = weights(to)
        assert (np.abs(found).max() == 0) == zero, checkpoint


@pytest.mark.slow
def test_the_best_is_another_question_than_the_latest(best_first):
    file, run = best_first
    options = ['evaluate', run, '--definition', file, '--no-references']
    tables = []
    for checkpoint in ('latest', 'best', 'best'):
        assert cli.run([*options, '--checkpoint', checkpoint]) == 0
        tables.append(json.loads((pathlib.Path(run) / 'evaluation.json').read_text()))
    assert tables[1]['collapse'] != tables[0]['collapse']
    assert tables[2] == tables[1]


def test_a_step_that_is_not_kept_is_refused(best_first, capsys):
    file, run = best_first
    assert cli.run(['export', run, '--definition', file, '--checkpoint', '5']) == cli.EXIT_FAILED
    assert 'has no checkpoint of step 5; there are: [4, 6]' in capsys.readouterr().err


def test_a_run_without_scores_has_no_best(best_first, capsys):
    file, run = best_first
    folder = RunFolder.at(run, defined_in(file))
    _, state = load_state(folder)
    shutil.rmtree(folder.checkpoints)
    checkpoints = Checkpoints(folder.checkpoints, 1, 1)
    checkpoints.save(6, state, {'skipped': 0}, None)
    checkpoints.close()
    assert cli.run(['export', run, '--definition', file, '--checkpoint', 'best']) == cli.EXIT_USAGE
    assert 'no checkpoint in' in capsys.readouterr().err
