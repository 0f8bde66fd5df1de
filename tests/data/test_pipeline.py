import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from ssljax.data.arrays import from_arrays
from ssljax.data.graph import tensorflow
from ssljax.data.pipeline import Stream, batches, in_order
from ssljax.data.registry import open_source


def numbered(examples, channels=1):
    """Images whose every pixel tells the image's number and the pixel's place."""
    image = np.arange(12 * 12 * channels).reshape(1, 12, 12, channels) % 7
    number = np.arange(examples).reshape(-1, 1, 1, 1)
    return from_arrays('numbered', (image + 8 * (number % 30)).astype(np.uint8), number.ravel() % 5)


def taken(source, recipe, plan, start=0, stop=None, count=None):
    return list(itertools.islice(batches(source, recipe, plan, start, stop), count))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


def test_a_batch_has_its_arrays(recipe):
    (batch,) = taken(numbered(40, 3), recipe, Stream(16, 0), count=1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        'image': ((16, 2, 8, 8, 3), 'uint8'),
        'index': ((16,), 'int32'),
        'label': ((16,), 'int32'),
    }
    np.testing.assert_array_equal(batch['label'], batch['index'] % 5)
    np.testing.assert_array_equal(batch['image'].min((1, 2, 3, 4)) // 8, batch['index'] % 30)
    unlabelled = dataclasses.replace(numbered(40), targets=None, class_names=None)
    assert set(taken(unlabelled, recipe, Stream(16, 0), count=1)[0]) == {'image', 'index'}


def test_any_batch_can_be_asked_for_alone(recipe):
    source = numbered(40)
    whole = taken(source, recipe, Stream(16, 5), stop=9)
    assert len(whole) == 9
    for start in (1, 2, 7):
        assert_same(
            taken(source, recipe, Stream(16, 5), start, start + 2), whole[start : start + 2]
        )
    (late,) = taken(source, recipe, Stream(16, 5), start=10**12, count=1)
    assert len(set(late['index'])) == 16


def test_an_epoch_holds_every_example_once_but_for_its_tail(recipe):
    source = numbered(40)
    epochs = np.stack([b['index'] for b in taken(source, recipe, Stream(13, 1), stop=30)])
    epochs = epochs.reshape(10, 3 * 13)
    for epoch in epochs:
        assert len(set(epoch)) == 39 and set(epoch) < set(range(40))
    assert len({epoch.tobytes() for epoch in epochs}) == 10
    assert len({(set(range(40)) - set(epoch)).pop() for epoch in epochs}) > 3


@pytest.mark.slow
def test_every_epoch_and_every_seed_has_an_order_of_its_own(recipe):
    source = numbered(40)
    places = lambda epochs: tf.range(40 * epochs, dtype=tf.int64)
    index = lambda seed, epochs: batches(source, recipe, Stream(40, seed))._examples.place(
        places(epochs)
    )[0]
    epochs = index(1, 3000).numpy().reshape(3000, 40)
    assert len({epoch.tobytes() for epoch in epochs}) == 3000
    seeds = (*range(300), 511, 512, 2**15, 2**16 - 1)
    assert len({index(seed, 1).numpy().tobytes() for seed in seeds}) == len(seeds)
    index(2**63 - 1, 1)  # the largest there is


@pytest.mark.parametrize(
    ('seed', 'epoch', 'first'),
    [(0, 0, [3, 29, 0, 27]), (3, 7, [11, 1, 8, 24]), (255, 255, [28, 11, 24, 8])],
)
def test_orders_stay_what_they_were_for_results_that_are_on_record(recipe, seed, epoch, first):
    places = tf.range(40 * epoch, 40 * epoch + 4, dtype=tf.int64)
    stream = batches(numbered(40), recipe, Stream(40, seed))
    assert stream._examples.place(places)[0].numpy().tolist() == first


def test_batches_are_random_samples(recipe):
    """Means of batches spread as those of sampling without replacement do, to within 15%."""
    n, b, steps = 20_000, 500, 200
    source = from_arrays('blank', np.zeros((n, 8, 8), np.uint8))
    places = tf.range(b * steps, dtype=tf.int64)
    index = batches(source, recipe, Stream(b, 3))._examples.place(places)[0].numpy()
    theory = np.sqrt((n * n - 1) / 12 / b * (n - b) / (n - 1))
    assert 0.85 < index.reshape(steps, b).mean(1).std() / theory < 1.15
    assert abs(np.corrcoef(index[:-1], index[1:])[0, 1]) < 4 / np.sqrt(index.size)


def test_hosts_read_together_what_one_reads_alone(recipe):
    source = numbered(40)
    whole = taken(source, recipe, Stream(12, 5), 1, 6)
    for rows in ([0, 1, 2, 3], [11, 4], [7, 5, 10, 9, 8, 6]):
        part = taken(source, recipe, Stream(12, 5, rows=np.array(rows)), 1, 6)
        assert_same(part, [{k: v[rows] for k, v in batch.items()} for batch in whole])


def test_views_are_drawn_from_seed_and_position(recipe):
    """Same example, other epoch or other seed: other windows. Same run: the same."""
    source = numbered(12, 3)
    by_index = [
        {int(i): image for i, image in zip(b['index'], b['image'], strict=True)}
        for b in taken(source, recipe, Stream(12, 5), stop=4)
        + taken(source, recipe, Stream(12, 6), stop=2)
    ]
    distinct = [len({views[i].tobytes() for views in by_index}) for i in range(12)]
    assert np.mean(distinct) > 5  # of 6; windows have 25 places
    assert_same(
        taken(source, recipe, Stream(12, 5), 3, 4), taken(source, recipe, Stream(12, 5), 3, 4)
    )
    both = np.stack([by_index[0][i] for i in range(12)])
    assert not np.array_equal(both[:, 0], both[:, 1])


def test_a_dataset_as_large_as_the_batch_and_one_of_a_single_example(recipe):
    whole = taken(numbered(16), recipe, Stream(16, 0), stop=3)
    assert all(sorted(batch['index']) == list(range(16)) for batch in whole)
    alone = taken(numbered(1), recipe, Stream(1, 0), stop=3)
    assert [batch['index'].tolist() for batch in alone] == [[0]] * 3


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (Stream(41, 0), 'batch of 41 is larger than numbered with 40 examples'),
        (Stream(0, 0), 'batch is 0; expected at least 1'),
        (Stream(8, -1), 'seed is -1'),
        (Stream(8, 2**63), 'expected an integer in'),
        (Stream(8, 0, rows=np.array([0, 8])), r'expected distinct positions in \[0, 8\)'),
        (Stream(8, 0, rows=np.array([1, 1])), 'distinct'),
        (Stream(8, 0, rows=np.array([], int)), 'at least one'),
        (Stream(8, 0, max_corrupt=2.0), 'max_corrupt is 2'),
    ],
)
def test_plans_that_do_not_fit_are_refused(recipe, plan, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(40), recipe, plan)


