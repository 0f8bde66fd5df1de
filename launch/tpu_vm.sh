#!/usr/bin/env bash
# One run on every host of a Cloud TPU slice.
#
#     launch/tpu_vm.sh NAME ZONE EXPERIMENT --folder gs://BUCKET/RUN
#
# Copies this checkout's last commit to all hosts, installs it there once, and starts one process on
# each; Cloud TPU tells JAX who they are. The folder is in a bucket: the hosts share no disk. The same
# command goes on with a run that was stopped or preempted. Not run on TPUs here.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo 'usage: launch/tpu_vm.sh NAME ZONE EXPERIMENT [OPTION ...]' >&2
    exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output "$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:ssljax.tar.gz" --zone "$zone" --worker all

# What the hosts' shells read is quoted once more.
printf -v options ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "
    mkdir -p ssljax && tar -xzf ssljax.tar.gz -C ssljax && cd ssljax &&
    source launch/environment.sh tpu && exec ssljax train$options --distributed"
