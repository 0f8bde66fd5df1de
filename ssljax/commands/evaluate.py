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
from ssljax.evaluate import kept
from ssljax.evaluate.embed import encoder, jitted
from ssljax.evaluate.features import extract, pixels
from ssljax.evaluate.linear import LogisticProbe
from ssljax.evaluate.online import spread
from ssljax.evaluate.paired import Encode, paired
from ssljax.evaluate.sgd import BYOL, MOCO, SIMCLR, SGDProbe
from ssljax.evaluate.table import Display, Protocol, Splits, table
from ssljax.experiment import Data
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.session import Session, shared_images

PRESETS = {'simclr': SIMCLR, 'byol': BYOL, 'moco': MOCO}
"""The SGD probes by the name `--sgd` takes."""

SPLITS = ('train', 'validation', 'test')

RANDOM, PIXELS = 'the same at random', 'raw pixels'
"""The rows that a run's encoder is compared with."""

MOST_PIXELS = 2**30
"""Numbers in all images together (4 GiB in float32) beyond which raw pixels have no row."""

MOST_SCORES = 2**28
"""Training examples x classes x folds beyond which logistic regression is not fitted: its solver
holds several arrays of that many numbers, 1 GiB each."""


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
        `question`: the encoder, the splits and the options; `table`: `Table.as_dict`, the run's
        encoder first; `collapse`: measures by row (`alignment` where the recipe makes two views);
        `display`: the table as text; `sgd`, if asked for.

    Raises:
        ValueError: there is no run with a checkpoint, or splits do not fit.
    """
    session, state = load_state(folder, options.checkpoint)
    data = _data(session.experiment.data, options)
    question = {
        **kept.identity(session, state, folder.read()),
        **{name: getattr(data, name) for name in SPLITS},
        'data': data.name,
        **{name: getattr(options, name) for name in ('layer', 'references', 'sgd', 'batch')},
    }
    known = kept.read(folder.evaluation)
    # Test is looked at once a question.
    if known is None or known['question'] != question:
        known = {'question': question, **_answer(session, state, data, options)}
        half = folder.evaluation.with_suffix('.tmp')
        half.write_text(json.dumps(known, indent=1))
        half.replace(folder.evaluation)
    return known


def _data(data: Data, options: Evaluate) -> Data:
    """The data of a run, as the options change it."""
    asked = {name: getattr(options, name) for name in ('train', 'validation', 'test')}
    asked['name'] = options.data
    return dataclasses.replace(data, **{k: v for k, v in asked.items() if v is not None})


def _answer(session: Session, state: TrainState, data: Data, options: Evaluate) -> dict:
    experiment, recipe = session.experiment, session.experiment.recipe
    sources = tuple(map(session.takes, probed(data)))
    protocol = Protocol()
    more = [*_differs(experiment.data, data, options.layer), *_seen(experiment.data, data)]
    if reason := too_many(sources[0], options.sgd):
        protocol = dataclasses.replace(protocol, probe=None)
        more.append(reason)
    encoders = _encoders(session, state, options)
    numbers = sum(s.examples for s in sources) * recipe.size**2 * sources[0].channels
    if options.references and numbers <= MOST_PIXELS:
        # As `pixels` has them, of views that the recipe has normalised.
        flat = lambda views: recipe.denormalize(views).reshape(len(views), -1)
        encoders[PIXELS] = _Encoder(jax.jit(pixels), flat, ())
    elif options.references:
        more.append(
            f'Raw pixels are left out: {numbers:.1e} numbers, more than the {MOST_PIXELS:.1e} that '
            'are held in memory.'
        )
    collapse, sgd = {}, {}
    probe = PRESETS.get(options.sgd)

    def features(name: str, encoder: _Encoder) -> Splits:
        """Those of a row, measured here by what is no part of the table."""
        splits = tuple(
            extract(encoder.embed, in_order(s, recipe, options.batch, data.max_corrupt), s.examples)
            for s in sources
        )
        views = paired(encoder.encode, encoder.weights, session, sources[1], options.batch)
        collapse[name] = spread(splits[1], views)
        if probe is not None:
            sgd[name] = _sgd(probe, splits)
        return splits

    # One after the other: of a million images the features of one encoder take 10 GB.
    found = table(((name, features(name, e)) for name, e in encoders.items()), protocol)
    answer = {'table': found.as_dict(), 'collapse': collapse}
    if probe is not None:
        answer['sgd'] = {'probe': dataclasses.asdict(probe), 'rows': sgd}
        scores = [f'{name} {100 * a["top1"]:.1f}' for name, a in sgd.items()]
        said = f'Linear probe by SGD ({options.sgd} preset, no crops and flips), top-1'
        more.append(f'{said}: {"; ".join(scores)}.')
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


def probed(data: Data) -> tuple[Source, Source, Source]:
    """Train, validation and test.

    Raises:
        ValueError: a split is missing, shares images with another, or has no labels.
    """
    if data.validation is None:
        raise ValueError(
            'the run has no validation split, which the k of kNN is chosen on; set --validation, '
            "and --train so that they share nothing: --train 'train[:90%]' --validation "
            "'train[90%:]'"
        )
    data.check(shared_images(data.name), '--')
    splits = (data.train, data.validation, data.test)
    sources = tuple(open_source(data.name, split) for split in splits)
    for source in sources:
        if source.class_names is None:
            raise ValueError(
                f'{source.name} has no labels, which probes and kNN are scored by; name data with '
                'labels by --data, or look at `ssljax report`, which needs none'
            )
    return sources


def _differs(trained: Data, data: Data, layer: str) -> list[str]:
    """A line on what is evaluated, where that is not what the run itself names."""
    said = [] if layer == 'pool' else [f'layer {layer}']
    if any(getattr(trained, name) != getattr(data, name) for name in ('name', *SPLITS)):
        said.append(f'{data.name} ({", ".join(f"{s}: {getattr(data, s)}" for s in SPLITS)})')
    return [f'Evaluated: {", ".join(said)}.'] if said else []


def _seen(trained: Data, data: Data) -> list[str]:
    """A line on the test images that the encoder has been trained on, if there are any."""
    if trained.name != data.name:
        return []
    count = shared_images(data.name)(trained.train, data.test)
    seen = f'The encoder was trained on {count:,} of the test images (its train: {trained.train}).'
    return [seen] if count else []


def too_many(train: Source, sgd: str) -> str | None:
    """Why logistic regression is left out, if it is.

    Raises:
        ValueError: it is all there would be.
    """
    classes, folds = len(train.class_names), LogisticProbe().folds
    if train.examples * classes * folds <= MOST_SCORES:
        return None
    held = (
        f'would hold {train.examples:,} examples x {classes:,} classes x {folds} folds at once, '
        f'more than {MOST_SCORES:,} numbers'
    )
    if sgd == 'none':
        most = MOST_SCORES // (classes * folds)
        raise ValueError(
            f'the linear probe {held}; fit it to a part of the training images, at most {most:,} '
            f"of them: --train 'train[:{most}]', or have SGD fit one to all of them instead: "
            '--sgd moco, simclr or byol'
        )
    return f'Logistic regression {held}.'


def _sgd(probe: SGDProbe, splits: Splits) -> dict[str, float]:
    train, _, test = splits
    classifier, _ = probe.fit(train)
    return dataclasses.asdict(classifier.accuracy(test))
