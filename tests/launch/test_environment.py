"""`launch/environment.sh` makes the virtual environment, and makes it again where it is broken."""

import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


@pytest.mark.slow
def test_an_environment_whose_making_was_interrupted_is_made_again(tmp_path):
    (tmp_path / 'launch').mkdir()
    shutil.copy(LAUNCH / 'environment.sh', tmp_path / 'launch')
    for name in ('setup.cfg', 'pyproject.toml', 'launch/constraints.txt'):
        (tmp_path / name).touch()
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / '.venv'], check=True)
    (tmp_path / '.venv' / 'installed').write_text(str(tmp_path))  # no package is wanted
    done = subprocess.run(
        ['bash', '-c', 'source launch/environment.sh; .venv/bin/python -m pip --version'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('pip ')
