"""Tables and figures from results: numbers by hand, and what is missing said."""

import csv
import dataclasses
import io
import json
import os

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from sweep.studies import EXPERIMENT, put, row, study

from ssljax import config
from ssljax.study import Study, Variant
from ssljax.sweep import curves, figure, results
from ssljax.sweep.lines import cell, lines, scores


def repeated(name, seed):
    own = {'trained': row(0.80 + 0.01 * seed + (0.1 if name == 'b' else 0))}
    if name == 'a':
        own |= {'random': row(0.40 + 0.02 * seed), 'pixels': row(0.5)}
    return own


@pytest.fixture
def pair(tmp_path):
    made = study('a', 'b', seeds=(0, 1, 2))
    return made, put(made, tmp_path, repeated)


def cells(markdown):
    rows = [line for line in markdown.splitlines() if line.startswith('|')]
    header, _, *body = ([c.strip() for c in row.strip('|').split('|')] for row in rows)
    return {row[0]: dict(zip(header, row, strict=True)) for row in body}


def test_mean_and_standard_deviation_are_those_by_hand():
    # 80, 81, 85: mean 82, squared distances 4 + 1 + 9 = 14, over n - 1 = 2: 7.
    assert cell((80.0, 81.0, 85.0)) == '82.0 ± 2.6'
    assert cell((80.0,)) == '80.0'


def test_the_table_has_variants_then_random_weights_then_pixels_once(pair):
    made, folder = pair
    results.publish(made, folder)
    table = cells((folder.path / 'results.md').read_text())
    assert list(table) == ['a', 'b', 'a at random', 'raw pixels']
    assert table['a']['linear'] == '81.0 ± 1.0' and table['b']['linear'] == '91.0 ± 1.0'
    assert table['a at random']['linear'] == '42.0 ± 2.0'
    assert table['raw pixels']['linear'] == '50.0' and table['raw pixels']['seeds'] == '1'
    assert table['a']['seeds'] == '3' and table['a']['training, s'] == '8'
    assert table['a']['images'] == '2,560' and table['a']['passes'] == '10.0'
    text = (folder.path / 'results.md').read_text()
    assert 'missing' not in text
    # The standard error of 80 per cent on 400 images: sqrt(0.8 * 0.2 / 400) = 0.02.
    assert 'is 2.0 points' in text


def test_every_row_of_every_run_is_a_line_of_csv(pair):
    made, folder = pair
    results.publish(made, folder)
    rows = list(csv.DictReader(io.StringIO((folder.path / 'results.csv').read_text())))
    assert [(r['variant'], r['seed'], r['row']) for r in rows[:4]] == [
        ('a', '0', 'trained'), ('a', '0', 'random'), ('a', '0', 'pixels'), ('a', '1', 'trained'),
    ]  # fmt: skip
    assert len(rows) == 12
    assert float(rows[-1]['linear']) == repeated('b', 2)['trained']['linear']['top1']
    assert rows[0]['few'] == '0.5' and rows[0]['few_std'] == '0.02' and rows[0]['knn'] == '0.5'
    assert rows[0]['wall_s'] == '7.0' and rows[1]['wall_s'] == ''


def test_data_without_enough_labels_for_a_measure_has_a_table_and_a_figure_without_it(tmp_path):
    made = study('a', 'b', figure=('few', 'knn'))
    folder = put(made, tmp_path, lambda *_: {'trained': {**row(0.8), 'few': None}})
    results.publish(made, folder)
    table = cells((folder.path / 'results.md').read_text())
    assert table['a']['linear, few labels'] == '-' and table['a']['kNN'] == '50.0'
    record = next(csv.DictReader(io.StringIO((folder.path / 'results.csv').read_text())))
    assert record['few'] == record['few_std'] == '' and record['linear'] == '0.8'
    both = study('a', 'b', figure=('linear', 'knn'))
    wide = Image.open(folder.path / 'figure.png').size[0]
    results.publish(both, folder)
    assert wide == Image.open(folder.path / 'figure.png').size[0] / 2
    assert scores({**row(0.8), 'few': None}) == 'linear 80.0; kNN 50.0'


def test_what_is_there_is_shown_and_what_is_missing_counted(tmp_path):
    made = study('a', 'b', seeds=(0, 1))
    folder = put(made, tmp_path, lambda name, seed: repeated(name, seed) if seed == 0 else None)
    results.publish(made, folder)
    text = (folder.path / 'results.md').read_text()
    assert '**2 of 4 runs are missing.**' in text and cells(text)['b']['linear'] == '90.0'
    results.publish(study('c'), folder)  # none at all
    assert '1 of 1 runs are missing' in (folder.path / 'results.md').read_text()


def test_a_variant_that_left_the_study_left_the_table(pair):
    _, folder = pair
    results.publish(study('a', seeds=(0, 1, 2)), folder)
    assert 'b' not in cells((folder.path / 'results.md').read_text())


def test_publishing_leaves_no_halves(pair):
    made, folder = pair
    results.publish(made, folder)
    names = {'lock', 'runs', 'results.csv', 'results.md', 'figure.png'}
    assert set(os.listdir(folder.path)) == names


def grid_study():
    def variant(x, y):
        return Variant(f'{x}-{y}', EXPERIMENT, (('width', x), ('head', y)))

    some = [variant(x, y) for x in (2, 1) for y in ('none', 'linear') if (x, y) != (1, 'none')]
    return Study('Grid', (*some, Variant('all', EXPERIMENT)), seeds=(0, 1))


