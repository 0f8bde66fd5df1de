"""What the README tells people to type, works."""

import pathlib
import re
import shlex

import pytest
import tyro

from ssljax import cli, overrides
from ssljax.commands.train import resolve
from ssljax.definitions import load_experiment, load_study
from ssljax.experiment import Experiment

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
BENCHMARKS = (ROOT / 'benchmarks' / 'README.md').read_text()
BLOCKS = '\n'.join(re.findall(r'```sh\n(.*?)```', README, re.DOTALL)).replace('\\\n', ' ')
COMMANDS = [words for line in BLOCKS.splitlines() if (words := shlex.split(line, comments=True))]
TRAIN = [
    words[2:]
    for words in COMMANDS
    if words[:2] == ['ssljax', 'train'] and words[2] != 'mirror.py'  # test_readme_method
]
SWEEP = [words[2:] for words in COMMANDS if words[:2] == ['ssljax', 'sweep']]
PLAN = [words[2:] for words in COMMANDS if words[:2] == ['ssljax', 'plan']]
OTHERS = [
    words[1:]
    for words in COMMANDS
    if words[0] == 'ssljax' and words[1] not in ('train', 'sweep', 'plan')
]


@pytest.mark.parametrize('words', TRAIN, ids=' '.join)
def test_training_commands_resolve(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options, changes = tyro.cli(cli.Train, args=words, return_unknown_args=True)
    experiment, folder = resolve(options, changes)
    assert isinstance(experiment, Experiment) and folder.startswith('runs/')
    assert changes == [] or experiment != resolve(options, [])[0]


def test_sweeps_have_their_studies_and_variants(monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in SWEEP:
        options = tyro.cli(cli.Sweep, args=words)
        assert load_study(options.study).runs(options.only)


@pytest.mark.parametrize('words', PLAN, ids=' '.join)
def test_plans_parse(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options, changes = tyro.cli(cli.Plan, args=words, return_unknown_args=True)
    experiment = load_experiment(options.experiment)
    assert overrides.apply(experiment, changes, 'ssljax plan') != experiment or not changes


@pytest.mark.parametrize('words', OTHERS, ids=' '.join)
def test_other_commands_parse(words):
    command = {'evaluate': cli.Evaluate, 'export': cli.Export, 'report': cli.Report}[words[0]]
    assert tyro.cli(command, args=words[1:]).run.startswith('runs/')


def test_nothing_is_left_to_fill_in():
    for text in (README, (ROOT / 'benchmarks' / 'README.md').read_text()):
        assert '@@' not in text


def test_the_scripts_it_names_are_there_and_can_be_run():
    for words in COMMANDS:
        if words[0].startswith('launch/'):
            assert (ROOT / words[0]).stat().st_mode & 0o111


def test_every_experiment_is_listed():
    for path in ROOT.glob('experiments/*.py'):
        assert f'`{path.name}`' in README


def test_the_race_is_the_one_that_was_run():
    cells = lambda line: [cell.strip() for cell in line.strip('|').split('|')]
    run = {
        row[0]: [*row[1:4], row[5], row[8]]
        for line in (ROOT / 'benchmarks' / 'race_60k' / 'results.md').read_text().splitlines()
        if line.startswith('| ') and (row := cells(line))[0] != 'encoder' and '---' not in row[0]
    }
    section = README.partition('### The race')[2].partition('\n## ')[0]
    shown = [cells(line) for line in section.splitlines() if line.startswith('| ')]
    assert {row[0]: row[1:] for row in shown if row[0] in run} == run
    assert len(shown) == len(run) + 2


def test_the_ablations_are_those_that_were_run():
    """Every accuracy in what is said of a study is in the table of that study."""
    said = README.split('What they found here')[1].split('\n## ')[0]
    ahead, *points = said.split('\n- ')
    studies = (
        *('simclr_temperature_head', 'moco_momentum_queue', 'moco_shuffle', 'simclr_views'),
        'cifar10_long',
    )
    for study, point in zip(studies, points, strict=True):
        table = (ROOT / 'benchmarks' / 'ablations' / study / 'results.md').read_text()
        measured = set(re.findall(r'\b\d\d\.\d\b', table))
        claimed = re.findall(r'\b\d\d\.\d\b', point)
        assert len(claimed) >= 4 and set(claimed) <= measured, (study, set(claimed) - measured)
    files = (f'ablations/{studies[0]}/results.md', 'race/results.md')
    known = ''.join((ROOT / 'benchmarks' / file).read_text() for file in files)
    assert set(re.findall(r'\b\d\d\.\d\b', ahead)) <= set(re.findall(r'\b\d\d\.\d\b', known))


def test_the_ratios_of_the_gpu_are_those_that_its_commands_printed():
    folder = ROOT / 'benchmarks' / 'h100'
    files = (folder / f'cost{kind}.txt' for kind in ('', '_without_triton'))
    rows = [line.split(' | ') for file in files for line in file.read_text().splitlines()]
    printed = {row[0].strip('| '): row[3] for row in rows if len(row) == 5 and '.' in row[3]}
    figures = BENCHMARKS.split('one NVIDIA H100')[1]
    line = next(line for line in figures.splitlines() if line.startswith('| `cost.py'))
    said = re.findall(r'(\w[\w ]*) (\d\.\d\d)', line.split('bare: ')[1].split(' | ')[0])
    said = {name.lower().replace(' ', '_'): ratio for name, ratio in said}
    assert said == {name: ratio for name, ratio in printed.items() if name != 'npid'}
    assert f'NPID: {printed["npid"]}' in figures and len(said) == 10


def test_the_table_of_costs_is_what_its_command_printed():
    """Each line is that of the newest file which has it, with the commit of that file."""
    newest = {}
    for file, commit in (('', '152ff98'), ('_without_triton', '152ff98'), ('_35fbc12', '35fbc12')):
        text = (ROOT / 'benchmarks' / 'h100' / f'cost{file}.txt').read_text()
        for line in text.splitlines():
            if line.startswith('| ') and ' ms |' in line:
                method, _, _, ratio, took = (cell.strip() for cell in line.strip('| ').split(' | '))
                newest[method] = (ratio, f'{float(took.split()[0]):.1f}', commit)
    section = BENCHMARKS.split('## Cost of a step, by method')[1].split('\n## ')[0]
    rows = [line.strip('| ').split(' | ') for line in section.splitlines() if line[:2] == '| ']
    shown = {row[0]: (row[2].strip('*'), *row[3:]) for row in rows[2:]}
    forms = {
        'NPID, NCE, a bank of 45,000': 'npid',
        'NPID, softmax over the bank': 'npid_softmax',
        'CPC, candidates of 16 images': 'cpc',
        'CPC, candidates of all 256': 'cpc_batch',
    }
    named = lambda name: forms.get(name, name.lower().replace(' ', '_'))
    assert {named(name): row for name, row in shown.items()} == newest
