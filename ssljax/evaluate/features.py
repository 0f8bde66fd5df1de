"""Features of a whole data split: every example once, in index order, on the host."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Float32, Int, UInt8

from ssljax.core import Embed

_IN_FLIGHT = 4
"""Batches dispatched ahead of the one being copied to the host."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What an encoder makes of a data split.

    Attributes:
        features: one row per example, float32 [n, d].
        labels: class ids [n], or None for data without labels.
        index: the example's position in its data set [n], ascending.
    """

    features: Float32[np.ndarray, 'n d']
    labels: Int[np.ndarray, ' n'] | None
    index: Int[np.ndarray, ' n']

    @classmethod
    def of(
        cls,
        features: Float[np.ndarray, 'n d'] | Float[Array, 'n d'],
        labels: Int[np.ndarray, ' n'] | Int[Array, ' n'] | None = None,
    ) -> 'Features':
        """Features from plain arrays whose rows are the examples 0, 1, ..., n - 1."""
        features = np.asarray(features, np.float32)
        labels = None if labels is None else np.asarray(labels, np.int32)
        return cls(features, labels, np.arange(len(features), dtype=np.int32))

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Int[np.ndarray, ' m']) -> 'Features':
        """The named rows, in the order given."""
        labels = None if self.labels is None else self.labels[rows]
        return Features(self.features[rows], labels, self.index[rows])

    def targets(self) -> Int[np.ndarray, ' n']:
        """The labels.

        Raises:
            ValueError: the data has none.
        """
        if self.labels is None:
            raise ValueError(
                f'these {len(self)} examples have no labels; probes and kNN need a label for every '
                'example: use a source with labels, or measure collapse only'
            )
        return self.labels


def pixels(image: UInt8[np.ndarray, 'n h w c'] | UInt8[Array, 'n h w c']) -> Float[Array, 'n d']:
    """The encoder that does nothing: raw pixels in [0, 1], flattened. The floor of every table."""
    image = jnp.asarray(image)
    return image.reshape(image.shape[0], -1).astype(jnp.float32) / 255


def extract(
    embed: Embed, batches: Iterable[Mapping[str, np.ndarray]], examples: int = 0
) -> Features:
    """Embeds a whole split, each example exactly once.

    The device is kept busy: a batch is copied to the host while the next ones compute, and no more
    than a few batches of features are held on the device.

    Args:
        embed: uint8 images [b, h, w, c] -> features [b, d]; may be jitted and sharded, since
            every batch has the same size.
        batches: evaluation batches, dicts of `image` uint8 [b, h, w, c], `index` int [b], `valid`
            bool [b] (False marks the padding of the last batch) and, if there are labels, `label`
            int [b].
        examples: at most in the split. As many are held at once: features of more than that, or
            out of order, are copied as they grow.

    Returns:
        The features in ascending order of the index, whatever the order of the batches.

    Raises:
        ValueError: there is no example, or one comes twice.
    """
    features, index, labels = _Rows(examples), [], []
    pending = collections.deque()

    def collect() -> None:
        output, valid = pending.popleft()
        if not getattr(output, 'is_fully_addressable', True):
            output = multihost_utils.process_allgather(output, tiled=True)
        features.append(np.asarray(output, np.float32)[valid])

    for batch in batches:
        valid = np.asarray(batch['valid'], bool)
        output = embed(batch['image'])
        if isinstance(output, jax.Array) and output.is_fully_addressable:
            output.copy_to_host_async()
        pending.append((output, valid))
        index.append(np.asarray(batch['index'])[valid])
        if 'label' in batch:
            labels.append(np.asarray(batch['label'])[valid])
        if len(pending) > _IN_FLIGHT:
            collect()
    while pending:
        collect()

    if not sum(map(len, index)):
        raise ValueError('no example to embed; the split is empty or every row is marked invalid')
    order, first = np.unique(np.concatenate(index), return_index=True)
    total = sum(map(len, index))
    if len(order) != total:
        raise ValueError(
            f'{total} rows hold {len(order)} different examples; each must come exactly once: mark '
            'padding with valid=False'
        )
    return Features(
        features=features.taken(first),
        labels=np.concatenate(labels)[first].astype(np.int32) if labels else None,
        index=order.astype(np.int32),
    )


class _Rows:
    """Rows as they come, in one array: the features of a large set fit in memory once, not twice.

    Args:
        promised: rows that there is room for from the start.
    """

    def __init__(self, promised: int):
        self._promised, self._array, self._count = promised, None, 0

    def append(self, rows: Float32[np.ndarray, 'b d']) -> None:
        """Adds rows behind the others."""
        end = self._count + len(rows)
        if self._array is None:
            self._array = np.empty((max(self._promised, end), rows.shape[1]), np.float32)
        elif end > len(self._array):
            larger = np.empty((2 * end, rows.shape[1]), np.float32)
            larger[: self._count] = self._array[: self._count]
            self._array = larger
        self._array[self._count : end] = rows
        self._count = end

    def taken(self, order: Int[np.ndarray, ' n']) -> Float32[np.ndarray, 'n d']:
        """All rows in this order; not copied where they came in it."""
        found = self._array[: self._count]
        return found if np.array_equal(order, np.arange(self._count)) else found[order]
