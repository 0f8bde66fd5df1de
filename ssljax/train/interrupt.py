"""SIGTERM and Ctrl-C ask a run to save and stop at the next step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

EXIT_INTERRUPTED = 75
"""Exit code of a run that was told to stop and has saved (EX_TEMPFAIL: run it again)."""


class Interrupt:
    """Whether somebody has asked the run to stop."""

    def __init__(self):
        self._asked = threading.Event()

    def ask(self, *_) -> None:
        """Asks; safe inside a signal handler."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether this process was asked."""
        return self._asked.is_set()

    def reached(self, step: int) -> bool:
        """Whether to stop after this step: the same answer in every process.

        Args:
            step: how many this process has taken, from 1. (A signal that comes before the first has
                all stop behind step 1, and JAX waits for that very number.)
        """
        if jax.process_count() == 1:
            return self._asked.is_set()
        # JAX's coordination service has the processes agree on one step, whoever was told.
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def on_signals() -> Iterator[Interrupt]:
    """Listens for SIGTERM and SIGINT while the block runs; a second Ctrl-C ends it at once."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # only the main thread may listen to signals
        return

    def on_interrupt(*_):
        interrupt.ask()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # to which JAX listens, and tells the others

    before = {signal.SIGINT: signal.signal(signal.SIGINT, on_interrupt)}
    if jax.process_count() == 1:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, interrupt.ask)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGTERM in before and interrupt.asked:
            # Said again on the way out, it shall not turn "saved" into "killed". A function, not
            # SIG_IGN, which processes started from here would inherit.
            signal.signal(signal.SIGTERM, lambda *_: None)
