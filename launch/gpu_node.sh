#!/usr/bin/env bash
# One run on all GPUs of this machine, one process per GPU.
#
#     launch/gpu_node.sh EXPERIMENT --folder FOLDER
#
# The kernels are deterministic, so that a run that was stopped ends in the same bits; this costs some
# speed, and XLA refuses an operation that has no such kernel. FAST=1 leaves that out. Not run on
# several GPUs here; `ssljax train` was, on one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" cuda

if [ -z "${FAST:-}" ]; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
fi
count=$(nvidia-smi --list-gpus | wc -l)
exec launch/local_multiprocess.py --device-each "$count" -- ssljax train "$@"
