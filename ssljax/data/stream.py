"""The two ways a stream of examples is computed: fast, and carefully round corrupt records."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ssljax.data.graph import Tensor, cores, tensorflow
from ssljax.data.sources import Source

_BLOCK = 64
_REMOTE_READS = 64
_CAREFUL_BYTES = 2**21


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """A sequence of examples, each a function of its place in the sequence alone.

    Attributes:
        source: where records come from.
        place: int64 [m] places in the sequence -> (`index` in the source, `position` in the run),
            int64 [m] each.
        view: (record without its block axis, position) -> what the example consists of.
        neighbours: the records tried in place of a corrupt one, as distances from its index.
        blank: whether an example of zeros is given where none of them can be read either.
    """

    source: Source
    place: Callable[[Tensor], tuple[Tensor, Tensor]]
    view: Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]
    neighbours: tuple[int, ...]
    blank: bool

    def fast(self, start: int, stop: int) -> Tensor:
        """Examples `start` to `stop`; a corrupt record raises."""
        block, calls = self.reads()
        read = _map(_places(start, stop, block), self._read, calls)
        return _map(read.unbatch(), self._example, cores())

    def careful(self, start: int, stop: int) -> Tensor:
        """The same, with a substitute for every record that cannot be read or decoded.

        A block is computed as in `fast`, its errors ignored; behind it stands a version that goes
        record by record, and the first of the two that came out whole is taken.
        """
        tf = tensorflow()
        like = self.fast(0, 1).element_spec
        size = sum(spec.dtype.size * math.prod(spec.shape) for spec in like.values())
        block = max(1, min(_BLOCK, _CAREFUL_BYTES // size))

        def compute(places: Tensor) -> dict[str, Tensor]:
            count = tf.size(places, tf.int64)
            together = _map(tf.data.Dataset.from_tensors(places), self._read).unbatch()
            together = _map(together, self._example).batch(count, drop_remainder=True)
            alone = tf.data.Dataset.from_tensor_slices(places)
            alone = _map(alone, lambda place: self._rescued(place, like)).batch(count)
            return together.ignore_errors().concatenate(alone).take(1).get_single_element()

        return _map(_places(start, stop, block), compute, self.reads()[1]).unbatch()

    def reads(self) -> tuple[int, int]:
        """Records a block, and blocks read at the same time: many where reading is waiting."""
        return (1, _REMOTE_READS) if self.source.remote else (_BLOCK, cores())

    def diagnosis(self, start: int, stop: int) -> str:
        """The first of the examples that cannot be made, and why."""
        tf = tensorflow()
        for place in range(start, stop):
            try:
                next(iter(self.fast(place, place + 1)))
            except tf.errors.OpError as error:
                index = self.place(tf.constant([place], tf.int64))[0]
                reason = error.message.split('}} ')[-1].splitlines()[0]
                return f'{self.source.where(int(index[0]))}: {reason}'
        return 'each of them can be made alone'

    def _read(self, places: Tensor) -> dict[str, Tensor]:
        index, position = self.place(places)
        return {'record': self.source.records(index), 'index': index, 'position': position}

    def _example(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        """An example; `used` is the record it was made of, which only `_rescued` may change."""
        tf = tensorflow()
        made = self.view(read['record'], read['position'])
        if 'label' in read['record']:
            made['label'] = read['record']['label']
        index = tf.cast(read['index'], tf.int32)
        return {'index': index, 'used': index, **made}

    def _rescued(self, place: Tensor, like: dict[str, Any]) -> dict[str, Tensor]:
        """One example from the first of the neighbours that can be read and decoded."""
        tf = tensorflow()
        index, position = self.place(place[None])
        near = (index + tf.constant(self.neighbours, tf.int64)) % self.source.examples

        def attempt(candidate: Tensor) -> dict[str, Tensor]:
            read = self.source.records(candidate[None])
            record = {name: value[0] for name, value in read.items()}
            made = self._example({'record': record, 'index': candidate, 'position': position[0]})
            return {**made, 'index': tf.cast(index[0], tf.int32)}

        attempts = _map(tf.data.Dataset.from_tensor_slices(near), attempt).ignore_errors()
        if self.blank:
            zeros = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in like.items()}
            marks = {name: tf.constant(-1) for name in ('used', 'label') if name in like}
            empty = {**zeros, **marks, 'index': tf.cast(index[0], tf.int32)}
            attempts = attempts.concatenate(tf.data.Dataset.from_tensors(empty))
        return attempts.take(1).get_single_element()


def _places(start: int, stop: int, block: int) -> Tensor:
    tf = tensorflow()
    return tf.data.Dataset.range(start, stop).batch(block)


def _map(dataset: Tensor, function: Callable[..., Any], calls: int | None = None) -> Tensor:
    """`dataset.map` of a function that holds graph ops alone: none of its source is rewritten."""
    return dataset.map(tensorflow().autograph.experimental.do_not_convert(function), calls)
