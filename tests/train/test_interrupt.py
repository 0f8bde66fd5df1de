"""Told to stop, and told again."""

import subprocess
import sys

PROGRAM = """
import os, signal, subprocess
from ssljax.train.interrupt import on_signals
with on_signals() as interrupt:
    if {told}:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.reached(1)
child = subprocess.run(['bash', '-c', 'kill $$; echo lives'], stdout=subprocess.PIPE)
print(child.returncode, child.stdout, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit(75)
"""


def told(first):
    program = PROGRAM.format(told=first)
    return subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)


def test_told_again_when_it_has_saved_a_run_keeps_its_exit_code():
    done = told(True)
    assert done.returncode == 75, done.stderr
    assert done.stdout.split() == ['-15', "b''"]  # what it starts can be ended as ever


def test_not_told_before_it_ends_as_any_program_does():
    assert told(False).returncode == -15
