import dataclasses
from typing import Literal

import pytest
from flax import linen as nn

from ssljax import config, overrides


class Net(nn.Module):
    """A network.

    Attributes:
        depth: number of layers.
        widths: channels of each stage.
        dtype: what it computes in.
        norm: whether activations are normalised.
    """

    depth: Literal[18, 50] = 18
    widths: tuple[int, ...] = (64, 128)
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    norm: bool = True


@dataclasses.dataclass(frozen=True)
class Method:
    """The abstract parent; it has no fields."""


@dataclasses.dataclass(frozen=True)
class Pairs(Method):
    """A method.

    Attributes:
        encoder: the product.
        temperature: of the softmax. Paper: 0.1.
        tile: rows held at a time; None holds
            all of them.
    """

    encoder: nn.Module = dataclasses.field(default_factory=Net)
    temperature: float = 0.1
    tile: int | None = None

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f'temperature is {self.temperature}; it must be above 0')


@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement.

    Attributes:
        k: neighbours.
    """

    k: int = 20


@dataclasses.dataclass(frozen=True)
class Trial:
    """Everything that defines a run.

    Attributes:
        method: what is learned.
        scale: smallest and largest share of the image.
        milestones: epochs at which the rate falls.
        exclude: patterns over parameter paths.
        probes: what is measured.
        last: what is measured at the end.
        batch: images in a step.
        init_from: where the weights come from.
        gray: whether colour is dropped.
    """

    method: Method = dataclasses.field(default_factory=Pairs)
    scale: tuple[float, float] = (0.08, 1.0)
    milestones: tuple[float, ...] = ()
    exclude: tuple[str, ...] = ('bias$', '(^|/)norm')
    probes: tuple[Probe, ...] = (Probe(), Probe(k=200))
    last: Probe | Pairs | None = Probe(k=1)
    batch: int = 256
    init_from: str | None = None
    gray: bool = False


TRIAL = Trial(method=Pairs(encoder=Net(depth=50), tile=64))


def edit(line):
    return overrides.apply(TRIAL, line.split(), 'ssljax train trial.py')


def refusal(line, capsys):
    with pytest.raises(SystemExit) as caught:
        edit(line)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    return ' '.join(captured.err.replace('│', ' ').split())


def test_nothing_given_changes_nothing():
    assert edit('') == TRIAL
    assert config.encode(edit('')) == config.encode(TRIAL)


@pytest.mark.parametrize(
    ('line', 'path', 'value'),
    [
        ('--batch 512', 'batch', 512),
        ('--batch=512', 'batch', 512),
        ('--batch 3 --batch 4', 'batch', 4),
        ('--method.temperature 1e-2', 'method.temperature', 0.01),
        ('--method.temperature 2', 'method.temperature', 2.0),
        ('--method.tile 128', 'method.tile', 128),
        ('--method.tile None', 'method.tile', None),
        ('--method.encoder.depth 18', 'method.encoder.depth', 18),
        ('--method.encoder.dtype bfloat16', 'method.encoder.dtype', 'bfloat16'),
        ('--method.encoder.norm False', 'method.encoder.norm', False),
        ('--method.encoder.widths 1 2 3', 'method.encoder.widths', [1, 2, 3]),
        ('--gray True', 'gray', True),
        ('--scale 0.2 1', 'scale', [0.2, 1.0]),
        ('--milestones 60 80.5', 'milestones', [60.0, 80.5]),
        ('--exclude', 'exclude', []),
        ('--exclude head/.* bias$', 'exclude', ['head/.*', 'bias$']),
        ('--probes.1.k 5', 'probes.1.k', 5),
        ('--last.k 5', 'last.k', 5),
        ('--init-from runs/a', 'init_from', 'runs/a'),
        ('--init_from runs/a', 'init_from', 'runs/a'),
    ],
)
def test_an_option_edits_its_field_and_no_other(line, path, value):
    changes = config.diff(config.encode(TRIAL), config.encode(edit(line)))
    assert [(p, new) for p, _, new in changes] == [(path, value)]
    assert type(changes[0][2]) is type(value)


def test_several_options_at_once_leave_the_original_alone():
    before = config.encode(TRIAL)
    edited = edit('--method.temperature 0.2 --method.encoder.depth 18 --batch 512')
    assert edited == dataclasses.replace(
        TRIAL, method=Pairs(encoder=Net(), temperature=0.2, tile=64), batch=512
    )
    assert config.encode(TRIAL) == before


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('--method.temprature 0.2', ('--method.temprature', '--method.temperature FLOAT')),
        ('--bach 3', ('--bach', '--batch INT')),
        ('--method.encoder.dept 50', ('--method.encoder.depth {18,50}',)),
        ('--method.encoder.parent None', ('Unrecognized', '--method.encoder.parent')),
        ('--method.encoder.name x', ('Unrecognized', '--method.encoder.name')),
        ('--batch many', ('--batch', "'many'")),
        ('--batch 1.5', ('--batch', "'1.5'")),
        ('--batch', ('--batch', 'Missing value')),
        ('--method.tile few', ('--method.tile', 'few')),
        ('--method.encoder.depth 19', ('--method.encoder.depth', "'19'", "'18', '50'")),
        ('--method.encoder.dtype float16', ('float16', 'bfloat16')),
        ('--gray maybe', ('--gray', 'maybe', 'True', 'False')),
        ('--scale 0.2', ('--scale', '2 values')),
        ('--milestones soon', ('--milestones', 'soon')),
        ('512', ('512',)),
        ('--method.temperature -1', ('temperature is -1.0; it must be above 0',)),
    ],
)
def test_mistakes_are_named_on_stderr_with_code_2(line, words, capsys):
    message = refusal(line, capsys)
    for word in words:
        assert word in message
    assert '--help' in message


def test_help_lists_every_field_with_its_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        overrides.apply(TRIAL, ['--help'], 'ssljax train trial.py', description='It reaches 93%.')
    assert caught.value.code == 0
    text = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    for expected in (
        'usage: ssljax train trial.py',
        'It reaches 93%.',
        '--method.temperature FLOAT of the softmax. Paper: 0.1. (default: 0.1)',
        'rows held at a time; None holds all of them. (default: 64)',
        '--method.encoder.depth {18,50} number of layers. (default: 50)',
        'channels of each stage. (default: 64 128)',
        '--method.encoder.norm {True,False} whether activations are normalised. (default: True)',
        'smallest and largest share of the image. (default: 0.08 1.0)',
        "patterns over parameter paths. (default: 'bias$' '(^|/)norm')",
        '--probes.1.k INT neighbours. (default: 200)',
        'what is learned.',
    ):
        assert expected in text
    assert 'parent' not in text
    assert '.name' not in text
