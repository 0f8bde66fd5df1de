import numpy as np
import pytest
import tensorflow as tf

from ssljax.data.arrays import from_arrays, load
from ssljax.data.registry import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(20) % 4


def test_records_are_the_arrays_rows(tmp_path):
    np.savez(tmp_path / 'set.npz', image=IMAGES, label=LABELS)
    source = open_source(f'arrays:{tmp_path}/set.npz', 'train')
    assert (source.examples, source.channels, source.size) == (20, 3, (6, 5))
    assert source.class_names == ('0', '1', '2', '3') and not source.encoded
    wanted = np.array([3, 19, 3, 0])
    records = source.records(tf.constant(wanted))
    np.testing.assert_array_equal(records['image'], IMAGES[wanted])
    np.testing.assert_array_equal(records['label'], LABELS[wanted])
    assert records['label'].dtype == tf.int32
    np.testing.assert_array_equal(source.labels(), LABELS)


def test_a_slice_is_the_arrays_slice(tmp_path):
    np.savez(tmp_path / 'set.npz', image=IMAGES, label=LABELS)
    source = open_source(f'{tmp_path}/set.npz', 'train[75%:]+train[:2]')
    wanted = [15, 16, 17, 18, 19, 0, 1]
    assert source.examples == 7
    records = source.records(tf.range(7, dtype=tf.int64))
    np.testing.assert_array_equal(records['image'], IMAGES[wanted])
    np.testing.assert_array_equal(source.labels(), LABELS[wanted])
    assert source.where(5) == f'record 0 of {tmp_path}/set.npz'
    whole = open_source(f'{tmp_path}/set.npz', 'train')
    assert source.fingerprint() != whole.fingerprint()
    again = open_source(f'{tmp_path}/set.npz', 'train[75%:]+train[:2]')
    assert source.fingerprint() == again.fingerprint()


def test_a_npy_file_is_mapped_and_grey_gets_its_axis(tmp_path):
    np.save(tmp_path / 'grey.npy', IMAGES[..., 0])
    source = open_source(f'{tmp_path}/grey.npy', 'train')
    base = source.images.base
    assert isinstance(base, np.memmap)
    assert (source.channels, source.class_names, source.labels()) == (1, None, None)
    records = source.records(tf.constant([7], tf.int64))
    assert set(records) == {'image'}
    np.testing.assert_array_equal(records['image'][0, ..., 0], IMAGES[7, ..., 0])


def test_any_change_of_shape_labels_or_pixels_changes_the_fingerprint():
    other = IMAGES.copy()
    other[11, 0, 0, 0] ^= 1
    sources = [
        from_arrays('a', IMAGES, LABELS),
        from_arrays('a', IMAGES),
        from_arrays('a', IMAGES, LABELS[::-1]),
        from_arrays('a', other, LABELS),
        from_arrays('a', IMAGES.reshape(20, 5, 6, 3), LABELS),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert from_arrays('b', IMAGES.copy(), LABELS).fingerprint() == sources[0].fingerprint()


@pytest.mark.parametrize(
    ('images', 'labels', 'message'),
    [
        (IMAGES / 255, None, 'float64; expected uint8'),
        (IMAGES[0, 0], None, r'shape \(5, 3\); expected'),
        (IMAGES[:0], None, 'none of them 0'),
        (IMAGES, LABELS[:3], r'expected integers of shape \(20,\)'),
        (IMAGES, LABELS / 2, 'float64'),
        (IMAGES, LABELS - 1, 'run from -1 to 2'),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        from_arrays('it', images, labels)


def test_labels_beyond_the_class_names_are_refused():
    with pytest.raises(ValueError, match='run from 0 to 3; expected 0 to 1'):
        from_arrays('it', IMAGES, LABELS, ('cat', 'dog'))


def test_files_that_hold_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'no file .*absent\.npz'):
        load(f'{tmp_path}/absent.npz')
    np.savez(tmp_path / 'other.npz', x=IMAGES)
    with pytest.raises(ValueError, match=r"holds \['x'\]; expected the key 'image'"):
        load(f'{tmp_path}/other.npz')
    (tmp_path / 'text.npz').write_bytes(b'this is not an archive')
    with pytest.raises(ValueError, match='cannot be read as NumPy arrays'):
        load(f'{tmp_path}/text.npz')
    np.savez(tmp_path / 'whole.npz', image=IMAGES)
    (tmp_path / 'cut.npz').write_bytes((tmp_path / 'whole.npz').read_bytes()[:900])
    with pytest.raises(ValueError, match='cannot be read as NumPy arrays'):
        load(f'{tmp_path}/cut.npz')
    with pytest.raises(ValueError, match=r"Unknown split 'test'.*the splits are train \(20\)"):
        open_source(f'{tmp_path}/whole.npz', 'test')


class Trap:
    """Creates a file as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('suffix', ['npy', 'npz'])
def test_a_pickle_in_the_file_is_never_executed(tmp_path, suffix):
    trap = np.array([Trap(tmp_path / 'sprung')], object)
    path = f'{tmp_path}/trap.{suffix}'
    np.save(path, trap) if suffix == 'npy' else np.savez(path, image=trap)
    with pytest.raises(ValueError, match='without executing code'):
        load(path)
    assert not (tmp_path / 'sprung').exists()


def test_labels_that_are_no_classes_are_refused_before_they_are_counted():
    with pytest.raises(ValueError, match='go up to 1099511627776, of 20 images; number the'):
        from_arrays('it', IMAGES, np.full(20, 2**40))


def test_damaged_and_misnamed_files_are_refused(tmp_path):
    np.save(tmp_path / 'one.npy', IMAGES)
    np.savez_compressed(tmp_path / 'two.npz', image=IMAGES)
    (tmp_path / 'one.npy').rename(tmp_path / 'misnamed.npz')
    (tmp_path / 'two.npz').rename(tmp_path / 'misnamed.npy')
    np.savez_compressed(tmp_path / 'flipped.npz', image=IMAGES)
    content = bytearray((tmp_path / 'flipped.npz').read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / 'flipped.npz').write_bytes(content)
    np.save(tmp_path / 'header.npy', IMAGES)
    content = bytearray((tmp_path / 'header.npy').read_bytes())
    content[10:20] = b"{'(((((((("
    (tmp_path / 'header.npy').write_bytes(content)
    for name, says in (
        ('misnamed.npz', 'call it .npy'),
        ('misnamed.npy', 'call it .npz'),
        ('flipped.npz', ''),
        ('header.npy', ''),
    ):
        with pytest.raises(ValueError, match=rf'{name} cannot be read .*{says}'):
            load(str(tmp_path / name))
