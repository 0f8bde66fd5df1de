#!/usr/bin/env bash
# From a fresh clone to a trained, compared and exported encoder: 4 to 6 minutes of training on 2
# CPU cores. Run again, it goes on where it was stopped, or shows what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

run=runs/quickstart
ssljax train experiments/simclr_fashion_mnist.py --folder "$run"
ssljax evaluate "$run"
ssljax export "$run" --format native
ssljax report "$run"
