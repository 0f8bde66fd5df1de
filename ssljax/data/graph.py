"""TensorFlow on first use, kept to the processor: here it only feeds data."""

import functools
import os
from typing import Any

Tensor = Any
"""A `tf.Tensor`; the type is not named because importing TensorFlow takes seconds."""


@functools.cache
def tensorflow() -> Any:
    """The module `tensorflow`, with every accelerator hidden from it.

    JAX owns the accelerators; TensorFlow would otherwise take a GPU's whole memory.
    """
    import tensorflow as tf

    for kind in ('GPU', 'TPU'):
        tf.config.set_visible_devices([], kind)
    return tf


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
