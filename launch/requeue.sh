#!/usr/bin/env bash
# Sourced by the SLURM scripts. Runs a job step; when the job is told to end (SIGUSR1 or SIGTERM) the
# step is told to save and stop, and a job that has saved (exit code 75) goes back into the queue.

ssljax_step() {
    local step='' code told=''
    # Listening comes first: told while srun starts, the job would end and leave the step running.
    trap 'told=1; [ -z "$step" ] || kill -TERM "$step" 2>/dev/null || true' USR1 TERM
    srun "$@" &
    step=$!
    [ -z "$told" ] || kill -TERM "$step" 2>/dev/null || true
    while :; do
        told=
        code=0
        wait "$step" || code=$?
        [ -n "$told" ] || break # else a signal ended the wait, not the step
    done
    trap - USR1 TERM
    if [ "$code" -eq 75 ]; then
        echo "saved; job $SLURM_JOB_ID goes back into the queue"
        # A job that SLURM has preempted it requeues by itself.
        scontrol requeue "$SLURM_JOB_ID" || true
    fi
    return "$code"
}
