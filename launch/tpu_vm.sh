#!/usr/bin/env bash
# One run on every host of a Cloud TPU slice.
#
#     launch/tpu_vm.sh NAME ZONE EXPERIMENT --folder gs://BUCKET/RUN    # starts it and shows what it says
#     launch/tpu_vm.sh NAME ZONE --show                                 # shows it again, to its end
#     launch/tpu_vm.sh NAME ZONE --stop                                 # it saves and stops
#
# Copies this checkout's last commit to all hosts, installs it there once, and starts one process on
# each; Cloud TPU tells JAX who they are. The run needs no connection: Ctrl-C, or a laptop that is
# closed, leaves it going. The folder is in a bucket: the hosts share no disk. The same command goes
# on with a run that was stopped or preempted. Not run on TPUs here.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '4,6s/^# *//p' "$0" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$1"
}

case $1 in
--show | --stop)
    on_all_hosts "ssljax/launch/tpu_host.sh ${1#--}"
    exit
    ;;
esac

copied=$(mktemp --suffix=.bundle)
trap 'rm -f "$copied"' EXIT
git bundle create --quiet "$copied" HEAD
gcloud compute tpus tpu-vm scp "$copied" "$name:ssljax.bundle" --zone "$zone" --worker all

# What the hosts' shells read is quoted once more. The lock (descriptor 9) is the run's for its life.
printf -v options ' %q' "$@"
on_all_hosts "
    exec 9> .ssljax.lock
    if ! flock -n 9; then
        echo 'a run is going on here: launch/tpu_vm.sh $name $zone --show or --stop' >&2
        exit 2
    fi
    git init -q ssljax && cd ssljax && git fetch -q ../ssljax.bundle HEAD &&
    git checkout -qf --detach FETCH_HEAD && git clean -qfdx -e .venv -e '*.egg-info' -e /runs -e /studies &&
    exec launch/tpu_host.sh start$options"