def test_a_grid_has_its_means_in_their_places_and_gaps_where_nothing_is(tmp_path):
    made = grid_study()
    scores = {'2-none': 0.1, '2-linear': 0.2, '1-linear': 0.4, 'all': 0.9}
    folder = put(made, tmp_path, lambda n, seed: {'trained': row(scores[n] + 0.02 * seed)})
    table = lines(made, folder.results(made))
    panel = [(line, line.values('linear')) for line in table]
    means, stds = figure.cells(panel, made.grid())
    np.testing.assert_allclose(means, [[11, 21], [np.nan, 41]])
    np.testing.assert_allclose(stds, np.array([[1, 1], [np.nan, 1]]) * 2**0.5)
    results.publish(made, folder)
    with (folder.path / 'results.csv').open() as file:
        first = next(csv.DictReader(file))
    assert (first['width'], first['head']) == ('2', 'none')


@pytest.mark.parametrize('make', [grid_study, lambda: study('a', 'b', seeds=(0, 1))])
def test_figures_are_pictures_that_show_their_numbers(make, tmp_path):
    made = make()
    pictures = []
    for top in (0.6, 0.9):
        folder = put(
            made,
            tmp_path / str(top),
            lambda name, seed, top=top: {
                'trained': row(top - 0.1 * seed), 'random': row(0.3), 'pixels': row(0.4)
            },
        )  # fmt: skip
        results.publish(made, folder)
        with Image.open(folder.path / 'figure.png') as image:
            assert image.format == 'PNG' and image.width > 800 and image.height > 200
            pictures.append(np.asarray(image.convert('L'), float))
    assert pictures[0].shape == pictures[1].shape
    assert pictures[0].std() > 10  # not an empty page
    assert np.abs(pictures[0] - pictures[1]).max() > 50


def test_one_result_of_a_grid_is_drawn(tmp_path):
    made = grid_study()
    first = made.runs()[0].name
    shown = lambda name, seed: {'trained': row(0.5)} if f'{name}/{seed}' == first else None
    folder = put(made, tmp_path, shown)
    results.publish(made, folder)
    assert (folder.path / 'figure.png').stat().st_size > 1000


def test_a_result_of_another_experiment_is_refused_and_one_of_an_older_ssljax_is_not(pair):
    made, folder = pair
    run = made.runs()[0]
    folder.check(made, run)
    changed = dataclasses.replace(EXPERIMENT, batch=32, log_every=3)
    other = Study('A study', (Variant('a', changed),), seeds=(0,))
    with pytest.raises(ValueError, match='batch: 16 there, 32 now') as error:
        folder.check(other, other.runs()[0])
    assert 'log_every' not in str(error.value) and 'Choose another --folder' in str(error.value)
    file = folder.of(run) / 'result.json'
    result = json.loads(file.read_text())
    del result['experiment']['fields']['microbatches']
    result['experiment']['fields']['of_old'] = 3
    file.write_text(json.dumps(result))
    folder.check(made, run)


def test_a_result_by_another_evaluation_is_not_done(pair):
    made, folder = pair
    run = made.runs()[0]
    assert folder.result(made, run) is not None
    assert folder.result(study('a', probe_split='train[:9]'), run) is None
    # b has no rows of references: asked for, they are missing. a has: not asked for, they may stay.
    assert folder.result(study('a', 'b', references=('b',)), made.runs(['b'])[0]) is None
    assert folder.result(study('a', 'b', references=()), run) is not None


def test_encoded_experiments_survive_json(pair):
    made, folder = pair
    run = made.runs()[1]
    assert config.decode(folder.result(made, run)['experiment']) == run.experiment


def test_curves_have_every_look_at_validation_by_images_drawn(tmp_path, monkeypatch):
    made = study('a', 'b', seeds=(0, 1))
    looks = lambda run: [
        {'images': 100 * i, 'knn_top1': 0.1 * i + 0.01 * run.seed, 'linear_top1': 0.2 * i}
        for i in range(1, 4)
    ]
    found = [(run, {'curve': looks(run)}) for run in made.runs()]
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, 'plot', lambda self, *a, **k: [drawn.append((*a[:2], k)), plot(self, *a, **k)][1]
    )
    with Image.open(io.BytesIO(curves.draw('Title', found))) as image:
        assert image.format == 'PNG' and np.asarray(image.convert('L'), float).std() > 10
    assert len(drawn) == 8  # two panels, two variants, two seeds
    x, y, _ = drawn[-1]
    assert x == (100, 200, 300)
    np.testing.assert_allclose(y, [11, 21, 31])
    colours = [(k['color'], k['label']) for *_, k in drawn[:4]]
    assert colours[0][0] == colours[2][0] != colours[1][0] == colours[3][0]
    assert [label for _, label in colours] == ['a', 'b', '_', '_']


def test_there_are_no_curves_of_one_look_of_old_results_or_of_a_crowd():
    run = study('a').runs()[0]
    look = {'images': 1, 'knn_top1': 0.5}
    assert curves.draw('Title', [(run, {'curve': [look]}), (run, {})]) is None
    crowd = study(*(f'v{i}' for i in range(11))).runs()
    assert curves.draw('Title', [(run, {'curve': [look, look]}) for run in crowd]) is None
    assert curves.draw('Title', [(run, {'curve': [look, look]}) for run in crowd[:10]])
