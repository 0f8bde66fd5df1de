"""Folders of JPEG and PNG files, with or without a subfolder per class."""

import contextlib
import dataclasses
import hashlib
import io
import os

import numpy as np

from ssljax.data import splits
from ssljax.data.faults import patiently
from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.sources import Labels, Source

SUFFIXES = ('.jpg', '.jpeg', '.png')
SPLITS = ('train', 'val', 'validation', 'test')
_SAMPLED = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Folder(Source):
    """Image files, read where TensorFlow can read: local disks, `gs://`, `ram://`.

    Attributes:
        root: the folder.
        files: their paths below `root`, sorted bytewise.
        targets: int32 [examples], or None.
    """

    root: str
    files: tuple[str, ...]
    targets: Labels | None

    @property
    def remote(self) -> bool:
        """Where the path has a scheme."""
        return '://' in self.root

    def fingerprint(self) -> str:
        """Of the list of files; not of their contents, nor of where the folder lies."""
        return hashlib.sha256('\0'.join(self.files).encode('utf-8', 'surrogateescape')).hexdigest()

    def records(self, indices: Tensor) -> dict[str, Tensor]:
        """Reads the files in the graph."""
        tf = tensorflow()
        with tf.init_scope():
            paths = tf.constant([os.fsencode(self._path(file)) for file in self.files])
            targets = None if self.targets is None else tf.constant(self.targets)
        wanted = tf.gather(paths, indices)
        found = {'image': tf.map_fn(tf.io.read_file, wanted, fn_output_signature=tf.string)}
        if targets is not None:
            found['label'] = tf.gather(targets, indices)
        return found

    def labels(self) -> Labels | None:
        """By the subfolders."""
        return self.targets

    def where(self, index: int) -> str:
        """The file's path."""
        return self._path(self.files[index])

    def _path(self, file: str) -> str:
        return f'{self.root}/{file}'


def load(root: str, split: str) -> Source:
    """Opens a folder of images.

    Images in subfolders are labelled by the subfolder of `root` they lie in, sorted bytewise;
    images directly in `root` have no labels. A folder whose only subfolders are called `train`,
    `val`, `validation` or `test` has these as its splits, and the classes one level below; any
    other is one split, `train`. A slice of a split takes its files in a fixed shuffled order (by
    the hash of their paths: in the sorted order the last tenth would be the last classes). Hidden
    files and other suffixes are ignored.

    The images are grey (one channel) if all of 64 evenly spaced files are, otherwise colour; each
    is converted to that as it is decoded.

    Args:
        root: a local path or one with a scheme TensorFlow reads, such as `gs://bucket/images`.
        split: as in TFDS.

    Raises:
        ValueError: if there is no such folder, nothing in it, or nothing that can be decoded.
    """
    root = (root if '://' in root else os.path.abspath(os.path.expanduser(root))).rstrip('/')
    if not tensorflow().io.gfile.isdir(root):
        raise ValueError(f'there is no folder {root}; give a folder of JPEG or PNG files')
    below = [name for name in _entries(root) if _is_folder(root, name)]
    depth = int(bool(below) and set(below) <= set(SPLITS))
    if depth:
        # Only the splits that are asked for are listed, since a listing may take minutes; but the
        # classes are those of all, lest a class absent from one shift the labels of the others.
        asked = {part.split('[')[0].strip() for part in split.split('+')}
        parts = [part for part in below if part in asked or 'all' in asked] or below
        lists = {part: [f'{part}/{file}' for file in _files(f'{root}/{part}')] for part in parts}
        classes = {
            name
            for part in below
            for name in _entries(f'{root}/{part}')
            if _is_folder(f'{root}/{part}', name)
        }
    else:
        lists = {'train': _files(root)}
        classes = {file.split('/')[0] for file in lists['train'] if '/' in file}
    files = [file for part in lists.values() for file in part]
    whole = _folder(root, files, sorted(classes, key=os.fsencode), depth)
    ends = np.cumsum([0, *map(len, lists.values())])
    order = {part: np.arange(ends[i], ends[i + 1]) for i, part in enumerate(lists)}
    ranges = splits.resolve(
        root, split, splits.table({part: len(held) for part, held in order.items()})
    )
    for part, start, stop in ranges:
        if stop - start < len(order[part]):
            order[part] = _shuffled(whole.files, order[part])
    return whole.select(splits.positions(ranges, order), f'{root}:{split}')


