"""Opening a source by its name."""

import os

import numpy as np

from ssljax.data import splits
from ssljax.data.sources import Source


def open_source(name: str, split: str) -> Source:
    """Opens one split of a data set.

    Args:
        name: one of

            - `fashion_mnist_10k`, embedded in the package; `made_images`, made on the spot;
            - `fashion_mnist`, `fashion_mnist:FOLDER`: all of it, from its idx files (see
              `fashion_full.load`);
            - the name of a TFDS set prepared in ArrayRecord format: `cifar10`, `cifar10:3.0.2`;
            - `folder:PATH`, or a path: a folder of JPEG and PNG files (see `folders.load`);
            - `arrays:PATH`, or a path that ends in `.npz` or `.npy` (see `arrays.load`).

            Paths may be `gs://` paths. A path without a prefix has to begin with `/`, `.` or `~`,
            have a scheme, or be there: `imagenet_resized/32x32` is a TFDS set.
        split: in TFDS's syntax: `train`, `train[:80%]`, `train[100:]+test`. Arrays have one
            split, `train`; folders have `train` or those their subfolders name.

    Returns:
        The source.

    Raises:
        ValueError: if there is no such data set or split, saying what there is.
    """
    kind, _, rest = name.partition(':')
    if kind in ('folder', 'arrays') and not rest:
        raise ValueError(f'{name!r} names no path; expected {name}PATH')
    if kind not in ('folder', 'arrays', 'fashion_mnist'):
        kind, rest = _kind(name), name
    if kind == 'arrays':
        return _arrays(rest, split)
    if kind == 'folder':
        from ssljax.data import folders

        return folders.load(rest, split)
    from ssljax.data import fashion, fashion_full, made

    for held in (fashion, fashion_full, made):
        if name == held.NAME:
            return held.load(split)
    if kind == fashion_full.NAME and _kind(rest) == 'folder':
        return fashion_full.load(split, rest)
    from ssljax.data import arrayrecord

    return arrayrecord.load(name, split)


def _kind(name: str) -> str:
    if name.endswith(('.npz', '.npy')):
        return 'arrays'
    looks = name.startswith(('/', '.', '~')) or '://' in name
    return 'folder' if looks or ('/' in name and os.path.isdir(name)) else 'named'


def _arrays(path: str, split: str) -> Source:
    from ssljax.data import arrays

    whole = arrays.load(path)
    ranges = splits.resolve(path, split, splits.table({'train': whole.examples}))
    order = {'train': np.arange(whole.examples)}
    return whole.select(splits.positions(ranges, order), f'{path}:{split}')
