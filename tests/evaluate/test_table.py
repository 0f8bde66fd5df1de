"""The comparison is fair: one treatment, the same draws, test only at the end."""

import dataclasses
import json
import weakref

import numpy as np
import pytest
from rich.console import Console

from ssljax.evaluate.features import Features
from ssljax.evaluate.linear import LogisticProbe, draw, few_labels, linear
from ssljax.evaluate.table import Protocol, table

PROTOCOL = Protocol(
    per_class=4, draws=3, candidates=(1, 5, 20, 500), probe=LogisticProbe(cs=(0.01, 0.1, 1.0))
)


def splits(noise, d=10, classes=6):
    centres = np.random.default_rng(99).normal(size=(classes, d))

    def make(n, seed):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(n) % classes)
        return Features.of(centres[labels] + noise * rng.normal(size=(n, d)), labels)

    return make(240, 1), make(60, 2), make(120, 3)


ROWS = {'trained': splits(0.5), 'random': splits(1.5), 'pixels': splits(1.0)}
TABLE = table(ROWS, PROTOCOL)


def test_rows_stand_in_the_order_given_with_what_was_chosen():
    assert [row.name for row in TABLE.rows] == ['trained', 'random', 'pixels']
    assert [row.dimensions for row in TABLE.rows] == [10, 10, 10]
    for row in TABLE.rows:
        assert row.k in (1, 5, 20)
        assert row.c in PROTOCOL.probe.cs
        assert len(row.few.cs) == 3
        assert row.linear.count == row.knn.count == 120
    assert TABLE.examples == (240, 60, 120)
    assert TABLE.classes == 6


def test_better_features_stand_out_in_every_column():
    trained, random, _ = TABLE.rows
    assert trained.linear.top1 > random.linear.top1
    assert trained.few.mean > random.few.mean + 0.1
    assert trained.knn.top1 > random.knn.top1


def test_each_row_is_what_it_would_be_alone_with_the_draws_of_all():
    rows = draw(ROWS['random'][0].labels, 4, draws=3)
    for row in TABLE.rows:
        train, _, test = ROWS[row.name]
        assert row.few == few_labels(train, test, rows, PROTOCOL.probe)
        assert row.linear == linear(train, test, PROTOCOL.probe)[0]


def test_equal_features_give_equal_rows():
    one, other = table({'a': ROWS['random'], 'b': ROWS['random']}, PROTOCOL).rows
    assert dataclasses.replace(other, name='a') == one


def test_test_labels_choose_no_hyper_parameter():
    leaked = {}
    for name, (train, validation, test) in ROWS.items():
        labels = np.random.default_rng(0).permutation(test.labels)
        leaked[name] = train, validation, Features.of(test.features, labels)
    chosen = lambda t: [(r.name, r.c, r.k, r.few.cs) for r in t.rows]
    other = table(leaked, PROTOCOL)
    assert chosen(other) == chosen(TABLE)
    assert max(row.linear.top1 for row in other.rows) < 0.4


def test_validation_labels_choose_k_alone():
    changed = {}
    for name, (train, validation, test) in ROWS.items():
        labels = np.random.default_rng(0).permutation(validation.labels)
        changed[name] = train, Features.of(validation.features, labels), test
    other = table(changed, PROTOCOL)
    for row, before in zip(other.rows, TABLE.rows, strict=True):
        assert (row.c, row.linear, row.few) == (before.c, before.linear, before.few)
    assert [r.k for r in other.rows] != [r.k for r in TABLE.rows]


def test_few_labels_are_left_out_where_a_class_has_not_as_many():
    short = dataclasses.replace(PROTOCOL, per_class=41)
    found = table(ROWS, short)
    assert [row.few for row in found.rows] == [None] * 3
    assert [row.linear for row in found.rows] == [row.linear for row in TABLE.rows]
    assert [row.cells()[2] for row in found.rows] == ['-'] * 3
    left_out = 'Few labels are left out (-): a class has fewer than 41 labels.'
    assert found.caption().endswith(left_out)
    assert json.loads(json.dumps(found.as_dict()))['rows'][0]['few'] is None


def test_markdown_has_a_line_a_row_in_per_cent():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == '| encoder | linear, 240 labels | linear, 4 labels a class | kNN |'
    trained = TABLE.rows[0]
    assert lines[2] == (
        f'| trained | {100 * trained.linear.top1:.1f} | {100 * trained.few.mean:.1f} ± '
        f'{100 * trained.few.std:.1f} | {100 * trained.knn.top1:.1f} |'
    )
    assert 'Top-1 on 120 test images' in lines[-1]
    assert '60 validation images' in lines[-1]


def test_the_terminal_shows_the_same_cells():
    console = Console(width=120, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(TABLE)
    text = console.export_text()
    for row in TABLE.rows:
        assert all(cell in text for cell in row.cells())


def test_json_keeps_counts_choices_and_every_draw():
    content = json.loads(json.dumps(TABLE.as_dict()))
    assert content['examples'] == {'train': 240, 'validation': 60, 'test': 120}
    assert content['classes'] == 6
    assert content['protocol']['draws'] == 3
    for entry, row in zip(content['rows'], TABLE.rows, strict=True):
        assert (entry['name'], entry['c'], entry['k']) == (row.name, row.c, row.k)
        assert entry['linear']['top1'] == row.linear.top1
        assert entry['few']['top1'] == [a.top1 for a in row.few.accuracies]
        assert entry['few']['labels'] == 24


def test_rows_of_different_examples_are_refused():
    train, validation, test = ROWS['random']
    other = train, validation, test.take(np.arange(119))
    with pytest.raises(ValueError, match="'random' and 'short' hold different test examples"):
        table({'random': ROWS['random'], 'short': other}, PROTOCOL)
    relabelled = Features.of(train.features, train.labels[::-1]), validation, test
    with pytest.raises(ValueError, match='different train examples or labels'):
        table({'random': ROWS['random'], 'other': relabelled}, PROTOCOL)


def test_missing_labels_and_no_rows_are_refused():
    unlabelled = tuple(Features.of(split.features) for split in ROWS['random'])
    with pytest.raises(ValueError, match='no labels'):
        table({'random': unlabelled}, PROTOCOL)
    with pytest.raises(ValueError, match='no rows'):
        table({}, PROTOCOL)


def test_without_a_probe_there_are_neighbours_alone():
    bare = table(ROWS, dataclasses.replace(PROTOCOL, probe=None))
    for row, whole in zip(bare.rows, TABLE.rows, strict=True):
        assert (row.linear, row.c, row.few) == (None, None, None)
        assert (row.knn, row.k) == (whole.knn, whole.k)
        assert row.cells()[1:3] == ('-', '-')
        assert row.cells()[3] == whole.cells()[3]
    assert 'Logistic regression is left out (-).' in bare.markdown()
    assert 'cross-validation' not in bare.markdown()
    content = json.loads(json.dumps(bare.as_dict()))
    assert content['protocol']['probe'] is None
    assert [content['rows'][0][name] for name in ('linear', 'c', 'few')] == [None] * 3


def test_rows_may_be_made_one_after_the_other():
    alive = []

    def made(name):
        assert not any(reference() for reference in alive)
        copies = tuple(dataclasses.replace(split) for split in ROWS[name])
        alive.extend(map(weakref.ref, copies))
        return copies

    protocol = dataclasses.replace(PROTOCOL, probe=None)
    lazy = table(((name, made(name)) for name in ROWS), protocol)
    assert lazy.rows == table(ROWS, protocol).rows
    assert len(alive) == 9
