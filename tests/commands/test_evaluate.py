"""`ssljax evaluate`: what is answered, once; what is refused; and that nothing else opens test."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssljax import cli
from ssljax.cli import Evaluate
from ssljax.commands import evaluate
from ssljax.core import with_keys
from ssljax.data import made
from ssljax.data.pipeline import Stream, batches, in_order
from ssljax.data.registry import open_source
from ssljax.evaluate.features import extract, pixels
from ssljax.evaluate.monitor import monitor
from ssljax.evaluate.online import spread
from ssljax.evaluate.sgd import BYOL, MOCO, SIMCLR
from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.report import page
from ssljax.train.folder import RunFolder
from ssljax.train.loop import train
from ssljax.train.session import Session
from ssljax.views.simclr import SimCLRViews

EXPERIMENT = Experiment(
    method=SimCLR(
        SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
    ),
    recipe=SimCLRViews(size=16, blur=0.0),
    data=Data(name='made_images', train='train[:40]'),
    optimizer=SGD(learning_rate=0.1, scaling='none'),
    batch=16,
    steps=2,
    evaluation=Evaluation(every=1.0, batch=16, k=3),
    log_every=1,
)
RANDOM, PIXELS = 'the same at random', 'raw pixels'


def trained(folder, **data):
    experiment = dataclasses.replace(EXPERIMENT, data=dataclasses.replace(EXPERIMENT.data, **data))
    session = Session.open(experiment, 1)
    train(session, RunFolder.at(str(folder)), monitor(session))
    return str(folder)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def evaluated(run, tmp_path_factory):
    """An evaluated copy of the run, and its answer."""
    folder = str(tmp_path_factory.mktemp('evaluated') / 'run')
    shutil.copytree(run, folder)
    assert evaluate.main(Evaluate(run=folder, sgd='simclr')) == 0
    return folder, answer(folder)


def answer(folder):
    return json.loads(RunFolder.at(folder).evaluation.read_text())


def forbid(monkeypatch, what):
    def called(*arguments, **named):
        raise AssertionError(f'{what} was called')

    monkeypatch.setattr(evaluate, what, called)


def features(split, embed=pixels):
    source = open_source('made_images', split)
    return extract(jax.jit(embed), in_order(source, EXPERIMENT.recipe, 16))


def test_every_row_has_scores_collapse_measures_and_the_probe_by_sgd(evaluated):
    _, found = evaluated
    names = ['SimCLR, 1 epochs', RANDOM, PIXELS]
    assert [row['name'] for row in found['table']['rows']] == names
    assert list(found['collapse']) == list(found['sgd']['rows']) == names
    measured = dict(found['collapse'][PIXELS])
    assert measured.pop('alignment') > 0.0
    assert measured == spread(features('validation'))
    for measures in found['collapse'].values():
        assert measures.keys() == {'feature_std', 'effective_rank', 'uniformity', 'alignment'}


def test_alignment_is_that_of_two_views_of_validation_images(evaluated):
    _, found = evaluated
    source = open_source('made_images', 'validation')
    stream = Stream(batch=64, seed=EXPERIMENT.seed)
    batch = next(iter(batches(source, EXPERIMENT.recipe, stream, start=0, stop=1)))
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    keyed = with_keys(batch, jax.random.fold_in(jax.random.key(EXPERIMENT.seed), 0))
    views = EXPERIMENT.recipe.denormalize(EXPERIMENT.recipe.on_device(keyed)['image'])
    views = np.asarray(views).reshape(64, 2, -1)
    unit = views / np.linalg.norm(views, axis=-1, keepdims=True)
    expected = np.mean(np.sum((unit[:, 0] - unit[:, 1]) ** 2, axis=-1))
    assert found['collapse'][PIXELS]['alignment'] == pytest.approx(expected, rel=1e-3)


def test_the_preset_asked_for_is_fitted_to_train_and_scored_on_test(evaluated):
    _, found = evaluated
    assert found['sgd']['probe'] == json.loads(json.dumps(dataclasses.asdict(SIMCLR)))
    classifier, _ = SIMCLR.fit(features('train[:40]'))
    expected = classifier.accuracy(features('test'))
    assert found['sgd']['rows'][PIXELS]['top1'] == expected.top1
    assert f'{PIXELS} {100 * expected.top1:.1f}' in found['display']['more'][0]
    assert evaluate.PRESETS == {'simclr': SIMCLR, 'byol': BYOL, 'moco': MOCO}


def test_a_known_answer_is_shown_again_without_a_look_at_the_data(evaluated, monkeypatch, capsys):
    folder, found = evaluated
    for what in ('open_source', 'extract', 'table'):
        forbid(monkeypatch, what)
    assert evaluate.main(Evaluate(run=folder, sgd='simclr')) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('| encoder | linear, 40 labels |')
    assert [line.split(' | ')[0] for line in lines[2:5]] == [
        f'| {row[0]}' for row in found['display']['rows']
    ]
    assert found['display']['note'] in lines and found['display']['more'][0] in lines
    assert answer(folder) == found


@pytest.mark.slow
def test_weights_trained_anew_to_the_same_step_are_another_question(copied, monkeypatch):
    assert evaluate.main(Evaluate(run=copied, references=False)) == 0
    before, folder = answer(copied), RunFolder.at(copied)
    shutil.rmtree(folder.checkpoints)
    session = Session.open(dataclasses.replace(EXPERIMENT, seed=1), 1)
    train(session, RunFolder.at(f'{copied}/other'))
    shutil.move(f'{copied}/other/checkpoints', folder.checkpoints)
    assert evaluate.main(Evaluate(run=copied, references=False)) == 0
    after = answer(copied)
    assert after['question']['step'] == before['question']['step']
    assert after['collapse'] != before['collapse']


@pytest.mark.parametrize(
    'change',
    [
        lambda record: record['data'].update(fingerprint='of other images'),
        lambda record: record['experiment']['fields']['data']['fields'].update(test='test[:32]'),
    ],
)
def test_other_images_are_another_question(evaluated, tmp_path, monkeypatch, change):
    folder = RunFolder.at(str(tmp_path / 'run'))
    shutil.copytree(evaluated[0], tmp_path / 'run')
    record = folder.read()
    change(record)
    folder.record.write_text(json.dumps(record))
    forbid(monkeypatch, 'open_source')
    with pytest.raises(AssertionError, match='open_source was called'):
        evaluate.main(Evaluate(run=str(tmp_path / 'run'), sgd='simclr'))


@pytest.mark.parametrize('kept', ['of an older version', '{"question"', '[]'])
def test_an_evaluation_that_does_not_say_of_which_weights_is_not_there(
    evaluated, tmp_path, monkeypatch, kept
):
    shutil.copytree(evaluated[0], tmp_path / 'run')
    if kept == 'of an older version':
        named = ('step', 'data', 'train', 'validation', 'test', 'layer', 'references', 'sgd')
        question = {name: evaluated[1]['question'][name] for name in named}
        kept = json.dumps({**evaluated[1], 'question': question})
    RunFolder.at(str(tmp_path / 'run')).evaluation.write_text(kept)
    forbid(monkeypatch, 'open_source')
    with pytest.raises(AssertionError, match='open_source was called'):
        evaluate.main(Evaluate(run=str(tmp_path / 'run'), sgd='simclr'))


def test_without_references_the_encoder_has_the_only_row_and_the_same_scores(copied, evaluated):
    assert evaluate.main(Evaluate(run=copied, references=False)) == 0
    found = answer(copied)
    assert [row['name'] for row in found['table']['rows']] == ['SimCLR, 1 epochs']
    assert found['table']['rows'][0] == evaluated[1]['table']['rows'][0]
    assert found['display']['more'] == []


def test_another_question_is_answered_anew(evaluated, monkeypatch):
    folder, _ = evaluated
    forbid(monkeypatch, 'open_source')
    for options in ({}, {'sgd': 'byol'}, {'sgd': 'simclr', 'layer': 'stage0'}):
        with pytest.raises(AssertionError, match='open_source was called'):
            evaluate.main(Evaluate(run=folder, **options))


def test_the_command_line_takes_presets_alone(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(['evaluate', run, '--sgd', 'papers'])
    assert exit_.value.code == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert 'simclr' in said and 'byol' in said and 'moco' in said


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'validation': 'test'}, "validation and test are both 'test', so that what is chosen"),
        ({'test': 'validation'}, 'would be chosen on test; set --validation'),
        ({'test': 'train[:40]'}, 'scored on images that it has seen; set --train'),
        ({'validation': 'train[:40]'}, 'would be its own nearest neighbour; set --train'),
    ],
)
def test_a_split_that_serves_twice_is_refused(run, monkeypatch, options, says):
    forbid(monkeypatch, 'open_source')
    with pytest.raises(ValueError, match=says):
        evaluate.main(Evaluate(run=run, **options))


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (
            {'validation': 'test[:50%]'},
            r"validation \('test\[:50%\]'\) and test \('test'\) share 32 images, .* --validation",
        ),
        ({'test': 'train[30:50]'}, r"train \('train\[:40\]'\) .* share 10 images, .* --train to"),
        ({'validation': 'validation+train[:1]'}, 'share 1 images, .* its own nearest neighbour'),
        ({'train': 'all', 'validation': 'validation'}, 'share 64 images'),
    ],
)
def test_splits_that_overlap_are_refused(run, monkeypatch, options, says):
    forbid(monkeypatch, 'extract')
    with pytest.raises(ValueError, match=says):
        evaluate.main(Evaluate(run=run, **options))


def test_test_images_that_were_trained_on_are_counted_below_the_table(copied, capsys):
    options = {'train': 'train[40:80]', 'test': 'train[20:40]+test', 'references': False}
    assert evaluate.main(Evaluate(run=copied, **options)) == 0
    said = 'The encoder was trained on 20 of the test images (its train: train[:40]).'
    assert said in capsys.readouterr().out


def test_images_and_layer_that_are_not_the_runs_own_are_named_below_the_table(copied, capsys):
    options = {'test': 'test[:32]', 'layer': 'stage1', 'references': False}
    assert evaluate.main(Evaluate(run=copied, **options)) == 0
    splits = '(train: train[:40], validation: validation, test: test[:32])'
    assert f'Evaluated: layer stage1, made_images {splits}.' in capsys.readouterr().out


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run, tmp_path / 'copied')
    return str(tmp_path / 'copied')


def edit(folder, **data):
    """Changes the data of a run's record."""
    folder = RunFolder.at(folder)
    record = folder.read()
    record['experiment']['fields']['data']['fields'] |= data
    folder.record.write_text(json.dumps(record))


