"""What reading fails of: the data, for good, or the way to them, perhaps not for long."""

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from ssljax.data.graph import tensorflow

_log = logging.getLogger(__name__)

T = TypeVar('T')

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try; TensorFlow's client of buckets has made several by itself."""

_TRACE = ('Graph execution error', 'Detected at node', '  File ')
_WRAPPING = re.compile(r'(\{\{.*?\}\} )?(Error in user-defined function .*? Iterator::\S+: )*')


class UnreachableDataError(RuntimeError):
    """Data that may be whole cannot be read: a disk, a network or a bucket does not answer."""

    exit_code = 1


def of_data(error: Exception) -> bool:
    """Whether an error is the data's own, raised by the same record every time.

    Decoders and parsers raise InvalidArgument, checksums DataLoss, and a file that has gone since
    it was listed NotFound. Anything else (Unavailable, Aborted for a stale handle of NFS, Unknown
    for an I/O error, ...) says nothing of the record and may pass.
    """
    kinds = tensorflow().errors
    return isinstance(error, (kinds.InvalidArgumentError, kinds.DataLossError, kinds.NotFoundError))


def reason(error: Exception) -> str:
    """TensorFlow's message, without where in which graph; what it says of a file has the path."""
    lines = [line for line in error.message.splitlines() if line and not line.startswith(_TRACE)]
    return _WRAPPING.sub('', lines[0], count=1) if lines else type(error).__name__


def patiently(attempt: Callable[[], T]) -> T:
    """What `attempt` returns; after an error that may pass it is made again, after `WAITS`.

    Raises:
        UnreachableDataError: if every attempt ends in such an error.
        tf.errors.OpError: the data's own, at once.
    """
    for wait in (*WAITS, None):
        try:
            return attempt()
        except tensorflow().errors.OpError as error:
            if of_data(error):
                raise
            if wait is None:
                raise UnreachableDataError(
                    f'the data cannot be reached, in {len(WAITS) + 1} tries over {sum(WAITS):g} s: '
                    f'{reason(error)}; nothing was put in their place. See to the disk, network or '
                    'bucket, then give the same command again: a run goes on from its last '
                    'checkpoint'
                ) from error
            _log.warning('%s; reading again in %g s', reason(error), wait)
        time.sleep(wait)
    raise AssertionError('the last attempt returns or raises')
