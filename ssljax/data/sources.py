"""Sources: random access to the records of a data set, by index and by blocks."""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Int, Int32

from ssljax.data.graph import Tensor, tensorflow

Labels = Int32[np.ndarray, 'examples']


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set, or a part of one: record i is the same for as long as `fingerprint` is.

    Attributes:
        name: what it was opened as, for messages.
        examples: number of records.
        channels: image channels of every picture it gives.
        class_names: the classes by label, or None where there are no labels.
        encoded: whether `records` gives the bytes of image files rather than pixels.
        size: (height, width) where all images are of one known size, otherwise None.
    """

    name: str
    examples: int
    channels: int
    class_names: tuple[str, ...] | None
    encoded: bool
    size: tuple[int, int] | None

    @property
    def remote(self) -> bool:
        """Whether a read waits for a network: many are then made at the same time."""
        return False

    def fingerprint(self) -> str:
        """A digest (hex) that changes when an index would mean another record."""
        raise NotImplementedError

    def records(self, indices: Tensor) -> dict[str, Tensor]:
        """Adds the reading of a block of records to the current graph.

        Args:
            indices: int64 [m], each in [0, examples).

        Returns:
            `image`: [m] strings where `encoded`, otherwise uint8 [m, h, w, c]; and, where the
            source has labels, `label`: int32 [m].
        """
        raise NotImplementedError

    def labels(self) -> Labels | None:
        """The label of every record in index order, or None."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """What a person would look for to find record `index`."""
        return f'record {index} of {self.name}'

    def select(self, positions: Int[np.ndarray, 'm'], name: str) -> 'Source':
        """The part of this source that consists of the records at `positions`, in that order."""
        if len(positions) == self.examples and np.array_equal(positions, np.arange(self.examples)):
            return dataclasses.replace(self, name=name)
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(Source)}
        shown |= {'name': name, 'examples': len(positions)}
        return Subset(**shown, parent=self, positions=positions.astype(np.int64))

    def spread(self, count: int) -> 'Source':
        """At most `count` records, spread evenly: sorted classes all have their share."""
        if count >= self.examples:
            return self
        positions = np.linspace(0, self.examples - 1, count).round().astype(np.int64)
        return self.select(positions, f'{self.name}, {count} of {self.examples}')


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(Source):
    """Some records of another source.

    Attributes:
        parent: where they come from.
        positions: int64 [examples], their indices there.
    """

    parent: Source
    positions: Int[np.ndarray, 'examples']

    @property
    def remote(self) -> bool:
        """As the parent."""
        return self.parent.remote

    def fingerprint(self) -> str:
        """The parent's and the positions'."""
        digest = hashlib.sha256(self.parent.fingerprint().encode())
        digest.update(self.positions.tobytes())
        return digest.hexdigest()

    def records(self, indices: Tensor) -> dict[str, Tensor]:
        """The parent's records at the positions."""
        tf = tensorflow()
        with tf.init_scope():  # held once, outside the graph, whatever its length
            positions = tf.constant(self.positions)
        return self.parent.records(tf.gather(positions, indices))

    def labels(self) -> Labels | None:
        """The parent's labels at the positions."""
        labels = self.parent.labels()
        return None if labels is None else labels[self.positions]

    def where(self, index: int) -> str:
        """Named in the parent."""
        return self.parent.where(int(self.positions[index]))
