"""The iterator over batches: goes on after corrupt records, and counts them."""

import logging
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from ssljax.data.graph import Tensor, cores, tensorflow
from ssljax.data.stream import Examples

_log = logging.getLogger(__name__)


class CorruptDataError(ValueError):
    """More records than allowed cannot be read or decoded."""

    exit_code = 1


class Batches(Iterator):
    """Batches as dicts of NumPy arrays (read-only), computed ahead in threads of their own.

    It begins on the fast graph, which a corrupt record stops; from the batch that holds the first
    one on, the careful graph is used, which gives the same bytes and is somewhat slower. What a
    batch holds is a function of its places, so neither timing nor the switch changes anything.

    Attributes:
        step: number of the batch that comes next.
    """

    def __init__(
        self,
        examples: Examples,
        size: int,
        span: tuple[int, int],
        max_corrupt: float,
        finish: Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]],
    ):
        """Builds the graph.

        Args:
            examples: the sequence to cut into batches.
            size: examples a batch.
            span: first place and the one behind the last.
            max_corrupt: share of the source's examples that may be corrupt.
            finish: (batch, the record used for each row) -> the batch as it is given.
        """
        self._examples = examples
        self._size = size
        self._places = span
        self._max_corrupt = max_corrupt
        self._finish = finish
        self._corrupt: set[int] = set()
        self._careful = False
        self.step = span[0] // size
        # Held in a list that is emptied before the interpreter ends: threads of the iterator that
        # want to call Python after that would wait for ever, and the process with them.
        self._iterator = [self._run(examples.fast(*span))]
        weakref.finalize(self, self._iterator.clear)

    @property
    def corrupt(self) -> tuple[int, ...]:
        """Indices of the corrupt records met so far, ascending; of this host's rows alone."""
        return tuple(sorted(self._corrupt))

    def __next__(self) -> dict[str, np.ndarray]:
        tf = tensorflow()
        try:
            batch = dict(next(self._iterator[0]))
        except tf.errors.OpError as error:
            batch = self._recover(error)
        self.step += 1
        used = batch.pop('used')
        self._count(batch['index'], used)
        return self._finish(batch, used)

    def _recover(self, error: Exception) -> dict[str, np.ndarray]:
        """The batch that failed, from the careful graph; or an error that says what is wrong."""
        tf = tensorflow()
        if not self._careful:
            _log.warning('batch %d holds a corrupt record; going on carefully', self.step)
            self._careful = True
            start = self.step * self._size
            self._iterator[:] = [self._run(self._examples.careful(start, self._places[1]))]
            try:
                return dict(next(self._iterator[0]))
            except tf.errors.OpError as again:
                error = again
        first = self.step * self._size
        raise CorruptDataError(
            f'batch {self.step} cannot be made, nor can neighbours stand in for its records: '
            f'{self._examples.diagnosis(first, min(first + self._size, self._places[1]))}'
        ) from error

    def _run(self, examples: Tensor) -> Iterator[dict[str, np.ndarray]]:
        tf = tensorflow()
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        # Threads of its own, one a core; an op that took several would only wait for the others.
        options.threading.private_threadpool_size = max(cores(), self._examples.reads()[1])
        options.threading.max_intra_op_parallelism = 1
        return examples.batch(self._size).prefetch(2).with_options(options).as_numpy_iterator()

    def _count(self, index: np.ndarray, used: np.ndarray) -> None:
        source = self._examples.source
        for row in np.flatnonzero(index != used):
            if int(index[row]) in self._corrupt:
                continue
            self._corrupt.add(int(index[row]))
            instead = 'left out' if used[row] < 0 else f'record {used[row]} stands in for it'
            _log.warning('%s is corrupt; %s', source.where(int(index[row])), instead)
        if len(self._corrupt) > self._max_corrupt * source.examples:
            shown = ', '.join(source.where(index) for index in self.corrupt[:5])
            raise CorruptDataError(
                f'{len(self._corrupt)} of {source.examples} records of {source.name} are corrupt, '
                f'more than the share of {self._max_corrupt:g} that is allowed: {shown}, ...; '
                'repair or remove them, or raise max_corrupt'
            )
