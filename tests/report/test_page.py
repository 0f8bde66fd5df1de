"""The page: what it shows, on what data it renders, and that images stand in their own places."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from ssljax.evaluate import kept
from ssljax.evaluate.monitor import monitor
from ssljax.evaluate.table import Display
from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.report import figures, page
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.loop import train
from ssljax.train.session import Session
from ssljax.views.simclr import SimCLRViews

EXPERIMENT = Experiment(
    method=SimCLR(
        SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
    ),
    recipe=SimCLRViews(size=16, blur=0.0),
    data=Data(name='made_images', train='train[:48]', validation='validation[:32]'),
    optimizer=SGD(learning_rate=0.1, scaling='none'),
    batch=16,
    steps=2,
    evaluation=Evaluation(every=1.0, batch=16, k=3),
    log_every=1,
)
BROKEN = 3


def run(folder, **data):
    experiment = dataclasses.replace(EXPERIMENT, data=dataclasses.replace(EXPERIMENT.data, **data))
    session, folder = Session.open(experiment, 1), RunFolder.at(str(folder))
    train(session, folder, monitor(session))
    return folder


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    """The page of a run that was evaluated."""
    return page.write(evaluated(run(tmp_path_factory.mktemp('run')))).read_text()


def evaluated(folder, **question):
    """The folder with a table of its newest checkpoint, or of what the question says instead."""
    display = Display(('encoder', 'kNN'), (('<one>', '71.3'),), 'Top-1.', ('And more.',))
    asked = {**kept.identity(*load_state(folder), folder.read()), 'sgd': 'none', **question}
    knn = {'top1': 0.713, 'top5': 0.987}
    row = {'name': '<one>', 'dimensions': 16, 'linear': None, 'knn': knn, 'k': 5}
    content = {
        'question': asked,
        'display': dataclasses.asdict(display),
        'table': {'rows': [row]},
        'collapse': {'<one>': {'feature_std': 0.2, 'effective_rank': 7.25}},
    }
    folder.evaluation.write_text(json.dumps(content))
    return folder


def neighbours(text):
    """The lines of neighbours in a page: the query and those found, as (kind, name, pixels)."""
    lines = []
    for kind, image, name in re.findall(
        r'<figure class="(\w*)"><img class="pixels" src="data:image/png;base64,([^"]+)"\s+'
        r'alt="([^"]*)">',
        text,
    ):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
        lines += [[]] if kind == 'query' else []
        lines[-1].append((kind, name, pixels))
    return lines


def test_the_page_stands_alone_and_shows_everything(shown):
    assert re.findall(r'(?:src|href)="(?!data:)', shown) == []
    # Queries and their neighbours; curves, views and map.
    assert shown.count('<img') == page.SHOWN_QUERIES * (1 + page.SHOWN_NEIGHBOURS) + 3
    assert 'green frames' in shown and 'stand in' not in shown


def test_the_table_is_shown_with_every_line_below_it(shown):
    assert '<td>&lt;one&gt;</td><td>71.3</td>' in shown
    assert 'Top-1. And more.' in shown


def test_a_second_table_has_top_5_and_the_spread_of_the_features(shown):
    cells = re.findall('<td>(.*?)</td>', shown.split('Top-5, and how')[1].split('</table>')[0])
    assert cells == ['&lt;one&gt;', '16', '-', '98.7', '5', '0.80', '7.2', '-', '-']


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """The page's part about the table, of a run and a checkpoint."""
    folder = run(tmp_path_factory.mktemp('run'))
    looks = {'neighbours': [], 'map': '', 'labelled': False}

    def write(monkeypatch, checkpoint='latest'):
        monkeypatch.setattr(page, '_looks', lambda *arguments: looks)
        return ' '.join(page.write(folder, checkpoint).read_text().split())

    return folder, write


def test_features_that_have_no_map_leave_the_rest_of_the_page(plain, monkeypatch):
    folder, _ = plain
    none = {'neighbours': [], 'map': None, 'labelled': True}
    monkeypatch.setattr(page, '_looks', lambda *arguments: none)
    text = ' '.join(page.write(folder).read_text().split())
    assert 'No map: the features are all alike' in text and 'How it was made' in text


@pytest.mark.parametrize(
    'features',
    [
        *(np.zeros((60, 8)), np.ones((60, 8)), np.eye(8)[:2], np.ones((60, 1))),
        *(np.full((60, 8), np.nan), np.ones((60, 8)) * np.linspace(1, 2, 60)[:, None]),
    ],
)
def test_features_without_a_shape_have_no_map(features):
    assert figures.embedding_map(features, None, None) is None


@pytest.mark.parametrize('names', [('$a_$', 'b', 'c'), ('_a', '_b', '_c')])
def test_any_name_of_a_class_is_shown_in_the_map(names):
    features = np.random.default_rng(0).normal(size=(30, 4))
    picture = figures.embedding_map(features, np.arange(30) % 3, names)
    assert picture.startswith('data:image/svg')
    content = base64.b64decode(picture.split(',', 1)[1]).decode()
    assert all(f'<!-- {name} -->' in content for name in names)


@pytest.mark.slow
@pytest.mark.parametrize('question', [{'weights': 'others'}, {'images': 'others'}, {'step': 1}])
def test_a_table_of_another_checkpoint_is_left_out(plain, monkeypatch, question):
    folder, write = plain
    evaluated(folder, **question)
    text = write(monkeypatch)
    assert '71.3' not in text and 'No table yet' not in text
    assert f'of another checkpoint (step {question.get("step", 2)}) than this page' in text
    assert '<code>ssljax evaluate</code> makes the one of this' in text
    assert '<code>ssljax evaluate --checkpoint 2</code>' in write(monkeypatch, 2)