@pytest.mark.slow
def test_a_run_without_validation_says_what_to_set_and_takes_it(copied, monkeypatch):
    edit(copied, validation=None)
    opened = record_splits(monkeypatch)
    with pytest.raises(ValueError, match=r"set --validation, and --train .* 'train\[:90%\]'"):
        evaluate.main(Evaluate(run=copied))
    assert opened == []
    assert evaluate.main(Evaluate(run=copied, validation='validation')) == 0
    assert answer(copied)['table']['examples'] == {'train': 40, 'validation': 64, 'test': 64}


def test_data_without_labels_is_refused_before_anything_is_embedded(run, tmp_path, monkeypatch):
    np.save(tmp_path / 'images.npy', np.zeros((60, 20, 20, 3), np.uint8))
    forbid(monkeypatch, 'extract')
    splits = {'train': 'train[:20]', 'validation': 'train[20:40]', 'test': 'train[40:]'}
    with pytest.raises(ValueError, match='no labels'):
        evaluate.main(Evaluate(run=run, data=str(tmp_path / 'images.npy'), **splits))


def test_images_of_other_channels_are_refused_before_anything_is_embedded(
    run, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    for split, kind in {'train': 'RGB', 'validation': 'L', 'test': 'RGB'}.items():
        for name, repeated in itertools.product('ab', range(10)):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            noise = Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8))
            noise.convert(kind).save(tmp_path / split / name / f'{repeated}.png')
    forbid(monkeypatch, 'extract')
    data = f'folder:{tmp_path}'
    says = r'the images of .*validation have 1 channels, those that the encoder is trained on 3'
    with pytest.raises(ValueError, match=says):
        evaluate.main(Evaluate(run=run, data=data, train='train'))
    with pytest.raises(ValueError, match=says):  # which would look at validation after an epoch
        trained(tmp_path / 'run', name=data, train='train')
    assert not (tmp_path / 'run').exists()