def _folder(root: str, files: list[str], classes: list[str], depth: int) -> Folder:
    if not files:
        raise ValueError(
            f'{root} holds no images; expected files that end in {", ".join(SUFFIXES)}, '
            'in the folder itself or in one subfolder per class'
        )
    number = {name: label for label, name in enumerate(classes)}
    found = [file.split('/')[depth] if file.count('/') > depth else None for file in files]
    bare = found.count(None)
    if 0 < bare < len(files):
        raise ValueError(
            f'{root} holds {bare} images beside its subfolders and {len(files) - bare} inside '
            'them; put all of them into subfolders (one per class) or none'
        )
    labelled = bare == 0
    return Folder(
        name=root,
        examples=len(files),
        channels=_channels(root, files),
        class_names=tuple(classes) if labelled else None,
        encoded=True,
        size=None,
        root=root,
        files=tuple(files),
        targets=np.array([number[name] for name in found], np.int32) if labelled else None,
    )


def _entries(folder: str) -> list[str]:
    """The names in a folder that are not hidden, bytewise (buckets end folders with a slash)."""
    tf = tensorflow()
    try:
        names = {name.rstrip('/') for name in tf.io.gfile.listdir(folder)}
    except tf.errors.OpError as error:
        raise ValueError(f'the folder {folder} cannot be listed: {error.message}') from error
    return sorted((name for name in names if name[0] != '.'), key=os.fsencode)


def _is_folder(parent: str, name: str) -> bool:
    """By suffix first: asking a bucket about each of a million files would take hours."""
    return not _is_image(name) and tensorflow().io.gfile.isdir(f'{parent}/{name}')


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _files(folder: str) -> list[str]:
    """All image files below a folder, as paths relative to it, sorted bytewise."""
    found = []
    for name in _entries(folder):
        if _is_image(name):
            found.append(name)
        elif _is_folder(folder, name):
            found += [f'{name}/{file}' for file in _files(f'{folder}/{name}')]
    return sorted(found, key=os.fsencode)


def _shuffled(files: tuple[str, ...], indices: np.ndarray) -> np.ndarray:
    """The indices in the order of their paths' hashes, which no other file's coming changes."""
    digest = [hashlib.sha256(os.fsencode(files[index])).digest() for index in indices]
    return indices[sorted(range(len(indices)), key=digest.__getitem__)]


def _channels(root: str, files: list[str]) -> int:
    """1 if all of the sampled images are grey, otherwise 3."""
    from PIL import Image

    modes = set()
    for index in np.linspace(0, len(files) - 1, min(len(files), _SAMPLED), dtype=int):
        contents = _contents(f'{root}/{files[index]}')
        with contextlib.suppress(OSError):  # Pillow's, of what is no image
            modes.add(Image.open(io.BytesIO(contents)).mode)
    if not modes:
        raise ValueError(
            f'none of the {min(len(files), _SAMPLED)} files looked at in {root} is an image '
            f'(the first: {files[0]}); expected JPEG or PNG files'
        )
    return 1 if all(mode in ('1', 'L', 'LA', 'I', 'I;16', 'I;16B') for mode in modes) else 3


def _contents(path: str) -> bytes:
    """The bytes of a file; none of one that is gone."""
    tf = tensorflow()

    def read() -> bytes:
        with tf.io.gfile.GFile(path, 'rb') as stream:
            return stream.read()

    try:
        return patiently(read)
    except tf.errors.OpError:
        return b''
