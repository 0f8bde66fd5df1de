"""`fashion_mnist`: all 70,000 images of Fashion-MNIST, from its four idx files.

H. Xiao, K. Rasul, R. Vollgraf 2017, arXiv 1708.07747. The files are those of Debian's package
dataset-fashion-mnist (MIT licence); others of the same names and form will do.
"""

import functools
import os

import numpy as np
from etils import epath

from ssljax.data import idx, splits
from ssljax.data.arrays import Arrays, from_arrays
from ssljax.data.fashion import CLASSES
from ssljax.data.sources import Source

NAME = 'fashion_mnist'

VARIABLE = 'SSLJAX_FASHION_MNIST'
"""Environment variable that may name the folder."""

FOLDER = '/usr/share/datasets/fashion-mnist'
"""Where Debian has it."""

FILES = {'train': 'train', 'test': 't10k'}
"""What the files of a split begin with."""

_KINDS = ('images-idx3', 'labels-idx1')


def load(split: str, folder: str | None = None) -> Source:
    """A split of `fashion_mnist`: `train` 60,000, `test` 10,000, with slices.

    The embedded `fashion_mnist_10k` is cut from this `test`: what has seen one must not be scored
    on the other.

    Args:
        split: in TFDS's syntax.
        folder: where the files are; None for that in SSLJAX_FASHION_MNIST, or Debian's.

    Raises:
        ValueError: the files are not there (and how to get them) or damaged, or there is no such
            split.
    """
    place = os.path.expanduser(folder or os.environ.get(VARIABLE) or FOLDER)
    wanted = [f'{start}-{kind}-ubyte' for start in FILES.values() for kind in _KINDS]
    missing = [name for name in wanted if _file(place, name) is None]
    if missing:
        raise ValueError(
            f'{place} has no {missing[0]}.gz of Fashion-MNIST; get the files by `apt-get install '
            f'dataset-fashion-mnist`, or name a folder that has them: {NAME}:FOLDER, or the '
            f'environment variable {VARIABLE}. TFDS has the set as {NAME}:3.0.1. '
            'fashion_mnist_10k is in the package'
        )
    whole, sizes = _archive(place)
    ranges = splits.resolve(NAME, split, splits.table(sizes))
    order = {
        'train': np.arange(sizes['train']),
        'test': np.arange(sizes['train'], sizes['train'] + sizes['test']),
    }
    return whole.select(splits.positions(ranges, order), f'{NAME}:{split}')


def _file(folder: str, name: str) -> epath.Path | None:
    """A file of that name in a folder, compressed or not."""
    for path in (epath.Path(folder) / f'{name}.gz', epath.Path(folder) / name):
        if path.exists():
            return path
    return None


@functools.cache
def _archive(folder: str) -> tuple[Arrays, dict[str, int]]:
    """Both splits in one source, train first, and their sizes."""
    images, labels = [], []
    for start in FILES.values():
        image, label = (idx.read(_file(folder, f'{start}-{kind}-ubyte')) for kind in _KINDS)
        if image.ndim != 3 or label.shape != image.shape[:1]:
            raise ValueError(
                f'{folder} has {start} images of shape {image.shape} and labels of shape '
                f'{label.shape}; expected [n, height, width] and [n]'
            )
        images.append(image)
        labels.append(label.astype(np.int32))
    sizes = {split: len(label) for split, label in zip(FILES, labels, strict=True)}
    whole = from_arrays(NAME, np.concatenate(images), np.concatenate(labels), CLASSES)
    return whole, sizes
