import itertools
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ssljax.data.batches import CorruptDataError
from ssljax.data.pipeline import Stream, batches, in_order
from ssljax.data.registry import open_source

BROKEN = {3: 'truncated', 4: 'text', 11: 'empty', 17: 'gone'}
"""Which of the twenty files are spoilt, and how. The neighbour of 3 is spoilt itself."""


@pytest.fixture
def folder(tmp_path, write_image):
    """Twenty JPEGs of different sizes, a class for every five."""
    for i in range(20):
        write_image(tmp_path / f'{i // 5}' / f'{i:02}.jpg', (16 + i, 40 - i, 3), seed=i)
    return tmp_path


@pytest.fixture
def spoil(folder):
    """Spoils the files named in BROKEN; the list of files stays what it was."""

    def spoil(source):
        for index, how in BROKEN.items():
            path = folder / source.files[index]
            if how == 'truncated':
                path.write_bytes(path.read_bytes()[:-20])
            elif how == 'gone':
                path.unlink()
            else:
                path.write_bytes(b'no picture' if how == 'text' else b'')

    return spoil


def taken(source, recipe, plan, start=0, stop=None):
    return list(batches(source, recipe, plan, start, stop))


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


def test_corrupt_files_are_replaced_by_neighbours_and_counted(folder, recipe, spoil, caplog):
    source = open_source(str(folder), 'train')
    plan = Stream(10, 7, max_corrupt=0.2)
    sound = taken(source, recipe, plan, stop=4)
    spoil(source)
    stream = batches(source, recipe, plan, stop=4)
    assert stream.corrupt == ()
    with caplog.at_level(logging.WARNING):
        spoilt = list(stream)
    assert stream.corrupt == (3, 4, 11, 17)
    instead = {3: 5, 4: 5, 11: 12, 17: 18}  # of 3: 4 is spoilt, 5 is two further on
    for a, b in zip(sound, spoilt, strict=True):
        np.testing.assert_array_equal(a['index'], b['index'])
        for row, index in enumerate(a['index']):
            same = np.array_equal(a['image'][row], b['image'][row])
            assert same == (index not in instead)
            assert b['label'][row] == instead.get(index, index) // 5
    for index, other in instead.items():
        path = source.where(index)
        (line,) = [record.message for record in caplog.records if path in record.message]
        assert line == f'{path} is corrupt; record {other} stands in for it'


def test_a_replacement_depends_on_seed_and_position_alone(folder, recipe, spoil):
    """Not on where the stream began, nor on which rows a host reads, nor on the moment."""
    source = open_source(str(folder), 'train')
    spoil(source)
    plan = Stream(10, 7, max_corrupt=0.2)
    whole = taken(source, recipe, plan, stop=6)
    for start in (0, 3):
        assert_same(taken(source, recipe, plan, start, 6), whole[start:])
    for rows in ([0, 2, 4], [9, 1, 3, 5, 6, 7, 8]):
        part = taken(source, recipe, Stream(10, 7, np.array(rows), 0.2), stop=6)
        assert_same(part, [{k: v[rows] for k, v in batch.items()} for batch in whole])


def test_the_careful_graph_gives_the_fast_ones_bytes(folder, recipe):
    source = open_source(str(folder), 'train')
    stream = batches(source, recipe, Stream(7, 3), stop=5)
    careful = stream._examples.careful(0, 35).batch(7).as_numpy_iterator()
    for fast, other in zip(stream, careful, strict=True):
        np.testing.assert_array_equal(other.pop('used'), fast['index'])
        assert_same([fast], [other])


def test_too_many_corrupt_files_end_the_run(folder, recipe, spoil):
    source = open_source(str(folder), 'train')
    spoil(source)
    stream = batches(source, recipe, Stream(10, 7, max_corrupt=0.15))
    with pytest.raises(CorruptDataError, match=r'4 of 20 records .* 0\.15 .*03\.jpg'):
        list(itertools.islice(stream, 4))
    assert len(stream.corrupt) == 4
    with pytest.raises(CorruptDataError, match='1 of 20 records'):
        list(in_order(source, recipe, 4, max_corrupt=0.0))


def test_a_fault_that_no_neighbour_mends_is_named(folder, recipe):
    """Not a corrupt file but a recipe that no image suits."""

    class TooLarge(type(recipe)):
        def on_host(self, picture, seed):
            return {'image': super().on_host(picture, seed)['image'], **self.fault(picture)}

        def fault(self, picture):
            import tensorflow as tf

            window = tf.ensure_shape(picture.crop(0, 0, 500, 500), [500, 500, 3])
            return {'image': tf.stack([window[:8, :8]] * 2)}

    source = open_source(str(folder), 'train')
    stream = batches(source, TooLarge(), Stream(4, 0))
    with pytest.raises(CorruptDataError, match=r'batch 0 cannot be made.*\.jpg: .*size') as error:
        next(stream)
    assert str(folder) in str(error.value)


def test_evaluation_leaves_corrupt_files_out(folder, recipe, spoil):
    source = open_source(str(folder), 'train')
    sound = list(in_order(source, recipe, 6))
    spoil(source)
    stream = in_order(source, recipe, 6, max_corrupt=0.2)
    got = list(stream)
    assert stream.corrupt == tuple(BROKEN)
    for a, b in zip(sound, got, strict=True):
        spoilt = np.isin(a['index'], list(BROKEN))
        np.testing.assert_array_equal(b['index'], a['index'])
        np.testing.assert_array_equal(b['valid'], a['valid'] & ~spoilt)
        np.testing.assert_array_equal(b['image'][~spoilt], a['image'][~spoilt])
        np.testing.assert_array_equal(b['label'], np.where(spoilt, -1, a['label']))
        assert not b['image'][spoilt].any()


def test_a_process_ends_while_batches_are_being_made():
    """Threads that wait for Python would otherwise hold up the end of the interpreter for ever."""
    code = """
import dataclasses, sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
from conftest import Window
from ssljax.data import arrays, pipeline

class Slow(arrays.Arrays):
    def records(self, indices):
        import tensorflow as tf
        wait = tf.numpy_function(lambda i: (time.sleep(0.2), i)[1], [indices], tf.int64)
        return super().records(tf.ensure_shape(wait, [None]))

source = arrays.from_arrays('it', np.zeros((1000, 8, 8), np.uint8))
source = Slow(**{f.name: getattr(source, f.name) for f in dataclasses.fields(source)})
stream = pipeline.batches(source, Window(), pipeline.Stream(128, 0))
print(next(stream)['index'].shape)
"""
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, '-c', code, here], capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout.strip()) == (0, '(128,)'), done.stderr
