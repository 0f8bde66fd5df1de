"""Sets that TFDS has prepared in ArrayRecord format, read as raw records."""

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ssljax.data import splits
from ssljax.data.faults import patiently
from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.sources import Labels, Source

_BLOCK = 4096
_ASKED_AT_ONCE = 32
_DAMAGED = re.compile('(Corrupted|Invalid) Riegeli/records file|ArrayRecord file should be')


@dataclasses.dataclass(frozen=True, eq=False)
class Records(Source):
    """Serialised examples in ArrayRecord files, parsed in the graph by blocks.

    TFDS's own decoding runs Python for every record; this runs it once for a block.

    Attributes:
        reader: `array_record`'s data source over the split's files.
        folder: where these lie.
        keys: the names of the image feature and of the label feature (None: no labels).
        identity: what the fingerprint is taken of.
    """

    reader: Any
    folder: str
    keys: tuple[str, str | None]
    identity: str

    @property
    def remote(self) -> bool:
        """Where the folder has a scheme."""
        return '://' in self.folder

    def fingerprint(self) -> str:
        """Of the set's version, its files' names and sizes, and the ranges read of them."""
        return hashlib.sha256(self.identity.encode()).hexdigest()

    def records(self, indices: Tensor) -> dict[str, Tensor]:
        """Reads and parses a block."""
        tf = tensorflow()

        def read(wanted: np.ndarray) -> np.ndarray:
            try:
                return np.array(self.reader.__getitems__(wanted.tolist()), object)
            except RuntimeError as error:
                # The reader has this type for all that happens to it. TensorFlow makes of a
                # ValueError an InvalidArgument, which is the data's own, of any other an Unknown.
                if _DAMAGED.search(str(error)):
                    raise ValueError(str(error)) from error
                raise

        raw = tf.ensure_shape(tf.numpy_function(read, [indices], tf.string), [None])
        image, label = self.keys
        features = {image: tf.io.FixedLenFeature([], tf.string)}
        if label is not None:
            features[label] = tf.io.FixedLenFeature([], tf.int64)
        parsed = tf.io.parse_example(raw, features)
        found = {'image': parsed[image]}
        if label is not None:
            found['label'] = tf.cast(parsed[label], tf.int32)
        return found

    def labels(self) -> Labels | None:
        """Read from the records, all of them; -1 for one that cannot be read."""
        if self.keys[1] is None:
            return None
        tf = tensorflow()
        # As a graph, whose errors are TensorFlow's, those of the reader too.
        number = tf.TensorSpec([None], tf.int64)
        read = tf.function(self.records, input_signature=[number], autograph=False)
        blocks = np.split(np.arange(self.examples), range(_BLOCK, self.examples, _BLOCK))
        return np.concatenate([_labels(read, block) for block in blocks])


def _labels(read: Callable[[Tensor], dict[str, Tensor]], indices: np.ndarray) -> Labels:
    tf = tensorflow()
    try:
        return patiently(lambda: read(tf.constant(indices))['label'].numpy())
    except tf.errors.OpError:
        if len(indices) == 1:
            return np.array([-1], np.int32)
        return np.concatenate([_labels(read, half) for half in np.array_split(indices, 2)])


