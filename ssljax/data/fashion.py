"""The embedded data set: 10,000 real images, so that a first run needs nothing from the network."""

import functools
import gzip
import importlib.resources

import numpy as np
from jaxtyping import Int, UInt8

from ssljax.data import splits
from ssljax.data.arrays import from_arrays
from ssljax.data.sources import Labels, Source

NAME = 'fashion_mnist_10k'

CLASSES = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
)


def load(split: str) -> Source:
    """A split of `fashion_mnist_10k`: `train` 7,000, `validation` 1,000, `test` 2,000.

    Grey, 28 x 28, ten classes in equal numbers in each split. Origin and licence lie beside the
    files; the split is described in `split_of`.
    """
    images, labels = _archive()
    order = split_of(labels)
    ranges = splits.resolve(
        NAME, split, splits.table({key: len(held) for key, held in order.items()})
    )
    whole = from_arrays(NAME, images, labels, CLASSES)
    return whole.select(splits.positions(ranges, order), f'{NAME}:{split}')


def split_of(labels: Labels) -> dict[str, Int[np.ndarray, '_']]:
    """The fixed split: by the rank r of an example among those of its class, in archive order.

    r % 10 in 0..6 is train, 7 validation, 8 and 9 test. So every class is cut 700 / 100 / 200, no
    random number generator is involved, and each split keeps the archive's order.

    Returns:
        For each split the indices of its examples, int64, ascending.
    """
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    part = rank % 10
    return {
        'train': np.flatnonzero(part < 7),
        'validation': np.flatnonzero(part == 7),
        'test': np.flatnonzero(part > 7),
    }


@functools.cache
def _archive() -> tuple[UInt8[np.ndarray, '10000 28 28'], Labels]:
    """The files are in idx format: a header of 4 bytes and one int32 per axis, then the bytes."""
    folder = importlib.resources.files('ssljax.data') / 'fashion_mnist'
    images = gzip.decompress((folder / 't10k-images-idx3-ubyte.gz').read_bytes())
    labels = gzip.decompress((folder / 't10k-labels-idx1-ubyte.gz').read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int32)
