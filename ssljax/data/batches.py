"""The iterator over batches: goes on after corrupt records, and counts them."""

import logging
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from ssljax.data.faults import of_data, patiently
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
    batch holds is a function of its places, so neither timing nor the switch changes anything. Nor
    does a disk or network that fails for a while: a batch that it has touched is made again.

    Attributes:
        step: number of the batch that comes next.

    Raises:
        CorruptDataError: on `next`, if too many records are corrupt, or none can stand in for one.
        UnreachableDataError: on `next`, if reading keeps failing of something else.
    """

    def __init__(
        self,
        examples: Examples,
        size: int,
        span: tuple[int, int],
        max_corrupt: float,
        judged_from: int,
        finish: Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]],
    ):
        """Builds the graph.

        Args:
            examples: the sequence to cut into batches.
            size: examples a batch.
            span: first place and the one behind the last.
            max_corrupt: share of the examples seen here that may be corrupt, each counted once.
            judged_from: so many count as seen from the start: the share of a few says nothing.
            finish: (batch, the record used for each row) -> the batch as it is given.
        """
        self._examples = examples
        self._size = size
        self._places = span
        self._max_corrupt = max_corrupt
        self._judged_from = judged_from
        self._finish = finish
        self._corrupt: set[int] = set()
        self._seen = 0
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
        batch = patiently(self._take)
        self.step += 1
        used = batch.pop('used')
        self._count(batch['index'], used)
        return self._finish(batch, used)

    def _take(self) -> dict[str, np.ndarray]:
        """The next batch. After an error it is the next one still, made from the start."""
        tf = tensorflow()
        try:
            return self._confirmed()
        except tf.errors.OpError as error:
            self._iterator.clear()
            if not of_data(error):
                raise
            if self._careful:
                raise self._hopeless() from error
        _log.warning('batch %d holds a corrupt record; going on carefully', self.step)
        self._careful = True
        return self._take()

    def _confirmed(self) -> dict[str, np.ndarray]:
        """The next batch, its substitutes being for corrupt records indeed."""
        first = self.step * self._size
        if not self._iterator:
            graph = self._examples.careful if self._careful else self._examples.fast
            self._iterator.append(self._run(graph(first, self._places[1])))
        batch = dict(next(self._iterator[0]))
        for row in np.flatnonzero(batch['index'] != batch['used']):
            if self._examples.stand_in(first + int(row))[0] != batch['used'][row]:
                raise _passed(self._examples.source.where(int(batch['index'][row])))
        return batch

    def _hopeless(self) -> Exception:
        """What is to be said of a batch that not even the careful graph can make."""
        first = self.step * self._size
        for place in range(first, min(first + self._size, self._places[1])):
            record, wrong = self._examples.stand_in(place)
            if record < 0:
                return CorruptDataError(
                    f'batch {self.step} cannot be made, nor can neighbours stand in for its '
                    f'records: {wrong}'
                )
        return _passed(f'batch {self.step}')

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
        self._seen += len(index)
        for row in np.flatnonzero(index != used):
            if int(index[row]) in self._corrupt:
                continue
            self._corrupt.add(int(index[row]))
            instead = 'left out' if used[row] < 0 else f'record {used[row]} stands in for it'
            _log.warning('%s is corrupt; %s', source.where(int(index[row])), instead)
        # In later epochs records come again; of them a corrupt one is counted once.
        of = max(min(self._seen, source.examples), self._judged_from)
        if len(self._corrupt) > self._max_corrupt * of:
            shown = ', '.join(source.where(index) for index in self.corrupt[:5])
            raise CorruptDataError(
                f'{len(self._corrupt)} of {of} records of {source.name} are corrupt '
                f'({self._seen} were read), '
                f'more than the share of {self._max_corrupt:g} that is allowed: {shown}, ...; '
                'repair or remove them, or raise max_corrupt'
            )


def _passed(what: str) -> Exception:
    """Of what failed and now does not: an error that `patiently` answers with another try."""
    return tensorflow().errors.AbortedError(None, None, f'{what} could not be read a moment ago')
