"""What XLA has to be told on NVIDIA GPUs."""

import importlib.util
import os
from collections.abc import MutableMapping

PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
"""Modules of which JAX brings one to compute on NVIDIA GPUs."""

TRITON = 'xla_gpu_enable_triton_gemm'
"""The flag of XLA's own matrix products; without them all are cuBLAS's."""


def present() -> bool:
    """Whether JAX has been installed for NVIDIA GPUs."""
    return any(importlib.util.find_spec(name) for name in PLUGINS)


def avoid_crash(environ: MutableMapping[str, str] = os.environ) -> None:
    """Has XLA leave matrix products to cuBLAS, unless `XLA_FLAGS` says how it should be.

    XLA's compiler aborts the process where a long product is cut in pieces and its operand is a
    broadcast behind a reshape (openxla/xla, issue 47381), as in the gradient of a softmax over
    thousands of columns: seen on an H100 with JAX 0.11.2 in the steps of MoCo v2 and v3, BYOL and
    DINO. Counts only before JAX compiles for the first time.
    """
    flags = environ.get('XLA_FLAGS', '')
    if present() and TRITON not in flags:
        environ['XLA_FLAGS'] = f'{flags} --{TRITON}=false'.strip()
