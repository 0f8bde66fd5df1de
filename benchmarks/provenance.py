"""Where a measurement comes from: the lines every benchmark prints first."""

import datetime
import os
import pathlib
import platform
import subprocess

import jax


def header() -> str:
    """Date, commit, CPU, cores, JAX and its devices, one `name: value` per line."""
    devices = jax.devices()
    affinity = getattr(os, 'sched_getaffinity', None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    lines = {
        'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
        'commit': _commit(),
        'cpu': _cpu(),
        'cores': cores,
        'jax': jax.__version__,
        'devices': f'{len(devices)} x {devices[0].device_kind}',
    }
    return '\n'.join(f'{name}: {value}' for name, value in lines.items())


def _commit() -> str:
    """The short hash of HEAD, with `+changes` if tracked files differ from it.

    Where the files came without their repository, what `SSLJAX_COMMIT` says.
    """
    here = pathlib.Path(__file__).parent

    def git(*arguments):
        command = ['git', '-C', str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short', 'HEAD') + ('+changes' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get('SSLJAX_COMMIT', 'unknown (not a git checkout)')


def _cpu() -> str:
    """The CPU's model name as Linux has it, or what Python knows."""
    try:
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
