import hashlib
import importlib.resources
import re

import numpy as np
import pytest
import tensorflow as tf

from ssljax.data import fashion
from ssljax.data.registry import open_source


@pytest.mark.parametrize(
    ('split', 'examples'), [('train', 7000), ('validation', 1000), ('test', 2000)]
)
def test_every_class_comes_equally_often(split, examples):
    source = open_source('fashion_mnist_10k', split)
    assert (source.examples, source.channels, source.size) == (examples, 1, (28, 28))
    assert len(source.class_names) == 10
    np.testing.assert_array_equal(np.bincount(source.labels()), [examples // 10] * 10)


def test_the_splits_are_disjoint_and_make_up_the_archive():
    images, labels = fashion._archive()
    order = fashion.split_of(labels)
    assert sorted(np.concatenate(list(order.values()))) == list(range(10_000))
    assert len({image.tobytes() for image in images}) > 9_990
    for split, held in order.items():
        source = open_source('fashion_mnist_10k', split)
        records = source.records(tf.range(source.examples, dtype=tf.int64))
        np.testing.assert_array_equal(records['image'][..., 0], images[held])
        np.testing.assert_array_equal(source.labels(), labels[held])


def test_the_split_never_changes():
    """Tuned values and published numbers hang on it."""
    order = fashion.split_of(fashion._archive()[1])
    digests = {
        split: hashlib.sha256(held.astype('<i8').tobytes()).hexdigest()[:16]
        for split, held in order.items()
    }
    assert digests == {
        'train': '758644324e18b504',
        'validation': '1ea18cc9a1186060',
        'test': '8e3635516000571d',
    }


def test_the_files_are_those_of_their_origin():
    folder = importlib.resources.files('ssljax.data') / 'fashion_mnist'
    listed = dict(
        reversed(line.split('  '))
        for line in (folder / 'ORIGIN').read_text().splitlines()
        if re.match('[0-9a-f]{64}  ', line)
    )
    assert set(listed) == {'t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert 'MIT' in (folder / 'LICENSE').read_text()


def test_the_archive_is_read_as_its_format_says():
    """The first labels of the test archive as its authors print them; classes look different."""
    images, labels = fashion._archive()
    assert [fashion.CLASSES[label] for label in labels[:4]] == [
        'Ankle boot', 'Pullover', 'Trouser', 'Trouser',
    ]  # fmt: skip
    means = np.stack([images[labels == label].mean(0) for label in range(10)])
    middle_column = means[:, 20:, 13:15].mean((1, 2))
    assert middle_column[fashion.CLASSES.index('Trouser')] < 0.5 * np.median(middle_column)


def test_slices_and_unknown_splits():
    assert open_source('fashion_mnist_10k', 'train[:10%]+test[:5]').examples == 705
    with pytest.raises(ValueError, match=r'validation \(1,000\)'):
        open_source('fashion_mnist_10k', 'val')
    with pytest.raises(ValueError, match='is empty'):
        open_source('fashion_mnist_10k', 'train[5:5]')
