#!/usr/bin/env bash
# From a fresh clone to a trained, compared and exported encoder: under 5 minutes of training on 2
# CPU cores. Run again, it goes on where it was stopped, or shows what is there. Arguments are
# changes of the experiment: `launch/quickstart.sh --epochs 10`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" '' # no extra; our arguments are not its

run=runs/quickstart
begin=experiments/simclr_fashion_mnist.py
if [ -e "$run/run.json" ]; then
    begin=$run # as it began, though the file may have changed since
    echo "$run goes on, or is shown; remove it to begin anew"
fi
# Each of two cores is a device of one thread: faster than one device over both (`python
# benchmarks/cpu_devices.py`), and the same loss and gradient.
XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false" \
    ssljax train "$begin" --folder "$run" "$@"
ssljax evaluate "$run"
ssljax export "$run" --format native
ssljax report "$run"
