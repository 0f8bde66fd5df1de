#!/usr/bin/env bash
# From a fresh clone to a trained, compared and exported encoder: under 5 minutes of training on 2
# CPU cores. Run again, it goes on where it was stopped, or shows what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

run=runs/quickstart
# Each of two cores is a device of one thread: faster than one device over both (`python
# benchmarks/cpu_devices.py`), and the same loss and gradient.
XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false" \
    ssljax train experiments/simclr_fashion_mnist.py --folder "$run"
ssljax evaluate "$run"
ssljax export "$run" --format native
ssljax report "$run"