def load(name: str, split: str) -> Source:
    """Opens a prepared set, looked for in `$TFDS_DATA_DIR` or TFDS's default folder.

    Args:
        name: as TFDS has it: `cifar10`, `cifar10:3.0.2`, `imagenet_resized/32x32`.
        split: as TFDS has it: `train`, `train[:45000]`, `train[:80%]+test`.

    Raises:
        ValueError: if the set is not prepared, not in ArrayRecord format or has no uint8 images,
            if a file is missing or the bucket it lies in is not read, or if there is no such split.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    info = _info(name)
    image, label = _features(name, info)
    splits.resolve(name, split, info.splits)
    part = info.splits[split]
    files = [file.filename for file in part.file_instructions]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:  # a bucket takes a while to answer each
        sizes = list(threads.map(_size, files))
    if None in sizes:
        missing = files[sizes.index(None)]
        raise ValueError(f'{name} is incomplete: {missing} is missing; {_prepare(name)}')
    read = [
        [os.path.basename(file.filename), size, file.skip, file.take]
        for file, size in zip(part.file_instructions, sizes, strict=True)
    ]
    height, width, channels = info.features[image].shape
    names = None
    if label is not None:
        classes = info.features[label]
        names = tuple(classes.names or map(str, range(classes.num_classes)))
    source = Records(
        name=f'{info.full_name}:{split}',
        examples=part.num_examples,
        channels=channels,
        class_names=names,
        encoded=True,
        size=None if height is None or width is None else (height, width),
        reader=ArrayRecordDataSource(part.file_instructions),
        folder=os.path.dirname(files[0]),
        keys=(image, label),
        identity=json.dumps([info.full_name, image, label, read]),
    )
    if source.remote:
        _try(source)
    return source


def _size(file: str) -> int | None:
    """Bytes of a file, on a disk or in a bucket; None if it is not there."""
    tf = tensorflow()
    try:
        return tf.io.gfile.stat(file).length
    except tf.errors.NotFoundError:
        return None


def _try(source: Records) -> None:
    """Reads one record: the reader goes to buckets by ways of its own, or not at all."""
    try:
        source.reader[0]
    except RuntimeError as error:
        raise ValueError(
            f'{source.folder} can be listed but its records cannot be read: {error}. Their '
            'reader needs array-record 0.8.3 or newer and application default credentials (gcloud '
            'auth application-default login). Or copy the set to a disk, or mount the bucket with '
            'gcsfuse, and set TFDS_DATA_DIR'
        ) from error


def _info(name: str) -> Any:
    """The set's description on disk; its code is not run, so it may come from anywhere."""
    from tensorflow_datasets.core import naming, read_only_builder, registered

    tensorflow()
    try:
        naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise ValueError(_unknown(name)) from error
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=_data_dir())
    except registered.DatasetNotFoundError as error:
        raise ValueError(_absent(name)) from error
    formats = sorted(form.value for form in builder.info.available_file_formats())
    if 'array_record' not in formats:
        raise ValueError(
            f'{name} is prepared as {", ".join(formats)} in {builder.data_path}; expected '
            f'array_record, which can be read by index. Move that folder away and {_prepare(name)}'
        )
    if builder.info.file_format.value != 'array_record':
        builder = read_only_builder.builder_from_directory(
            builder.data_path, file_format='array_record'
        )
    return builder.info


def _data_dir() -> str | None:
    return os.environ.get('TFDS_DATA_DIR') or None


def _prepare(name: str) -> str:
    where = f', data_dir={_data_dir()!r}' if _data_dir() else ''
    return (
        f'prepare it with `tfds build {name} --file_format=array_record` (needs apache-beam) or '
        f'`python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}'{where}, file_format='array_record').download_and_prepare()\"`"
    )


def _absent(name: str) -> str:
    """What to say of a set that is not on disk."""
    import tensorflow_datasets as tfds

    if name.split(':')[0].split('/')[0] not in tfds.list_builders(with_community_datasets=False):
        return _unknown(name)
    return (
        f'{name} is not prepared in {_data_dir() or tfds.core.constants.DATA_DIR} '
        f'(set TFDS_DATA_DIR if it lies elsewhere); {_prepare(name)}'
    )


def _unknown(name: str) -> str:
    """What to say of a name that nobody knows: the near ones, and what is expected."""
    import tensorflow_datasets as tfds

    known = ['fashion_mnist_10k', *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, known)
    meant = f'did you mean {" or ".join(near)}? ' if near else ''
    return (
        f'there is no data set {name!r}: {meant}Expected fashion_mnist_10k (embedded), the name of '
        f'a TFDS set prepared in {_data_dir() or tfds.core.constants.DATA_DIR}, '
        'folder:PATH (images) or arrays:PATH (.npz, .npy)'
    )


def _features(name: str, info: Any) -> tuple[str, str | None]:
    """The keys of the image and of the label: the supervised pair's, or the only ones there are."""
    import tensorflow_datasets as tfds

    supervised = info.supervised_keys or ()

    def only(kind: type) -> str | None:
        found = [key for key, feature in info.features.items() if isinstance(feature, kind)]
        named = [key for key in supervised if key in found]
        return named[0] if named else found[0] if len(found) == 1 else None

    image = only(tfds.features.Image)
    kinds = {key: type(feature).__name__ for key, feature in info.features.items()}
    held = ', '.join(f'{key}: {kinds[key]}' for key in sorted(kinds))
    if image is None:
        raise ValueError(f'{name} does not have one image an example; its features are {held}')
    feature = info.features[image]
    if feature.np_dtype != np.uint8 or feature.shape[-1] is None:
        raise ValueError(
            f'the images of {name} are {feature.np_dtype} with {feature.shape[-1]} channels; '
            'expected uint8 with a fixed number'
        )
    return image, only(tfds.features.ClassLabel)
