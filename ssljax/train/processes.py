"""Several processes that are one run: how they find each other, and how they end together.

All run the same program and see the same global arrays; each holds the part on its own devices.
Process 0 keeps the run's folder, which has to be on a disk that all of them see.
"""

import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping

import jax

from ssljax.train.interrupt import EXIT_INTERRUPTED

HEARTBEAT = 60
"""Seconds without a sign of life after which a process counts as dead and the others end."""

STARTUP = 300
"""Seconds that a process waits for the others to begin."""

SHUTDOWN = 1800
"""Seconds that a process that is done waits for the others: process 0 may still check a large
checkpoint. One that died is noticed by its heartbeat long before."""


BAD_INPUT = 2
"""Exit code of a process that was given what it cannot take, as the command line has it."""

ALL_SAY_SO = 3.0
"""Seconds that a process stays after bad input: the others met it too, and are to say so instead of
that they have lost process 0."""


CAUSE_FIRST = 2.0
"""Seconds that a process stays after an error of the runtime, which may be that another one is
gone: the one that was first is to be seen to end first."""


class ProcessesError(RuntimeError):
    """The processes of a run did not find each other, or lost one another."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Asked:
    """How this process is told of the others; a run of one process asks for nothing.

    Attributes:
        coordinator: `host:port` of process 0; the port has to be free there.
        processes: how many there are.
        process: which of them this is, from 0.
        detect: ask SLURM, Open MPI, Cloud TPU or Kubernetes for what is not given.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    detect: bool = False

    def completed(self, environment: Mapping[str, str]) -> 'Asked':
        """With JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for what is not given.

        Raises:
            ValueError: what is given does not name one of several processes.
        """
        given = {
            'coordinator': self.coordinator or environment.get('JAX_COORDINATOR_ADDRESS'),
            'processes': _number('JAX_NUM_PROCESSES', self.processes, environment),
            'process': _number('JAX_PROCESS_ID', self.process, environment),
        }
        asked = Asked(**given, detect=self.detect)
        missing = [name for name, value in given.items() if value is None]
        if asked.detect or len(missing) == len(given):
            return asked
        if missing:
            raise ValueError(
                f'one of several processes needs a coordinator, the number of processes and its '
                f'own; not given: {", ".join(missing)}. Give --coordinator HOST:PORT --processes N '
                '--process I (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or '
                'have them detected with --distributed'
            )
        if not 0 <= asked.process < asked.processes:
            raise ValueError(
                f'process {asked.process} of {asked.processes}; processes count from 0 to one less '
                'than their number'
            )
        host, _, port = asked.coordinator.rpartition(':')
        if not host or not port.isdigit():
            raise ValueError(
                f'the coordinator is {asked.coordinator!r}; expected HOST:PORT of process 0, such '
                'as node1:1234'
            )
        return asked

    @property
    def several(self) -> bool:
        """Whether there is anything to join."""
        return self.detect or self.coordinator is not None


def together(asked: Asked, work: Callable[[], int]) -> int:
    """Runs `work` as one of several processes, or alone if nothing was asked for.

    To be called before anything touches a device. A process that fails leaves at once, without
    waiting for the others, which wait for it: they notice, at the next thing that they do together
    or by its missing heartbeat, and end as well.

    Args:
        asked: who the others are.
        work: the run; returns its exit code, having explained any failure.

    Returns:
        The exit code of a run that is finished or has been told to stop and saved. With a failure
        it does not return.

    Raises:
        ProcessesError: the others were not found.
    """
    if not asked.several:
        return work()
    _join(asked)
    try:
        code = work()
    except BaseException as error:
        traceback.print_exc()
        print(
            f'ssljax: process {jax.process_index()} of {jax.process_count()} ends. If another one '
            'ended before it, its output has the cause. What was saved is whole; the same command '
            'goes on from there',
            file=sys.stderr,
        )
        # Gloo's errors come as ValueError, too.
        if isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error):
            time.sleep(CAUSE_FIRST)
        code = 1
    if code not in (0, EXIT_INTERRUPTED):
        sys.stdout.flush()
        sys.stderr.flush()
        if code == BAD_INPUT:
            time.sleep(ALL_SAY_SO)
        # JAX would have this process wait for the others before it ends.
        os._exit(code)
    return code


def _join(asked: Asked) -> None:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(
            asked.coordinator,
            asked.processes,
            asked.process,
            cluster_detection_method=None if asked.detect else 'deactivate',
            initialization_timeout=STARTUP,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (ValueError, RuntimeError) as error:
        what = 'detected processes'
        if not asked.detect:
            what = f'process {asked.process} of {asked.processes} at {asked.coordinator}'
        raise ProcessesError(
            f'{what}: not joined: {error}. Start all of them within {STARTUP} s, each with the '
            'address of process 0 and a number of its own'
        ) from error


def _number(name: str, given: int | None, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if given is not None or text is None:
        return given
    if not text.isdigit():
        raise ValueError(f'{name} is {text!r}; expected a whole number')
    return int(text)
