"""All of Fashion-MNIST from idx files, here tiny ones."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow as tf

from ssljax.data import fashion_full, idx
from ssljax.data.registry import open_source

SIZES = {'train': 30, 't10k': 20}


def encoded(array):
    header = struct.pack('>BBBB', 0, 0, 8, array.ndim) + struct.pack(
        f'>{array.ndim}i', *array.shape
    )
    return header + array.astype(np.uint8).tobytes()


def arrays(start):
    rng = np.random.default_rng(len(start))
    n = SIZES[start]
    return rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10


@pytest.fixture
def folder(tmp_path):
    for start in SIZES:
        images, labels = arrays(start)
        for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
            file = tmp_path / f'{start}-{kind}-ubyte.gz'
            file.write_bytes(gzip.compress(encoded(array)))
    return tmp_path


@pytest.mark.parametrize(('split', 'start'), [('train', 'train'), ('test', 't10k')])
def test_splits_are_the_files_in_their_order(folder, split, start):
    source = open_source(f'fashion_mnist:{folder}', split)
    images, labels = arrays(start)
    assert (source.examples, source.channels, source.size) == (len(images), 1, (28, 28))
    assert len(source.class_names) == 10
    records = source.records(tf.range(source.examples, dtype=tf.int64))
    np.testing.assert_array_equal(records['image'][..., 0], images)
    np.testing.assert_array_equal(source.labels(), labels)


def test_slices_and_their_fingerprints(folder):
    whole = open_source(f'fashion_mnist:{folder}', 'train')
    part = open_source(f'fashion_mnist:{folder}', 'train[10:]')
    np.testing.assert_array_equal(part.labels(), whole.labels()[10:])
    assert part.fingerprint() != whole.fingerprint()
    assert open_source(f'fashion_mnist:{folder}', 'train[:50%]+test[:5]').examples == 20
    with pytest.raises(ValueError, match=r'train \(30\), test \(20\)'):
        open_source(f'fashion_mnist:{folder}', 'validation')


def test_the_variable_names_the_folder_and_files_may_be_unpacked(folder, monkeypatch):
    for file in folder.glob('*.gz'):
        file.with_suffix('').write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    monkeypatch.setenv(fashion_full.VARIABLE, str(folder))
    assert open_source('fashion_mnist', 'test').examples == 20


def test_absent_files_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion_full.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match='apt-get install dataset-fashion-mnist') as error:
        open_source('fashion_mnist', 'train')
    assert str(tmp_path) in str(error.value) and 'train-images-idx3-ubyte' in str(error.value)


def test_a_version_is_tfds_business(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    with pytest.raises(ValueError, match='tfds build'):
        open_source('fashion_mnist:3.0.1', 'train')


def test_labels_that_are_not_those_of_the_images_are_refused(folder):
    (folder / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(encoded(np.zeros(19))))
    with pytest.raises(ValueError, match=r't10k images of shape \(20, 28, 28\) and labels'):
        open_source(f'fashion_mnist:{folder}', 'test')


def test_idx_keeps_shape_and_bytes(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / 'a').write_bytes(encoded(array))
    np.testing.assert_array_equal(idx.read(tmp_path / 'a'), array)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda c: c[:-1], 'holds 23 bytes of data; its header says 2 x 3 x 4 = 24'),
        (lambda c: c + b'0', 'holds 25 bytes'),
        (lambda c: c[:6], 'ends within its header of 16 bytes'),
        (lambda c: b'\0\0\x0d' + c[3:], 'begins with 00 00 0d 03'),
        (lambda c: b'', 'expected an idx file'),
        (lambda c: gzip.compress(c)[:-9], 'cannot be decompressed'),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, change, says):
    content = encoded(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    (tmp_path / 'a').write_bytes(change(content))
    with pytest.raises(ValueError, match=says):
        idx.read(tmp_path / 'a')
