#!/usr/bin/env bash
# One run on all GPUs of this machine, one process per GPU.
#
#     launch/gpu_node.sh EXPERIMENT --folder FOLDER
#
# The kernels are deterministic, so that a run that was stopped ends in the same bits (seen on one
# H100). On it this costs some 5% of a step (benchmarks/README.md). The second flag sorts
# what is added up at one place, as in the gradient of a max-pool, which is otherwise done one by one.
# FAST=1 leaves both out. Not run on several GPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" cuda

if [ -z "${FAST:-}" ]; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true \
        --xla_gpu_enable_scatter_determinism_expander=true"
fi
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)
else
    count=$(nvidia-smi --list-gpus | grep -c '^GPU ')
fi
exec launch/local_multiprocess.py --device-each "$count" -- ssljax train "$@"
