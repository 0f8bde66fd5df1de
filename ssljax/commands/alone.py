"""One launch at a time trains in a run's folder: a second one would delete what the first saves."""

import contextlib
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ssljax.sweep import lock

PATIENCE = 1.0
"""Seconds that a launch waits for the lock: `ssljax sweep --list` has it for an instant."""

PATIENCE_WITH_ANOTHER_MACHINE = 120.0
"""The same if another machine has it: if that is lost, its lock outlives it for a while."""

AGAIN = 0.5
"""Seconds until it is tried again. The other processes do not wait in one collective for the whole
time: Gloo's first one gives up after 30 s."""

LONGEST = 4096
"""Bytes of an answer that process 0 passes on."""

GO, WAIT = '', 'wait'
"""Answers of process 0; any other is why the folder is refused."""


@contextlib.contextmanager
def alone(folder: epath.Path) -> Iterator[None]:
    """Keeps every other launch out of a run's folder for the block.

    Process 0 holds the folder's lock for all of them, the same that `ssljax sweep` holds for a run;
    it ends with the process, however that ends. A folder in a bucket is not guarded; nor is one on
    a disk without locks, which is said.

    Raises:
        ValueError: another process trains there. In every process, so that none waits for one that
            has been refused.
    """
    guards = jax.process_index() == 0 and '://' not in str(folder)
    tries = _tries(pathlib.Path(folder)) if guards else itertools.repeat((None, GO))
    descriptor, answer = None, WAIT
    while answer == WAIT:
        descriptor, own = next(tries)
        answer = _in_every_process(own)
    if answer != GO:
        raise ValueError(answer)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _tries(folder: pathlib.Path) -> Iterator[tuple[int | None, str]]:
    """The lock, if there is one to have, and an answer: once for every try."""
    began, said = time.monotonic(), False
    while True:
        try:
            descriptor = lock.take(folder)
        except lock.NoLocksError as error:
            _say(f'{error}. Until then see to it that no second launch trains there')
            yield None, GO
            return
        if descriptor is not None:
            yield descriptor, GO
            return
        holder = lock.holder(folder)
        far = holder is not None and not holder.here
        patience = PATIENCE_WITH_ANOTHER_MACHINE if far else PATIENCE
        if time.monotonic() - began > patience:
            yield None, refusal(folder, holder)
            return
        if far and not said:
            _say(f'{holder.host} has {folder}; waiting {patience:.0f} s, in case that it was lost')
            said = True
        yield None, WAIT
        time.sleep(AGAIN)


def refusal(folder: pathlib.Path, holder: lock.Holder | None) -> str:
    """Why a folder is refused: who has it, and what to do.

    Args:
        folder: of the run.
        holder: None if that is not known.
    """
    if holder is None:
        return f'another process trains in {folder}; wait for its end, or choose another --folder'
    gone = f'; if that machine is lost, remove {folder / lock.NAME} and start again'
    return (
        f'process {holder.pid} on {holder.host} has been training in {folder} since '
        f'{holder.since}; wait for its end, or stop it (kill {holder.pid} there: it saves first), '
        f'or choose another --folder{"" if holder.here else gone}'
    )


def _say(text: str) -> None:
    print(f'ssljax: warning: {text}', file=sys.stderr, flush=True)


def _in_every_process(text: str) -> str:
    """Process 0's text, in every process."""
    if jax.process_count() == 1:
        return text
    room = np.zeros(LONGEST, np.uint8)
    said = np.frombuffer(text.encode()[:LONGEST], np.uint8)
    room[: said.size] = said
    found = np.asarray(multihost_utils.broadcast_one_to_all(room)).astype(np.uint8)
    return found.tobytes().rstrip(b'\0').decode(errors='ignore')
