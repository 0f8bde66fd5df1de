"""`ssljax evaluate`: a run's encoder beside random weights and raw pixels, all treated alike."""

import dataclasses
import json

import jax
from rich.console import Console

from ssljax.cli import Evaluate
from ssljax.core import Embed, TrainState
from ssljax.data.pipeline import in_order
from ssljax.data.registry import open_source
from ssljax.data.sources import Source
from ssljax.evaluate.embed import jitted
from ssljax.evaluate.features import extract, pixels
from ssljax.evaluate.linear import LogisticProbe
from ssljax.evaluate.online import spread
from ssljax.evaluate.sgd import BYOL, MOCO, SIMCLR, SGDProbe
from ssljax.evaluate.table import Display, Splits, table
from ssljax.experiment import Data
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.session import Session

PRESETS = {'simclr': SIMCLR, 'byol': BYOL, 'moco': MOCO}
"""The SGD probes by the name `--sgd` takes."""

RANDOM, PIXELS = 'the same at random', 'raw pixels'
"""The rows that a run's encoder is compared with."""

MOST_PIXELS = 2**30
"""Numbers in all images together (4 GiB in float32) beyond which raw pixels have no row."""

MOST_SCORES = 2**28
"""Training examples x classes x folds beyond which the linear probe is not fitted: its solver holds
several arrays of that many numbers, 1 GiB each."""


def main(options: Evaluate) -> int:
    """Evaluates; returns the exit code."""
    console = Console()
    display = Display(**evaluated(options)['display'])
    if console.is_terminal:
        console.print(display)
    else:
        console.print(display.markdown(), highlight=False, markup=False, soft_wrap=True)
    return 0


def evaluated(options: Evaluate) -> dict:
    """What evaluation.json holds, having looked at test if this question is new.

    Returns:
        `question`: the step and the options; `table`: `Table.as_dict`, the run's encoder first;
        `collapse`: measures by row; `display`: the table as text; `sgd`, if asked for.

    Raises:
        ValueError: there is no run with a checkpoint, or splits do not fit.
    """
    folder = RunFolder.at(options.run)
    session, state = load_state(folder)
    question = {'step': int(state.step), **dataclasses.asdict(options)}
    question.pop('run')
    known = _known(folder)
    if known is None or known['question'] != question:
        known = {'question': question, **_answer(session, state, options)}
        half = folder.evaluation.with_suffix('.tmp')
        half.write_text(json.dumps(known, indent=1))
        half.replace(folder.evaluation)
    return known


def _known(folder: RunFolder) -> dict | None:
    """The table that is there already: test is looked at once a question."""
    return json.loads(folder.evaluation.read_text()) if folder.evaluation.exists() else None


def _answer(session: Session, state: TrainState, options: Evaluate) -> dict:
    experiment = session.experiment
    sources = _sources(experiment.data, options)
    _check_memory(sources[0])
    encoders, more = _encoders(session, state, options), []
    numbers = sum(s.examples for s in sources) * experiment.recipe.size**2 * sources[0].channels
    if options.references and numbers <= MOST_PIXELS:
        encoders[PIXELS] = jax.jit(pixels)
    elif options.references:
        more.append(
            f'Raw pixels are left out: {numbers:.1e} numbers, more than the {MOST_PIXELS:.1e} that '
            'are held in memory.'
        )

    def embedded(embed: Embed) -> Splits:
        recipe, share = experiment.recipe, experiment.data.max_corrupt
        return tuple(extract(embed, in_order(s, recipe, options.batch, share)) for s in sources)

    rows = {name: embedded(embed) for name, embed in encoders.items()}
    found = table(rows)
    answer = {
        'table': found.as_dict(),
        'collapse': {name: spread(validation) for name, (_, validation, _) in rows.items()},
    }
    if options.sgd != 'none':
        probe = PRESETS[options.sgd]
        answer['sgd'] = {
            'probe': dataclasses.asdict(probe),
            'rows': {name: _sgd(probe, splits) for name, splits in rows.items()},
        }
        scores = [f'{name} {100 * a["top1"]:.1f}' for name, a in answer['sgd']['rows'].items()]
        more.append(f'Linear probe by SGD ({options.sgd} preset), top-1: {"; ".join(scores)}.')
    display = dataclasses.replace(found.display(), more=tuple(more))
    return {**answer, 'display': dataclasses.asdict(display)}


def _encoders(session: Session, state: TrainState, options: Evaluate) -> dict[str, Embed]:
    """The run's encoder and, as a reference, its random twin, by the names of their rows."""
    method, recipe = session.experiment.method, session.experiment.recipe
    epochs = int(state.step) / session.run.steps_per_epoch
    weights = lambda s: jitted(method, recipe, s.params, s.method, options.layer)
    encoders = {f'{type(method).__name__}, {epochs:.0f} epochs': weights(state)}
    return encoders | ({RANDOM: weights(session.fresh())} if options.references else {})


def _sources(data: Data, options: Evaluate) -> tuple[Source, Source, Source]:
    """Train, validation and test.

    Raises:
        ValueError: a split is missing, serves twice, or has no labels.
    """
    splits = {p: getattr(options, p) or getattr(data, p) for p in ('train', 'validation', 'test')}
    if splits['validation'] is None:
        raise ValueError(
            'the run has no validation split, which the k of kNN is chosen on; set --validation, '
            "and --train so that they share nothing: --train 'train[:90%]' --validation "
            "'train[90%:]'"
        )
    for one, other, why in (
        ('validation', 'test', 'k would be chosen on test'),
        ('train', 'test', 'the probes would be scored on what they are fitted to'),
        ('train', 'validation', 'every image would be its own neighbour when k is chosen'),
    ):
        if splits[one] == splits[other]:
            raise ValueError(
                f'{one} and {other} are both {splits[one]!r}, so that {why}; set --{one} to a '
                'split that shares nothing with it'
            )
    name = options.data or data.name
    sources = tuple(open_source(name, split) for split in splits.values())
    for source in sources:
        if source.class_names is None:
            raise ValueError(
                f'{source.name} has no labels, which probes and kNN are scored by; name data with '
                'labels by --data, or look at `ssljax report`, which needs none'
            )
    return sources


def _check_memory(train: Source) -> None:
    classes, folds = len(train.class_names), LogisticProbe().folds
    scores = train.examples * classes * folds
    if scores > MOST_SCORES:
        raise ValueError(
            f'the linear probe would hold {train.examples:,} examples x {classes:,} classes x '
            f'{folds} folds at once, more than {MOST_SCORES:,} numbers; fit it to a part of the '
            f'training images, at most {MOST_SCORES // (classes * folds):,} of them: --train'
        )


def _sgd(probe: SGDProbe, splits: Splits) -> dict[str, float]:
    train, _, test = splits
    classifier, _ = probe.fit(train)
    return dataclasses.asdict(classifier.accuracy(test))
