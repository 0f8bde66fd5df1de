"""The README's recipe for a new method, followed to the letter."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from ssljax import cli

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
SECTION = (ROOT / 'README.md').read_text().partition('## Add a method')[2].partition('\n## ')[0]
(PROGRAM,) = re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL)

OTHER = f"""
import dataclasses

from ssljax.definitions import load_experiment
from ssljax.nets.small import SmallResNet


def config():
    found = load_experiment({str(ROOT / 'experiments' / 'supervised_fashion_mnist.py')!r})
    method = dataclasses.replace(found.method, encoder=SmallResNet(stem_patch=4))
    return dataclasses.replace(found, method=method)
"""


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The file, in a folder that is gone to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mirror.py').write_text(PROGRAM)
    return tmp_path


@pytest.mark.slow
def test_the_file_trains_and_is_evaluated_as_it_stands(mirror, capsys):
    assert cli.run(['train', 'mirror.py', '--smoke']) == 0
    assert cli.run(['evaluate', 'runs/mirror_smoke', '--definition', 'mirror.py']) == 0
    assert 'Mirror, ' in capsys.readouterr().out
    assert cli.run(['export', 'runs/mirror_smoke', '--definition', 'mirror.py']) == 0


@pytest.mark.slow
def test_another_run_begins_from_one_of_a_users_class(mirror, monkeypatch, capsys):
    assert cli.run(['train', 'mirror.py', '--smoke', '--folder', 'origin']) == 0
    begun = ['--smoke', '--init-from', 'origin', '--folder']
    assert cli.run(['train', 'mirror.py', *begun, 'same']) == 0
    monkeypatch.delitem(sys.modules, 'defined_mirror')
    (mirror / 'other.py').write_text(OTHER)
    assert cli.run(['train', 'other.py', *begun, 'other']) == cli.EXIT_USAGE
    assert '--definition FILE' in capsys.readouterr().err
    assert cli.run(['train', 'other.py', *begun, 'other', '--definition', 'mirror.py']) == 0


@pytest.mark.slow
def test_it_learns(mirror):
    assert cli.run(['train', 'mirror.py', '--epochs', '3']) == 0
    lines = (mirror / 'runs' / 'mirror' / 'metrics.jsonl').read_text().splitlines()
    found = [float(f[1]) for line in lines if (f := re.search(r'"accuracy": ([\d.]+)', line))]
    assert sum(found[-3:]) / 3 > 0.6  # 0.5 by chance; many garments are symmetric


@pytest.mark.slow
def test_with_its_line_in_the_table_it_passes_the_common_tests(mirror):
    (line,) = re.findall(r"`('mirror': Case\(.*?\),)`", SECTION)
    table = (HERE / 'cases.py').read_text().replace('METHODS = {\n', f'METHODS = {{\n{line}\n')
    (mirror / 'cases.py').write_text(
        table.replace('import dataclasses\n', 'import dataclasses\nfrom mirror import Mirror\n', 1)
    )
    for name, folder in (('test_every_method.py', HERE), ('conftest.py', HERE.parent)):
        (mirror / name).write_text((folder / name).read_text())
    command = [sys.executable, '-m', 'pytest', '-q', '-k', 'mirror', '-c', ROOT / 'setup.cfg']
    found = subprocess.run(
        [*command, '--rootdir', mirror, mirror / 'test_every_method.py'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-3000:]
    assert int(re.search(r'(\d+) passed', found.stdout)[1]) > 10
