"""Images held in NumPy arrays, in memory or mapped from a file."""

import dataclasses
import hashlib
import tokenize
import zipfile
import zlib

import numpy as np
from jaxtyping import UInt8

from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.sources import Labels, Source

_SAMPLED = 1024
_MANY_CLASSES = 2**16
_UNREADABLE = (
    *(ValueError, EOFError, OSError, zipfile.BadZipFile),
    *(zlib.error, tokenize.TokenError, SyntaxError),
)
"""What NumPy raises over a damaged file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Source):
    """Images of one size in an array.

    Attributes:
        images: uint8 [examples, h, w, c].
        targets: int32 [examples], or None.
    """

    images: UInt8[np.ndarray, 'examples h w c']
    targets: Labels | None

    def fingerprint(self) -> str:
        """Of shape, labels and up to 1,024 evenly spaced images: maps need not be read whole."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for index in np.linspace(0, self.examples - 1, min(self.examples, _SAMPLED), dtype=int):
            digest.update(np.ascontiguousarray(self.images[index]))
        if self.targets is not None:
            digest.update(self.targets.tobytes())
        return digest.hexdigest()

    def records(self, indices: Tensor) -> dict[str, Tensor]:
        """Gathers with NumPy, so that a mapped file stays a mapped file."""
        tf = tensorflow()
        image = tf.numpy_function(lambda i: self.images[i], [indices], tf.uint8)
        found = {'image': tf.ensure_shape(image, [None, *self.images.shape[1:]])}
        if self.targets is not None:
            with tf.init_scope():
                targets = tf.constant(self.targets)
            found['label'] = tf.gather(targets, indices)
        return found

    def labels(self) -> Labels | None:
        """The array of labels."""
        return self.targets


def from_arrays(
    name: str,
    image: np.ndarray,
    label: np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Arrays:
    """A source over arrays.

    Args:
        name: what messages call it.
        image: uint8 [n, h, w] (grey) or [n, h, w, c].
        label: integers [n], from 0; None for images without labels.
        class_names: one name per label; default: the numbers.

    Raises:
        ValueError: if dtype, shape or number do not fit.
    """
    if image.dtype != np.uint8:
        raise ValueError(
            f'the images of {name} are {image.dtype}; expected uint8 in [0, 255]; '
            'scale, round and convert them with astype(np.uint8)'
        )
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(
            f'the images of {name} have shape {image.shape}; '
            'expected [n, height, width] or [n, height, width, channels], none of them 0'
        )
    image = image[..., None] if image.ndim == 3 else image
    if label is not None:
        label, class_names = _checked(name, label, len(image), class_names)
    n, height, width, channels = image.shape
    return Arrays(
        name=name,
        examples=n,
        channels=channels,
        class_names=class_names,
        encoded=False,
        size=(height, width),
        images=image,
        targets=label,
    )


def _checked(
    name: str, label: np.ndarray, examples: int, class_names: tuple[str, ...] | None
) -> tuple[Labels, tuple[str, ...]]:
    if not np.issubdtype(label.dtype, np.integer) or label.shape != (examples,):
        raise ValueError(
            f'the labels of {name} are {label.dtype} of shape {label.shape}; '
            f'expected integers of shape ({examples},), one per image'
        )
    most = int(label.max())
    if class_names is None and most >= max(examples, _MANY_CLASSES):
        raise ValueError(
            f'the labels of {name} go up to {most}, of {examples} images; number the classes from 0'
        )
    names = tuple(map(str, range(most + 1))) if class_names is None else class_names
    if label.min() < 0 or label.max() >= len(names):
        raise ValueError(
            f'the labels of {name} run from {label.min()} to {label.max()}; '
            f'expected 0 to {len(names) - 1}, one number per class'
        )
    return label.astype(np.int32), names


def load(path: str) -> Arrays:
    """Opens `.npz` (keys `image` and, where there are labels, `label`) or `.npy` (images, mapped).

    Raises:
        ValueError: if there is no such file, or it does not hold images.
    """
    from etils import epath

    file = epath.Path(path).expanduser()
    if not file.exists():
        raise ValueError(f'there is no file {path}; give the path of an .npz or .npy file')
    try:
        if file.suffix == '.npz':
            with file.open('rb') as stream:
                archive = np.load(stream, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise ValueError('it holds one array; call it .npy')
                held = {key: archive[key] for key in ('image', 'label') if key in archive}
                keys = archive.files
        elif '://' not in path:
            # Mapped: read by the pages, however large the file.
            held = {'image': np.load(file, mmap_mode='r', allow_pickle=False)}
        else:
            with file.open('rb') as stream:
                held = {'image': np.load(stream, allow_pickle=False)}
        if not isinstance(held.get('image', np.empty(0)), np.ndarray):
            raise ValueError('it is an archive; call it .npz')
    except _UNREADABLE as error:
        raise ValueError(
            f'{path} cannot be read as NumPy arrays without executing code: {error}'
        ) from error
    if 'image' not in held:
        raise ValueError(f"{path} holds {keys}; expected the key 'image' (and 'label')")
    return from_arrays(path, held['image'], held.get('label'))
