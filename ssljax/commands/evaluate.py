"""`ssljax evaluate`: a run's encoder beside random weights and raw pixels, all treated alike."""

import dataclasses
import json

import jax
from rich.console import Console

from ssljax.cli import Evaluate
from ssljax.core import Embed, TrainState, Tree
from ssljax.data.pipeline import in_order
from ssljax.data.registry import open_source
from ssljax.data.sources import Source
from ssljax.definitions import defined_in
from ssljax.evaluate.embed import encoder, jitted
from ssljax.evaluate.features import extract, pixels
from ssljax.evaluate.linear import LogisticProbe
from ssljax.evaluate.online import spread
from ssljax.evaluate.paired import Encode, paired
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
    folder = RunFolder.at(options.run, defined_in(options.definition))
    display = Display(**evaluated(folder, options)['display'])
    if console.is_terminal:
        console.print(display)
    else:
        console.print(display.markdown(), highlight=False, markup=False, soft_wrap=True)
    return 0


def evaluated(folder: RunFolder, options: Evaluate) -> dict:
    """What evaluation.json of a run's folder holds, having looked at test if the question is new.

    Returns:
        `question`: the step and the options; `table`: `Table.as_dict`, the run's encoder first;
        `collapse`: measures by row (`alignment` where the recipe makes two views); `display`: the
        table as text; `sgd`, if asked for.

    Raises:
        ValueError: there is no run with a checkpoint, or splits do not fit.
    """
    session, state = load_state(folder, options.checkpoint)
    question = {'step': int(state.step), **dataclasses.asdict(options)}
    for name in ('run', 'checkpoint', 'definition'):  # which step it is, says `step`
        question.pop(name)
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
        flat = lambda views: views.reshape(len(views), -1)
        encoders[PIXELS] = _Encoder(jax.jit(pixels), flat, ())
    elif options.references:
        more.append(
            f'Raw pixels are left out: {numbers:.1e} numbers, more than the {MOST_PIXELS:.1e} that '
            'are held in memory.'
        )

    def embedded(embed: Embed) -> Splits:
        recipe, share = experiment.recipe, experiment.data.max_corrupt
        return tuple(extract(embed, in_order(s, recipe, options.batch, share)) for s in sources)

    rows = {name: embedded(encoder.embed) for name, encoder in encoders.items()}
    views = {
        name: paired(encoder.encode, encoder.weights, session, sources[1], options.batch)
        for name, encoder in encoders.items()
    }
    found = table(rows)
    answer = {
        'table': found.as_dict(),
        'collapse': {name: spread(rows[name][1], views[name]) for name in rows},
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


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """One row of the table.

    Attributes:
        embed: of images as they are stored.
        encode: `(*weights, images)`, of images that the recipe has normalised.
        weights: of `encode`.
    """

    embed: Embed
    encode: Encode
    weights: tuple[Tree, ...]


def _encoders(session: Session, state: TrainState, options: Evaluate) -> dict[str, _Encoder]:
    """The run's encoder and, as a reference, its random twin, by the names of their rows."""
    method, recipe = session.experiment.method, session.experiment.recipe
    epochs = int(state.step) / session.run.steps_per_epoch

    def row(state: TrainState) -> _Encoder:
        embed = jitted(method, recipe, state.params, state.method, options.layer)
        return _Encoder(embed, encoder(method, options.layer), (state.params, state.method))

    encoders = {f'{type(method).__name__}, {epochs:.0f} epochs': row(state)}
    return encoders | ({RANDOM: row(session.fresh())} if options.references else {})


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
