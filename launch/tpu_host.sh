#!/usr/bin/env bash
# What launch/tpu_vm.sh asks of a host: `start EXPERIMENT [OPTION ...]`, `show` and `stop`. A run has a
# session of its own, so that it outlives the connection, and what it says goes to ~/ssljax.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=../ssljax.log pid=../.ssljax.pid code=../.ssljax.code

running() {
    ! flock -n ../.ssljax.lock true
}

show() {
    if running; then
        tail -n +1 -f "$log" --pid "$(cat "$pid")"
    else
        cat "$log"
    fi
    # Killed, or the host started anew: nothing was left to say how it ended.
    exit "$(cat "$code" 2>/dev/null || echo 1)"
}

case $1 in
start)
    shift
    rm -f "$code"
    : > "$log" # to be there, and empty, when it is shown
    # The shell waits out a SIGTERM, to which its program listens, and then says how that ended.
    # shellcheck disable=SC2016
    setsid bash -c 'trap : TERM
        (source launch/environment.sh tpu && exec ssljax train "$@" --distributed)
        echo $? > ../.ssljax.code' run "$@" >> "$log" 2>&1 < /dev/null &
    echo $! > "$pid"
    exec 9>&- # the run's alone now
    show
    ;;
show)
    show
    ;;
stop)
    if running; then
        kill -TERM -- "-$(cat "$pid")"
    fi
    show
    ;;
esac
