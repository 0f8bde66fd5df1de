#!/usr/bin/env bash
# Sourced by the SLURM scripts. Runs a job step; when the job is told to end (SIGUSR1 or SIGTERM) the
# step is told to save and stop, and a job that has saved (exit code 75) goes back into the queue.

ssljax_step() {
    local step code told
    srun "$@" &
    step=$!
    trap 'told=1; kill -TERM "$step" 2>/dev/null || true' USR1 TERM
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