def test_recipes_that_do_not_fit_are_refused_before_anything_runs(recipe):
    with pytest.raises(ValueError, match='8 channels; expected 1 or 3'):
        batches(numbered(40, 8), recipe, Stream(8, 0))
    with pytest.raises(ValueError, match='8 channels; expected 1 or 3'):
        in_order(numbered(40, 8), recipe, 8)

    class Larger(type(recipe)):
        def views(self):
            return {'image': (2, 9)}

    with pytest.raises(
        ValueError, match=r"view 'image' is uint8 \(2, 8, 8, 1\); expected .*\(2, 9"
    ):
        batches(numbered(40), Larger(), Stream(8, 0))


@pytest.mark.parametrize('batch', [1, 7, 20, 64])
def test_in_order_gives_each_example_once(recipe, batch):
    source = numbered(20, 3)
    got = list(in_order(source, recipe, batch))
    assert len(got) == -(-20 // batch)
    assert all(value.shape[0] == batch for one in got for value in one.values())
    whole = {name: np.concatenate([one[name] for one in got]) for name in got[0]}
    valid = whole['valid']
    np.testing.assert_array_equal(valid, np.arange(len(valid)) < 20)
    np.testing.assert_array_equal(whole['index'][valid], np.arange(20))
    np.testing.assert_array_equal(whole['label'][valid], source.labels())
    np.testing.assert_array_equal(whole['image'][valid], source.images[:, :8, :8])
    assert not whole['image'][~valid].any()
    assert set(whole['index'][~valid]) <= {20} and set(whole['label'][~valid]) <= {-1}
    assert {k: v.dtype.name for k, v in whole.items()} == {
        'image': 'uint8', 'index': 'int32', 'label': 'int32', 'valid': 'bool',
    }  # fmt: skip


def test_in_order_needs_a_batch(recipe):
    with pytest.raises(ValueError, match='batch of an evaluation is 0'):
        in_order(numbered(3), recipe, 0)


def test_cifar10_batches_show_the_examples_they_name(prepared, recipe):
    source = open_source('cifar10', 'train[:45000]')
    plan = Stream(64, 0)
    (batch,) = taken(source, dataclasses.replace(recipe, size=32, count=1), plan, 3, 4)
    records = source.records(tf.constant(batch['index'].astype(np.int64)))
    np.testing.assert_array_equal(batch['label'], records['label'])
    pixels = [tf.io.decode_jpeg(r, dct_method='INTEGER_ACCURATE') for r in records['image']]
    np.testing.assert_array_equal(batch['image'][:, 0], np.stack(pixels))


def test_tensorflow_is_imported_late_and_sees_processors_only():
    assert {device.device_type for device in tensorflow().config.get_visible_devices()} == {'CPU'}
    code = (
        'import sys, ssljax.data.pipeline, ssljax.data.registry, ssljax.data.picture\n'
        'slow = {"tensorflow", "tensorflow_datasets", "array_record", "PIL", "jax"}\n'
        'print(sorted(slow & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]', done.stdout
