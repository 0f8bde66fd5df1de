"""What has to be set before JAX is imported; so nothing here imports it."""

import os

HERE = ('here', 'local')
"""Names for the devices that are present."""

_QUIET = {
    # Otherwise the TPU compiler asks the cloud which chips this host has, waits, and complains.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
    'TPU_LOG_DIR': 'disabled',
    # The lock keeps two processes off one TPU; none is touched here, so plans may run side by side.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def quiet() -> None:
    """Keeps the TPU compiler to itself and JAX off any TPU. Values that are set already stay."""
    for name, value in {'JAX_PLATFORMS': 'cpu', **_QUIET}.items():
        os.environ.setdefault(name, value)
