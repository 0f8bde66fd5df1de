#!/usr/bin/env bash
# Sourced by the SLURM scripts. Runs a job step; when the job is told to end the step's tasks are told to
# save and stop. SIGUSR1 says that its time is nearly over: a job that has saved (exit code 75) goes
# back into the queue. SIGTERM says that SLURM ends it: a job that was preempted SLURM puts back by
# itself, one that was cancelled shall stay so.

# Not by way of srun: it answers SIGTERM by killing its tasks. Said again and again, because the step
# may not have begun when it is said first; to be told twice does a run no harm.
_ssljax_tell() {
    while scancel --signal=TERM "$SLURM_JOB_ID" || true; do # to the steps, not to this script
        sleep 5
    done
}

ssljax_step() {
    local step code told='' teller='' ours=1
    # Listening comes first: told while srun starts, the job would end and leave the step running.
    trap 'told=1; if [ -z "$teller" ]; then _ssljax_tell & teller=$!; fi' USR1
    trap 'told=1; ours=; if [ -z "$teller" ]; then _ssljax_tell & teller=$!; fi' TERM
    # From 22.05 to 23.11 srun does not take this over from sbatch by itself.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
    srun "$@" &
    step=$!
    while :; do
        told=
        code=0
        wait "$step" || code=$?
        [ -n "$told" ] || break # else a signal ended the wait, not the step
    done
    trap - USR1 TERM
    [ -z "$teller" ] || kill "$teller" 2>/dev/null || true
    if [ "$code" -eq 75 ] && [ -n "$ours" ]; then
        echo "saved; job $SLURM_JOB_ID goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID" || true
    fi
    return "$code"
}