def test_more_than_fits_the_linear_probe_is_refused_before_anything_is_embedded(run, monkeypatch):
    forbid(monkeypatch, 'extract')
    monkeypatch.setattr(evaluate, 'MOST_SCORES', 40 * 4 * 5 - 1)
    says = r"40 examples x 4 classes x 5 folds .* at most 39 .* --train 'train\[:39\]', .* --sgd"
    with pytest.raises(ValueError, match=says):
        evaluate.main(Evaluate(run=run))


@pytest.mark.slow
def test_more_than_fits_logistic_regression_has_neighbours_and_the_probe_by_sgd(
    copied, evaluated, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, 'MOST_SCORES', 40 * 4 * 5 - 1)
    assert evaluate.main(Evaluate(run=copied, sgd='simclr')) == 0
    said, found, whole = capsys.readouterr().out, answer(copied), evaluated[1]
    assert said.splitlines()[2].startswith('| SimCLR, 1 epochs | - | - | ')
    assert 'Logistic regression would hold 40 examples x 4 classes x 5 folds' in said
    for row, other in zip(found['table']['rows'], whole['table']['rows'], strict=True):
        assert row['linear'] is row['few'] is row['c'] is None
        assert (row['knn'], row['k']) == (other['knn'], other['k'])
    assert found['sgd'] == whole['sgd'] and found['collapse'] == whole['collapse']


