"""The launcher of several processes, on programs that take no time."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'local_multiprocess.py'


def launch(count, program, *options):
    return subprocess.Popen(
        [sys.executable, LAUNCHER, *options, str(count), '--', sys.executable, '-c', program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, within=60):
    """Exit code, output and errors."""
    try:
        out, err = process.communicate(timeout=within)
    finally:
        process.kill()
    return process.returncode, out, err


def test_every_process_is_told_who_the_others_are_and_is_heard():
    program = (
        'import os; print(*[os.environ[f"JAX_{name}"] for name in '
        '("PROCESS_ID", "NUM_PROCESSES", "LOCAL_DEVICE_IDS", "COORDINATOR_ADDRESS")])'
    )
    code, out, err = ended(launch(3, program, '--device-each'))
    assert (code, err) == (0, '')
    lines = sorted(out.splitlines())
    assert [line.split()[:4] for line in lines] == [[f'[{i}]', str(i), '3', str(i)] for i in '012']
    assert len({line.split()[4] for line in lines}) == 1  # one coordinator


@pytest.mark.parametrize('code', [0, 75, 2])
def test_has_the_exit_code_that_all_agree_on(code):
    assert ended(launch(2, f'raise SystemExit({code})'))[0] == code


def test_not_all_told_to_stop_is_a_failure():
    program = 'import os; raise SystemExit(75 * int(os.environ["JAX_PROCESS_ID"]))'
    assert ended(launch(2, program))[0] == 1


@pytest.mark.parametrize(
    ('death', 'code', 'said'),
    [
        ('os.kill(os.getpid(), 9)', 137, 'killed by SIGKILL'),
        ('sys.exit("no disk")', 1, 'exit code 1'),
    ],
)
def test_one_that_dies_ends_the_others_and_is_named_with_its_last_words(death, code, said):
    # The others hang, and do not listen.
    program = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ['JAX_PROCESS_ID'] == '1':
    print('my last words', flush=True)
    {death}
time.sleep(600)
"""
    began = time.monotonic()
    found, out, err = ended(launch(3, program, '--patience', '1'))
    assert time.monotonic() - began < 30
    assert found == code
    assert f'process 1 of 3 failed first: {said}' in err
    assert 'the last lines of process 1:' in err and 'my last words' in err.partition('last l')[2]
    assert 'process 0 then: killed by SIGKILL' in err and 'process 2 then' in err
    assert '[1] my last words' in out


LISTENS = """
import os, signal, sys, time
def stop(*_):
    print('saved', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on(number):
    process = launch(2, LISTENS)
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ['[0] ready\n', '[1] ready\n']
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, err) == (75, '')
    assert sorted(out.splitlines()) == ['[0] saved', '[1] saved']


def test_a_second_request_kills():
    process = launch(2, LISTENS.replace('sys.exit(75)', 'time.sleep(600)'))
    for _ in range(2):
        process.stdout.readline()
    process.terminate()
    for _ in range(2):
        assert 'saved' in process.stdout.readline()
    process.terminate()
    code, _, err = ended(process)
    assert code == 137 and 'killed by SIGKILL' in err


def lives(number):
    try:
        status = pathlib.Path(f'/proc/{number}/status').read_text()
    except FileNotFoundError:
        return False
    return 'State:\tZ' not in status  # dead, and nobody has asked of what


@pytest.mark.skipif(sys.platform != 'linux', reason='the system tells children on Linux alone')
def test_processes_stop_when_the_launcher_is_gone():
    process = launch(2, LISTENS.replace("print('ready'", 'print(os.getpid()'))
    children = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while any(lives(child) for child in children):
        assert time.monotonic() < end, 'they live on'
        time.sleep(0.05)


def test_a_command_that_is_not_there_is_named():
    code, _, err = ended(
        subprocess.Popen(
            [sys.executable, LAUNCHER, '2', '--', 'no-such-command'],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    assert code == 127 and 'no-such-command cannot be started' in err
