"""A run's record: what the run was begun with, and from which step on it had others."""

import dataclasses
import json
import os

import pytest
from etils import epath

from ssljax.cli import EXIT_USAGE
from ssljax.core import Signature
from ssljax.data.graph import tensorflow
from ssljax.experiment import Data, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train import folder as folders
from ssljax.train.folder import RunFolder, reach
from ssljax.views.simclr import SimCLRViews

EXPERIMENT = Experiment(
    method=SimCLR(SmallResNet(widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))),
    recipe=SimCLRViews(size=16, blur=0.0),
    data=Data(name='made_images'),
    optimizer=SGD(learning_rate=0.1, scaling='none'),
    batch=16,
    steps=20,
)
DATA = Signature(views=(('image', (2, 16)),), channels=3, classes=None, examples=256)


@pytest.fixture
def goes_on(tmp_path, monkeypatch):
    """Begins the run, or goes on with it, at a step and under a commit and a version of JAX."""
    folder = RunFolder.at(str(tmp_path / 'run'))

    def begin(step, commit='a', jax='1'):
        monkeypatch.setattr(folders, 'commit', lambda: commit)
        monkeypatch.setattr(folders, '_versions', lambda: {'jax': jax, 'numpy': '2'})
        return folder.begin(EXPERIMENT, DATA, 'fingerprint', step)

    begin.folder = folder
    return begin


def parts(folder):
    return [(p['step'], p['commit'], p['packages']['jax']) for p in folder.read()['resumed']]


def test_what_a_run_goes_on_with_is_recorded_where_it_differs(goes_on):
    folder = goes_on.folder
    assert goes_on(0) == ''
    begun = folder.read()
    assert goes_on(5) == '' and folder.read() == begun
    assert goes_on(5, commit='b', jax='2') == 'commit b (a before), jax 2 (1 before)'
    assert goes_on(10, commit='b', jax='2') == ''
    assert goes_on(15, jax='2') == 'commit a (b before)'
    assert parts(folder) == [(5, 'b', '2'), (15, 'a', '2')]
    last = folder.read()['resumed'][-1]
    assert last['date'].startswith('20') and last['devices'] == begun['devices'] == '8 x cpu'
    # What the others read is still what the run was begun with.
    assert {name: folder.read()[name] for name in begun} == begun
    assert folder.experiment() == EXPERIMENT and folder.signature() == DATA


def test_a_part_none_of_whose_steps_is_left_is_no_part(goes_on):
    goes_on(0)
    goes_on(10, commit='b')
    goes_on(15, commit='c')
    assert goes_on(10, commit='c') == 'commit c (a before)'  # back to the checkpoint of step 10
    assert parts(goes_on.folder) == [(10, 'c', '1')]
    assert goes_on(10) == '' and 'resumed' not in goes_on.folder.read()


def test_a_finished_run_goes_on_with_nothing(goes_on):
    goes_on(0)
    assert goes_on(EXPERIMENT.steps, commit='b') == ''
    assert 'resumed' not in goes_on.folder.read()


def test_a_record_of_an_older_ssljax_is_taken(goes_on):
    goes_on(0)
    record = goes_on.folder.read()
    del record['packages'], record['python']
    goes_on.folder.record.write_text(json.dumps(record))
    assert 'jax 1 (None before)' in goes_on(5)
    assert parts(goes_on.folder) == [(5, 'a', '1')]


def test_the_record_is_replaced_whole(goes_on, monkeypatch):
    goes_on(0)
    before = goes_on.folder.record.read_text()

    def dies(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(goes_on.folder.record), 'replace', dies)
    with pytest.raises(KeyboardInterrupt):
        goes_on(5, commit='b')
    assert goes_on.folder.record.read_text() == before


def test_the_record_is_on_the_disk_before_it_takes_its_place(goes_on, monkeypatch):
    done = []
    flush, replace = os.fsync, type(goes_on.folder.path).replace
    monkeypatch.setattr(os, 'fsync', lambda number: (done.append('flushed'), flush(number))[1])
    move = lambda path, to: (done.append(f'{to.name} replaced'), replace(path, to))[1]
    monkeypatch.setattr(type(goes_on.folder.path), 'replace', move)
    goes_on(0)
    assert done == ['flushed', 'run.json replaced']


def test_another_run_is_refused_and_changes_nothing(goes_on):
    goes_on(0)
    before = goes_on.folder.record.read_text()
    with pytest.raises(ValueError, match='holds another run'):
        goes_on.folder.begin(dataclasses.replace(EXPERIMENT, batch=32), DATA, 'fingerprint', 5)
    assert goes_on.folder.record.read_text() == before


@pytest.mark.parametrize(
    ('error', 'code'), [('UnavailableError', 1), ('AbortedError', 1), ('PermissionDeniedError', 2)]
)
def test_a_bucket_that_does_not_answer_is_no_bad_input(monkeypatch, error, code):
    tf = tensorflow()
    raised = getattr(tf.errors, error)(None, None, '503, they say')

    def stat(path):
        raise raised

    monkeypatch.setattr(tf.io.gfile, 'stat', stat)
    with pytest.raises((ValueError, RuntimeError), match='gs://a/b cannot be reached: 503') as told:
        reach(epath.Path('gs://a/b'))
    assert getattr(told.value, 'exit_code', EXIT_USAGE) == code
