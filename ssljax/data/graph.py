"""TensorFlow on first use, kept to the processor: here it only feeds data."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

Tensor = Any
"""A `tf.Tensor`; the type is not named because importing TensorFlow takes seconds."""


@functools.cache
def tensorflow() -> Any:
    """The module `tensorflow`, with every accelerator hidden from it.

    JAX owns the accelerators; TensorFlow would otherwise take a GPU's whole memory.
    """
    with _without('keras'):
        import tensorflow as tf

    for kind in ('GPU', 'TPU'):
        tf.config.set_visible_devices([], kind)
    return tf


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside, importing a package fails; what has been imported already stays.

    TensorFlow imports Keras if there is one, which takes two fifths of its start (with
    scikit-learn and matplotlib behind it), and nothing that feeds data is in there.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
