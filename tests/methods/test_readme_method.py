"""The README's recipe for a new method, followed to the letter."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ssljax import cli
from ssljax.nets.small import SmallResNet

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
def test_made_one_of_ours_it_passes_the_tests(tmp_path):
    """Both steps, in a copy of the project."""
    for folder in ('ssljax', 'tests'):
        left_out = shutil.ignore_patterns('__pycache__', '.cache')
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=left_out)
    for file in ('setup.cfg', 'pyproject.toml', 'README.md'):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / 'benchmarks').mkdir()
    shutil.copy(ROOT / 'benchmarks' / 'README.md', tmp_path / 'benchmarks')
    (tmp_path / 'experiments').mkdir()
    experiment, count = 'ssljax train experiments/mirror.py', parameters()
    assert all(said in SECTION for said in (experiment, 'PARAMETERS = ...'))
    whole, begin, config = PROGRAM.partition('def config')
    imports = whole.partition('@dataclass')[0].partition('import dataclasses')[2]
    theirs = r'from ssljax\.(experiment|optim|views).*\n'  # what the experiment alone needs
    method = re.sub(theirs, '', whole)
    (tmp_path / 'ssljax' / 'methods' / 'mirror.py').write_text(method)
    (tmp_path / 'experiments' / 'mirror.py').write_text(
        f'"""Mirror images: {experiment}"""\n{imports}\nfrom ssljax.methods.mirror import Mirror\n'
        f'PARAMETERS = {count}\n\n{begin}{config}'
    )
    (line,) = re.findall(r"`('mirror': Case\(.*?\),)`", SECTION)
    cases = tmp_path / 'tests' / 'methods' / 'cases.py'
    table = cases.read_text().replace('METHODS = {\n', f'METHODS = {{\n{line}\n', 1)
    ours = 'from ssljax.methods.'
    cases.write_text(table.replace(ours, f'{ours}mirror import Mirror\n{ours}', 1))
    files = ('methods/test_every_method', 'test_experiments', 'test_smoke', 'test_architecture')
    command = [sys.executable, '-m', 'pytest', '-q', '-k', 'mirror or listed']
    found = subprocess.run(
        [*command, *(f'tests/{file}.py' for file in (*files, 'test_readme'))],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-3000:]
    assert int(re.search(r'(\d+) passed', found.stdout)[1]) > 20


def parameters():
    """Of the encoder that the README gives to Mirror."""
    shapes = jax.eval_shape(
        lambda: SmallResNet(stem_patch=4).init(
            jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False
        )
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
