import dataclasses
import itertools
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from ssljax.data import faults, pipeline
from ssljax.data.arrays import Arrays, from_arrays
from ssljax.data.batches import CorruptDataError
from ssljax.data.faults import UnreachableDataError
from ssljax.data.folders import Folder
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


@dataclasses.dataclass(frozen=True, eq=False)
class Flaky(Folder):
    """Reads of some files fail: so many times, each of them."""

    failures: dict[int, int] = dataclasses.field(default_factory=dict)

    def records(self, indices):
        def reach(wanted):
            for index in map(int, wanted):
                if self.failures.get(index, 0):
                    self.failures[index] -= 1
                    raise OSError(f'{self.where(index)} does not answer')
            return wanted

        reached = tf.numpy_function(reach, [indices], tf.int64)
        return super().records(tf.ensure_shape(reached, [None]))


def flaky(source, failures):
    held = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return Flaky(**held, failures=dict(failures))


@dataclasses.dataclass(frozen=True, eq=False)
class Holed(Arrays):
    """Some records raise what a corrupt one does."""

    holes: frozenset[int] = frozenset()

    def records(self, indices):
        def check(wanted):
            if self.holes & set(wanted.tolist()):
                raise ValueError('a hole')
            return wanted

        checked = tf.numpy_function(check, [indices], tf.int64)
        return super().records(tf.ensure_shape(checked, [None]))


def holed(examples, holes):
    source = from_arrays('holed', np.zeros((examples, 8, 8), np.uint8))
    held = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return Holed(**held, holes=frozenset(holes))


@pytest.fixture
def hasty(monkeypatch):
    """Tries ten times, without waiting."""
    monkeypatch.setattr(faults, 'WAITS', (0.0,) * 9)


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


@pytest.mark.slow
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


def test_a_share_is_of_what_was_read_and_not_of_a_few(recipe, monkeypatch):
    """Of 4,000 records 4% are corrupt and 2% allowed, from the 100th on."""
    monkeypatch.setattr(pipeline, '_JUDGED_FROM', 100)
    stream = batches(holed(4000, range(0, 4000, 25)), recipe, Stream(20, 0, max_corrupt=0.02))
    with pytest.raises(CorruptDataError, match=r'of 100 records .*\([0-9]+ were read\), .* 0\.02'):
        list(itertools.islice(stream, 50))
    assert stream.step < 10
    monkeypatch.setattr(pipeline, '_JUDGED_FROM', 10_000)
    stream = batches(holed(4000, range(0, 4000, 25)), recipe, Stream(20, 0, max_corrupt=0.02))
    assert len(list(itertools.islice(stream, 20))) == 20  # fewer than 2% of all by then


def test_what_comes_again_is_counted_once(recipe):
    """1 record of 10 is within a share of 0.1 after ten epochs as after the first, not below."""
    stream = batches(holed(10, [3]), recipe, Stream(10, 0, max_corrupt=0.1))
    list(itertools.islice(stream, 10))
    assert stream.corrupt == (3,)
    with pytest.raises(CorruptDataError, match='1 of 10 records'):
        list(batches(holed(10, [3]), recipe, Stream(10, 0, max_corrupt=0.09), stop=10))


def test_evaluation_judges_by_the_whole(recipe):
    """The first 4 of 400 are corrupt: all of the first batch, but no more than 1%."""
    stream = in_order(holed(400, range(4)), recipe, 4, max_corrupt=0.01)
    assert sum(batch['valid'].sum() for batch in stream) == 396
    with pytest.raises(CorruptDataError, match='5 of 400 records'):
        list(in_order(holed(400, range(5)), recipe, 4, max_corrupt=0.01))


def test_a_failure_that_passes_changes_nothing(folder, recipe, hasty):
    source = open_source(str(folder), 'train')
    stream = batches(flaky(source, {2: 2, 13: 3}), recipe, Stream(10, 7), stop=4)
    assert_same(stream, taken(source, recipe, Stream(10, 7), stop=4))
    assert stream.corrupt == ()


@pytest.mark.slow
def test_nor_does_one_beside_corrupt_records(folder, recipe, spoil, hasty):
    """Then errors are passed over in the graph: 6 and 12 must not be taken for corrupt ones.

    Read alone a second time 6 is sound again, and 12 still fails.
    """
    failures = {6: 2, 12: 3}
    source = open_source(str(folder), 'train')
    spoil(source)
    plan = Stream(10, 7, max_corrupt=0.2)
    stream = batches(flaky(source, failures), recipe, plan, stop=4)
    assert_same(stream, taken(source, recipe, plan, stop=4))
    assert stream.corrupt == tuple(BROKEN)
    evaluated = in_order(flaky(source, failures), recipe, 6, 0.2)
    assert_same(evaluated, in_order(source, recipe, 6, 0.2))
    assert evaluated.corrupt == tuple(BROKEN)


def test_a_failure_that_stays_ends_the_run_and_is_named(folder, recipe, spoil, hasty):
    """Without corrupt records as beside them."""
    source = open_source(str(folder), 'train')
    broken = flaky(source, {6: 10**6})
    said = r'10 tries over 0 s: OSError: [^ ]*06\.jpg does not answer; nothing .*same command'
    with pytest.raises(UnreachableDataError, match=said) as error:
        next(in_order(broken, recipe, 20))
    assert error.value.exit_code == 1
    spoil(source)
    stream = batches(broken, recipe, Stream(20, 7, max_corrupt=0.2))
    with pytest.raises(UnreachableDataError, match=said):
        next(stream)
    assert 6 not in stream.corrupt


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


@pytest.mark.slow
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
