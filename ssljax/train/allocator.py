"""Keeps the memory that a step frees for the next step, where glibc would hand it back.

On a CPU, XLA allocates a step's temporaries anew every time. glibc serves large blocks by mapping
fresh pages and unmaps them when they are freed, so that every step pays for page faults and for
zeroing: a third of the quickstart's time (`python benchmarks/step.py --plain-allocator`).
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""

LARGE = 2**31 - 1
"""mallopt takes an int."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; call it before the first large allocation.

    The process then holds the most that it has ever used, which a training run does anyway.

    Returns:
        Whether it was done: False on systems without glibc's mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: LARGE, M_TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in wanted.items())