@pytest.mark.slow
def test_raw_pixels_too_many_have_no_row_but_a_line(copied, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, 'MOST_PIXELS', (40 + 64 + 64) * 16 * 16 * 3 - 1)
    assert evaluate.main(Evaluate(run=copied)) == 0
    assert 'Raw pixels are left out: 1.3e+05 numbers' in capsys.readouterr().out
    assert [row['name'] for row in answer(copied)['table']['rows']][1:] == [RANDOM]


@pytest.mark.slow
def test_corrupt_images_may_be_as_many_as_the_experiment_allows(copied, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split, count in {'train': 12, 'validation': 4, 'test': 4}.items():
        for number in range(2 * count):
            file = tmp_path / 'images' / split / 'ab'[number % 2] / f'{number:02}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 128, (24, 24, 3)) + 100 * (number % 2)
            Image.fromarray(noise.astype(np.uint8)).save(file)
            if number == 2:
                file.write_bytes(b'this is no image')
    seen = []

    def table(rows, protocol):
        seen.extend([len(split) for split in splits] for _, splits in rows)
        raise InterruptedError

    monkeypatch.setattr(evaluate, 'table', table)
    options = Evaluate(run=copied, data=f'folder:{tmp_path / "images"}', train='train')
    with pytest.raises(ValueError, match='1 of 24 records'):
        evaluate.main(options)
    edit(copied, max_corrupt=0.2)
    with pytest.raises(InterruptedError):
        evaluate.main(options)
    assert seen == [[23, 7, 7]] * 3


def record_splits(monkeypatch):
    opened, load = [], made.load

    def recorded(split):
        opened.append(split)
        return load(split)

    monkeypatch.setattr(made, 'load', recorded)
    return opened


@pytest.mark.slow
@pytest.mark.parametrize('validation', ['validation', None])
def test_only_evaluate_opens_test_and_once(tmp_path, monkeypatch, validation):
    opened = record_splits(monkeypatch)
    folder = trained(tmp_path, validation=validation)
    page.write(RunFolder.at(folder))
    assert set(opened) == {'train[:40]', validation} - {None}
    evaluate.main(Evaluate(run=folder, validation='validation'))
    assert opened.count('test') == 1
    known = len(opened)
    evaluate.main(Evaluate(run=folder, validation='validation'))
    assert len(opened) == known
