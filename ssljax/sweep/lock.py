"""A lock on a folder that ends with the processes that hold it, however they end.

`flock` on a file in the folder: the system drops it when the last process that has the file open is
gone, so that nothing is left to clean up after a kill. It is sure on a local disk. On NFS it works
between machines from Linux 2.6.12 on where the server runs a lock daemon, on Lustre where it is
mounted with `-o flock`; mounted with `localflock` (or NFS with `local_lock=flock`) it keeps apart
only the processes of one machine: then give each machine variants of its own by `--only`. The
server of a machine that was lost keeps its locks until it gives that machine up (NFSv4: 90 s).

The file says which process works in the folder; that is for people, and locks nothing.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
from collections.abc import Iterator

NAME = 'lock'


class NoLocksError(ValueError):
    """A folder is where there are no locks."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that works in a locked folder, by its own account.

    Attributes:
        pid: its number on its machine.
        host: the name of that machine.
        since: date and time, as ISO 8601 has it.
    """

    pid: int
    host: str
    since: str

    @property
    def here(self) -> bool:
        """Whether it is on this machine."""
        return self.host == platform.node()


def take(folder: pathlib.Path, wait: bool = False) -> int | None:
    """Takes the lock of a folder, which is made if it is not there, and signs it.

    Args:
        folder: on a local disk, or see above.
        wait: until it is free; otherwise None is returned if another holds it.

    Returns:
        A file descriptor: the lock is held until it, and every copy that a child process has been
        given, is closed.

    Raises:
        NoLocksError: the disk, or this system, has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except (ImportError, OSError) as error:
        os.close(descriptor)
        reason = getattr(error, 'strerror', None) or 'this system has no flock'
        raise NoLocksError(
            f'{folder} cannot be locked ({reason}); put it on a local disk: --folder'
        ) from error
    sign(folder)
    return descriptor


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder for the block, having waited for it."""
    descriptor = take(folder, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


def sign(folder: pathlib.Path) -> None:
    """Names this process as the one that works in a folder whose lock it, or its parent, holds."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    holder = Holder(os.getpid(), platform.node(), now)
    with contextlib.suppress(OSError):  # the disk may be full; the lock holds all the same
        (folder / NAME).write_text(json.dumps(dataclasses.asdict(holder)))


def holder(folder: pathlib.Path) -> Holder | None:
    """Who signed the lock of a folder last; None if nobody did."""
    try:
        return Holder(**json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