def test_a_table_that_does_not_say_what_it_is_of_is_none(plain, monkeypatch):
    folder, write = plain
    content = json.loads(evaluated(folder).evaluation.read_text())
    content['question'] = {'step': 2}
    folder.evaluation.write_text(json.dumps(content))
    text = write(monkeypatch)
    assert '71.3' not in text
    assert 'No table yet: <code>ssljax evaluate</code> makes it' in text


def test_neighbours_are_framed_by_class(shown):
    lines = neighbours(shown)
    assert len(lines) == page.SHOWN_QUERIES
    for query, *found in lines:
        assert len(found) == page.SHOWN_NEIGHBOURS
        for kind, name, _ in found:
            assert kind == ('same' if name == query[1] else 'other')


@pytest.mark.slow
def test_unlabelled_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (48, 20, 20, 3), np.uint8)
    np.save(tmp_path / 'images.npy', images)
    folder = run(
        tmp_path / 'run',
        name=str(tmp_path / 'images.npy'),
        train='train[:32]',
        validation='train[32:]',
    )
    text = page.write(folder).read_text()
    assert 'green frames' not in text and 'coloured by class' not in text
    lines = neighbours(text)
    assert len(lines) == page.SHOWN_QUERIES
    assert {kind for _, *found in lines for kind, _, _ in found} == {''}


@pytest.mark.slow
def test_without_validation_training_images_ask_and_never_find_themselves(tmp_path):
    text = page.write(run(tmp_path, validation=None, test='there is none')).read_text()
    assert 'training images stand in for validation' in text
    assert '<code>ssljax evaluate</code> makes it' in text
    lines = neighbours(text)
    assert len(lines) == page.SHOWN_QUERIES
    for query, *found in lines:
        assert len(found) == page.SHOWN_NEIGHBOURS
        assert all(not np.array_equal(query[2], pixels) for _, _, pixels in found)


def colour(number):
    return np.array([number % 3 * 120, number // 3 % 3 * 120, number // 9 * 110])


@pytest.fixture(scope='module')
def coloured(tmp_path_factory):
    """A run on a class per colour, one of which cannot be decoded."""
    root = tmp_path_factory.mktemp('colours')
    for split in ('train', 'validation'):
        for number in range(24):
            file = root / 'images' / split / f'{number:02}' / 'plain.jpg'
            file.parent.mkdir(parents=True)
            Image.new('RGB', (24, 24), tuple(map(int, colour(number)))).save(file, quality=95)
            if number == BROKEN:
                file.write_bytes(b'this is no image')
    return run(
        root / 'run',
        name=f'folder:{root / "images"}',
        train='train',
        validation='validation',
        max_corrupt=0.1,
    )


@pytest.mark.slow
def test_images_belong_to_their_rows_behind_a_corrupt_one(coloured):
    seen = set()
    for line in neighbours(page.write(coloured).read_text()):
        for _, name, pixels in line:
            seen.add(int(name))
            expected = np.broadcast_to(colour(int(name)), (16, 16, 3))
            np.testing.assert_allclose(pixels, expected, atol=6)
    assert BROKEN not in seen
    assert len([number for number in seen if number > BROKEN]) > 8


@pytest.mark.slow
def test_corrupt_images_may_be_no_more_than_the_experiment_allows(coloured):
    # One of 24 was within the share of the run, which has been measured and shown.
    session, state = load_state(coloured)
    strict = dataclasses.replace(session.experiment.data, max_corrupt=0.01)
    experiment = dataclasses.replace(session.experiment, data=strict)
    with pytest.raises(ValueError, match=r'1 of 24 records .* are corrupt'):
        page._looks(dataclasses.replace(session, experiment=experiment), state)
    with pytest.raises(ValueError, match=r'1 of 24 records .* are corrupt'):
        monitor(Session.open(experiment, 1))(state)


def svg(uri):
    return base64.b64decode(uri.removeprefix('data:image/svg+xml;base64,')).decode()


def test_curves_have_a_panel_for_each_thing_measured():
    steps = [
        {'step': s, 'epoch': s / 2, 'loss': 1 / s, 'learning_rate': 0.1, 'std': 0.9}
        for s in range(1, 20)
    ]
    panels = lambda records: len(set(re.findall(r'id="axes_\d+"', svg(figures.curves(records)))))
    assert panels(steps) == 3
    assert panels([{**r, 'grad_norm': 1.0, 'agreement': 0.3} for r in steps]) == 4
    check = {'step': 19, 'validation': {'knn_top1': 0.5, 'linear_top1': 0.4}}
    assert panels([*steps, check]) == 4
    assert figures.curves([]) is None
    assert figures.curves([check]) is None


def test_a_single_validation_point_is_visible():
    steps = [{'step': s, 'epoch': s / 2, 'loss': 1 / s} for s in range(1, 20)]
    check = {'step': 19, 'validation': {'knn_top1': 0.5}}
    # In SVG a marker is a shape that is used once a point; ticks are such shapes in black.
    marks = lambda records: len(
        re.findall(rf'<use [^>]*{figures.ACCENT}', svg(figures.curves(records)))
    )
    assert marks([*steps, check]) == 2  # in the panel and in its legend
    assert marks(steps) == 0
    assert marks(steps[:3]) == 3
