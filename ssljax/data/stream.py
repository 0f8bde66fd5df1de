"""The two ways a stream of examples is computed: fast, and carefully round corrupt records."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from ssljax.data.faults import of_data, reason
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
        record by record, and the first of the two that came out whole is taken. A graph cannot
        tell a corrupt record from one that is out of reach for a moment: whoever takes an example
        that is not of its own record asks `stand_in` whether it has to be.
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

    def stand_in(self, place: int) -> tuple[int, str]:
        """The record that an example is made of, found by trying one after the other.

        Returns:
            The first of its own record and the neighbours that can be read and decoded, or -1; and
            what is wrong with its own, if it is another.

        Raises:
            tf.errors.OpError: one that may pass (see `faults`), as nothing can be said meanwhile.
        """
        tf = tensorflow()
        wrong = ''
        for candidate in self._near(tf.constant(place, tf.int64)).numpy():
            try:
                self._alone(place, candidate)
            except tf.errors.OpError as error:
                if not of_data(error):
                    raise
                wrong = wrong or f'{self.source.where(int(candidate))}: {reason(error)}'
            else:
                return int(candidate), wrong
        return -1, wrong

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
        attempts = tf.data.Dataset.from_tensor_slices(self._near(place))
        attempts = _map(attempts, lambda candidate: self._made_of(place, candidate)).ignore_errors()
        if self.blank:
            index = self.place(place[None])[0]
            zeros = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in like.items()}
            marks = {name: tf.constant(-1) for name in ('used', 'label') if name in like}
            empty = {**zeros, **marks, 'index': tf.cast(index[0], tf.int32)}
            attempts = attempts.concatenate(tf.data.Dataset.from_tensors(empty))
        return attempts.take(1).get_single_element()

    def _near(self, place: Tensor) -> Tensor:
        """The record at a place and those that may stand in for it, int64, the nearest first."""
        near = tensorflow().constant(self.neighbours, 'int64')
        return (self.place(place[None])[0] + near) % self.source.examples

    def _made_of(self, place: Tensor, candidate: Tensor) -> dict[str, Tensor]:
        """The example at a place, under its own index, made of the record `candidate`."""
        index, position = self.place(place[None])
        read = self.source.records(candidate[None])
        record = {name: value[0] for name, value in read.items()}
        made = self._example({'record': record, 'index': candidate, 'position': position[0]})
        return {**made, 'index': tensorflow().cast(index[0], 'int32')}

    @functools.cached_property
    def _alone(self) -> Callable[[int, int], dict[str, Tensor]]:
        """`_made_of`, compiled once for all places."""
        tf = tensorflow()
        number = tf.TensorSpec([], tf.int64)
        return tf.function(self._made_of, input_signature=[number, number], autograph=False)


def _places(start: int, stop: int, block: int) -> Tensor:
    tf = tensorflow()
    return tf.data.Dataset.range(start, stop).batch(block)


def _map(dataset: Tensor, function: Callable[..., Any], calls: int | None = None) -> Tensor:
    """`dataset.map` of a function that holds graph ops alone: none of its source is rewritten."""
    return dataset.map(tensorflow().autograph.experimental.do_not_convert(function), calls)
