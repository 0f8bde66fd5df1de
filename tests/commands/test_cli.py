"""The command line as a person meets it."""

import re
import subprocess
import sys
import time

import pytest

import ssljax
from ssljax import cli

PROGRAM = 'from ssljax.cli import main; main()'


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--help'], 'train EXPERIMENT'),
        (['train', '--help'], 'Any field of the experiment may follow'),
        (['evaluate', '--help'], 'random weights and raw pixels'),
        (['export', '--help'], 'safetensors'),
        (['report', '--help'], 'report.html'),
        (['sweep', '--help'], 'every variant with every seed'),
        (['plan', '--help'], 'chips that need not be there'),
        (['--version'], ssljax.__version__),
    ],
)
def test_help_reads_well_and_answers_within_a_second(arguments, says):
    taken = []
    for _ in range(8):  # the machine may be busy: the quickest counts
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, '-c', PROGRAM, *arguments], capture_output=True, text=True
        )
        taken.append(time.monotonic() - began)
        if taken[-1] < 1:
            break
    assert done.returncode == 0, done.stderr
    assert says in ' '.join(re.sub('[│╭╮╰╯─]', ' ', done.stdout).split())
    assert min(taken) < 1


def test_help_of_an_experiment_lists_its_fields(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(['train', 'experiments/simclr_cifar10.py', '--help'])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for option in (
        '--method.temperature',
        '--method.encoder.depth',
        '--recipe.strength',
        '--batch',
    ):
        assert option in said
    assert 'Paper: 0.1 on ImageNet' in ' '.join(re.sub('│', ' ', said).split())


def test_no_command_shows_the_usage(capsys):
    assert cli.run([]) == cli.EXIT_USAGE
    assert 'usage: ssljax' in capsys.readouterr().out
