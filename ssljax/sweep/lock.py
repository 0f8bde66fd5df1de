"""A lock on a folder that ends with the processes that hold it, however they end.

`flock` on a file in the folder: the system drops it when the last process that has the file open is
gone, so that nothing is left to clean up after a kill. It is sure on a local disk. On NFS it works
between machines from Linux 2.6.12 on where the server runs a lock daemon, on Lustre where it is
mounted with `-o flock`; mounted with `localflock` (or NFS with `local_lock=flock`) it keeps apart
only the processes of one machine: then give each machine variants of its own by `--only`.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

NAME = 'lock'


def take(folder: pathlib.Path, wait: bool = False) -> int | None:
    """Takes the lock of a folder, which is made if it is not there.

    Args:
        folder: on a local disk, or see above.
        wait: until it is free; otherwise None is returned if another holds it.

    Returns:
        A file descriptor: the lock is held until it, and every copy that a child process has been
        given, is closed.

    Raises:
        ValueError: the disk has no locks.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise ValueError(
            f'{folder} cannot be locked ({error.strerror}); put the study on a local disk: --folder'
        ) from error
    return descriptor


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder for the block, having waited for it."""
    descriptor = take(folder, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)
