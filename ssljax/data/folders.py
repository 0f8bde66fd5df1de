"""Folders of JPEG and PNG files, with or without a subfolder per class."""

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator

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
        """Of files, classes and channels; not of the files' contents, nor of where they lie."""
        told = (*self.files, '', *(self.class_names or ()), '', str(self.channels))
        digest = hashlib.sha256('\0'.join(told).encode('utf-8', 'surrogateescape'))
        if self.targets is not None:
            digest.update(self.targets.tobytes())
        return digest.hexdigest()

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
    images directly in `root` have no labels. A folder whose only subfolders with images are called
    `train`, `val`, `validation` or `test` has these as its splits, and the classes one level below;
    any other is one split, `train`. A slice of a split takes its files in a fixed shuffled order
    (by the hash of their paths: in the sorted order the last tenth would be the last classes).
    Hidden files, other suffixes and folders without images are ignored.

    The images are grey (one channel) if all of 64 evenly spaced files are, otherwise colour; each
    is converted to that as it is decoded.

    Args:
        root: a local path or one with a scheme TensorFlow reads, such as `gs://bucket/images`.
        split: as in TFDS.

    Raises:
        ValueError: if there is no such folder, nothing in it, or nothing that can be decoded; if it
            has splits and other images beside them, or links that lead round in a circle.
    """
    root = (root if '://' in root else os.path.abspath(os.path.expanduser(root))).rstrip('/')
    if not tensorflow().io.gfile.isdir(root):
        raise ValueError(f'there is no folder {root}; give a folder of JPEG or PNG files')
    below = [name for name in _entries(root) if _is_folder(root, name)]
    named = [name for name in below if name in SPLITS]
    depth = int(bool(named) and not _beside(root, named, below))
    if depth:
        # Only the splits that are asked for are listed, since a listing may take minutes; but the
        # classes are those of all, lest a class absent from one shift the labels of the others.
        asked = {part.split('[')[0].strip() for part in split.split('+')}
        parts = [part for part in named if part in asked or 'all' in asked] or named
        lists = {part: [f'{part}/{file}' for file in _files(f'{root}/{part}')] for part in parts}
        classes = {f.split('/')[1] for part in lists.values() for f in part if f.count('/') > 1}
        for part in named:
            inside = set(_entries(f'{root}/{part}')) - classes
            classes |= {n for n in inside if _is_folder(f'{root}/{part}', n)
                        and _holds_images(f'{root}/{part}/{n}')}  # fmt: skip
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


def _beside(root: str, named: list[str], below: list[str]) -> list[str]:
    """The subfolders with images in them that are not called as splits are."""
    others = [name for name in below if name not in named and _holds_images(f'{root}/{name}')]
    if others and len(named) > 1:
        raise ValueError(
            f'{root} holds {", ".join(named)}, which are splits, and beside them images in '
            f'{", ".join(others[:5])}, as if all of these were classes; move the latter away'
        )
    return others


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
    except UnicodeDecodeError as error:
        raise ValueError(
            f'in {folder} is a file whose name is not UTF-8 ({error.object!r}); rename it'
        ) from error
    return sorted((name for name in names if name[0] != '.'), key=os.fsencode)


def _is_folder(parent: str, name: str) -> bool:
    """By suffix first: asking a bucket about each of a million files would take hours."""
    return not _is_image(name) and tensorflow().io.gfile.isdir(f'{parent}/{name}')


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _files(folder: str) -> list[str]:
    """All image files below a folder, as paths relative to it, sorted bytewise."""
    return sorted(_walk(folder), key=os.fsencode)


def _holds_images(folder: str) -> bool:
    return next(_walk(folder), None) is not None


def _walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The image files below a folder, as they come; `above` are the folders that it lies in."""
    if '://' not in folder:
        real = os.path.realpath(folder)
        if real in above:
            raise ValueError(
                f'{folder} is a link to {real}, in which it lies: its images would never end; '
                'remove the link'
            )
        above = (*above, real)
    for name in _entries(folder):
        if _is_image(name):
            yield name
        elif _is_folder(folder, name):
            for file in _walk(f'{folder}/{name}', above):
                yield f'{name}/{file}'


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
        # Pillow's, of what is no image, and of one too large for it to look at.
        with contextlib.suppress(OSError, Image.DecompressionBombError):
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
