"""What may import what: arrows point one way, and files stay small and named for what they hold."""

import ast
import graphlib
import pathlib
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ('ssljax', 'experiments', 'benchmarks', 'tests')
LONGEST = 400
NAMELESS = {'utils', 'util', 'helpers', 'helper', 'common', 'misc'}

ALLOWED = {
    'core': (),
    'losses': ('losses',),
    'nets': ('nets', 'core'),
    'memory': ('memory', 'core'),
    'momentum': ('momentum', 'core'),
    'methods': ('methods', 'core', 'losses', 'nets', 'memory', 'momentum'),
    'data': ('data',),
    'views': ('views', 'core', 'data.graph', 'data.picture'),
    'optim': ('optim', 'core'),
    'experiment': ('core', 'optim', 'views.recipe'),
    'config': (),
    'overrides': ('config',),
    'study': ('experiment',),
    'definitions': ('experiment', 'study'),
    'sweep': ('sweep', 'study', 'experiment', 'config'),
    'export': ('export', 'core', 'nets', 'config'),
    'train': (
        'train', 'core', 'data', 'definitions', 'views.recipe', 'experiment', 'config', 'export',
        'optim.restart', '__init__',
    ),
    'evaluate': (
        'evaluate', 'core', 'data', 'losses.classification', 'views.recipe', 'train.session',
        'train.placement',
    ),
    'report': ('report', 'core', 'data', 'views', 'evaluate', 'train'),
    'plan': ('plan', 'core', 'train.session', 'train.placement'),
    'commands': (
        'commands', 'cli', 'config', 'core', 'data', 'definitions', 'evaluate', 'experiment',
        'export', 'overrides', 'plan', 'report', 'study', 'sweep', 'train',
    ),
    'cli': ('commands', '__init__'),
    '__init__': ('gpu',),
    'gpu': (),
}  # fmt: skip
"""Packages and modules of ssljax, and those of it that they may import. Whatever is not named in a
line is forbidden there: no method in `train`, no training in `methods`, no command anywhere."""

MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for path in sorted(ROOT.glob('ssljax/**/*.py'))
}


def is_module(name):
    return name in MODULES or f'{name}.__init__' in MODULES


def imports(tree, package):
    """Full names of all modules imported in a syntax tree, of a file in `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) - node.level + 1]
            base = '.'.join([*(above if node.level else ()), *filter(None, [node.module])])
            for alias in node.names:
                full = f'{base}.{alias.name}'
                yield full if is_module(full) else base


def within(name, place):
    """Whether module `name` is `ssljax.<place>` or lies in it."""
    if place == '__init__':
        return name == 'ssljax'
    return name == f'ssljax.{place}' or name.startswith(f'ssljax.{place}.')


def forbidden(name, source):
    """What the file of module `name` imports and may not."""
    package = name.rpartition('.')[0]
    place = name.split('.')[1]
    found = set(imports(ast.parse(source), package))
    ours = {i for i in found if i.split('.')[0] in FOLDERS}
    return sorted(i for i in ours if not any(within(i, allowed) for allowed in ALLOWED[place]))


@pytest.mark.parametrize('name', MODULES)
def test_imports_point_one_way(name):
    assert forbidden(name, MODULES[name].read_text()) == []


def test_every_package_has_its_line_and_every_line_its_package():
    assert {name.split('.')[1] for name in MODULES} == set(ALLOWED)


@pytest.mark.parametrize(
    ('name', 'source', 'found'),
    [
        (
            'ssljax.train.loop',
            'from ssljax.methods.simclr import SimCLR',
            ['ssljax.methods.simclr'],
        ),
        ('ssljax.train.loop', 'from ssljax import methods', ['ssljax.methods']),
        ('ssljax.train.loop', 'from ..methods import simclr', ['ssljax.methods.simclr']),
        ('ssljax.train.loop', 'def f():\n    import ssljax.cli', ['ssljax.cli']),
        ('ssljax.train.loop', 'from ssljax.train import step\nimport ssljax, jax', []),
        ('ssljax.losses.tiling', 'from ssljax.core import Tree', ['ssljax.core']),
        ('ssljax.methods.simclr', 'from ssljax.data import pipeline', ['ssljax.data.pipeline']),
        ('ssljax.views.host', 'import ssljax.data.registry', ['ssljax.data.registry']),
        ('ssljax.views.host', 'from ssljax.data.graph import Tensor', []),
        ('ssljax.core', 'from experiments import simclr_cifar10', ['experiments']),
        ('ssljax.config', 'import tests.conftest', ['tests.conftest']),
    ],
)
def test_a_wrong_import_is_found(name, source, found):
    assert forbidden(name, textwrap.dedent(source)) == found


def test_modules_import_each_other_in_no_circle():
    graph = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        # What is imported inside functions is imported when everything else is there.
        tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        needed = imports(ast.Module(tops, []), name.rpartition('.')[0])
        graph[name] = [n if n in MODULES else f'{n}.__init__' for n in needed if is_module(n)]
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize('folder', FOLDERS)
def test_files_are_short_and_named_for_what_they_hold(folder):
    paths = sorted((ROOT / folder).glob('**/*.py'))
    assert paths
    for path in paths:
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST, f'{path} has {lines} lines'
        assert not NAMELESS & {path.stem, *path.relative_to(ROOT).parts}, path
