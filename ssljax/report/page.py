"""Gathers what a run left and renders the page."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from ssljax.core import TrainState, with_keys
from ssljax.data.pipeline import Stream, batches, in_order
from ssljax.data.registry import open_source
from ssljax.data.sources import Source
from ssljax.evaluate import kept
from ssljax.evaluate.embed import jitted
from ssljax.evaluate.features import Features, extract
from ssljax.report import figures
from ssljax.report.measures import HEADER, measures
from ssljax.train import metrics
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.session import Session
from ssljax.views.gallery import contact_sheet

SHOWN_VIEWS = 8
SHOWN_QUERIES = 8
SHOWN_NEIGHBOURS = 8
BANK = 5_000
MAPPED = 1_000


def write(folder: RunFolder, checkpoint: Literal['latest', 'best'] | int = 'latest') -> epath.Path:
    """Writes `report.html` into a run's folder and returns its path.

    Args:
        folder: of the run.
        checkpoint: whose encoder is shown, as `load_state` takes it.

    Raises:
        ValueError: if there is no run, or it has no checkpoint.
    """
    import jinja2

    session, state = load_state(folder, checkpoint)
    record = folder.read()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('ssljax.report', ''), autoescape=True
    )
    page = environment.get_template('page.html').render(
        title=folder.path.name,
        subtitle=_subtitle(session, state, record),
        **_table(folder, kept.identity(session, state, record)),
        asked='' if checkpoint == 'latest' else f' --checkpoint {checkpoint}',
        curves=figures.curves(metrics.read(folder.path)),
        views=_views(session),
        record=json.dumps(record, indent=1),
        **_looks(session, state),
    )
    half = folder.report.with_suffix('.tmp')
    half.write_text(page)
    half.replace(folder.report)
    return folder.report


def _subtitle(session: Session, state: TrainState, record: dict[str, Any]) -> str:
    experiment, run = session.experiment, session.run
    module, variables = experiment.method.product(state.params, state.method)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    stand_in = '' if experiment.data.validation else ' · training images stand in for validation'
    return (
        f'{type(experiment.method).__name__} · {type(module).__name__} of {count:,} parameters · '
        f'{experiment.data.name} ({run.examples:,} images of {session.data.channels} channels) · '
        f'batch {run.batch} · step {int(state.step):,} of {run.steps:,} '
        f'({int(state.step) / run.steps_per_epoch:.1f} epochs) · {record["devices"]} · '
        f'commit {record["commit"]}{stand_in}'
    )


def _table(folder: RunFolder, shown: Mapping[str, int | str]) -> dict[str, Any]:
    """The table of the encoder that is shown, or the step that the one there is of."""
    found = kept.read(folder.evaluation)
    if found is None:
        return {'table': None, 'other': None}
    if not kept.is_of(found, shown):
        return {'table': None, 'other': found['question']['step']}
    display = found['display']
    return {
        'table': {**display, 'note': ' '.join((display['note'], *display['more']))},
        'measures': {'header': HEADER, 'rows': measures(found)},
    }


def _views(session: Session) -> str:
    """The first batch through both halves of the recipe."""
    experiment = session.experiment
    source = open_source(experiment.data.name, experiment.data.train)
    stream = Stream(
        batch=min(SHOWN_VIEWS, source.examples),
        seed=experiment.seed,
        max_corrupt=experiment.data.max_corrupt,
    )
    batch = next(iter(batches(source, experiment.recipe, stream, start=0, stop=1)))
    keyed = with_keys({k: jax.numpy.asarray(v) for k, v in batch.items()}, jax.random.key(0))
    sheet = contact_sheet(jax.jit(experiment.recipe.on_device)(keyed), experiment.recipe)
    return figures.picture(sheet, scale=max(1, 84 // session.data.views[0][1][1]))


def _looks(session: Session, state: TrainState) -> dict[str, Any]:
    """Neighbours among training images, and a map, of validation images; test stays closed."""
    experiment = session.experiment
    data, recipe, size = experiment.data, experiment.recipe, experiment.evaluation.batch
    embed = jitted(experiment.method, recipe, state.params, state.method)
    features = lambda source: extract(embed, in_order(source, recipe, size, data.max_corrupt))
    bank = open_source(data.name, data.train).spread(BANK)
    near = features(bank)
    if data.validation is None:
        asked, far = bank, near.take(_spread(len(near), MAPPED))
    else:
        asked = open_source(data.name, data.validation).spread(MAPPED)
        far = features(asked)
    queries = far.take(_spread(len(far), SHOWN_QUERIES))
    lines = []
    for query, found in zip(
        _cells(session, asked, queries),
        _nearest(queries, near, themselves=asked is bank),
        strict=True,
    ):
        neighbours = _cells(session, bank, near.take(found))
        for cell in neighbours if query['name'] else ():
            cell['kind'] = 'same' if cell['name'] == query['name'] else 'other'
        lines.append([{**query, 'kind': 'query'}, *neighbours])
    return {
        'neighbours': lines,
        'map': figures.embedding_map(far.features, far.labels, asked.class_names),
        'labelled': far.labels is not None,
    }


def _spread(rows: int, count: int) -> np.ndarray:
    """At most `count` of so many rows, spread evenly."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(int))


def _nearest(queries: Features, bank: Features, themselves: bool) -> np.ndarray:
    """The rows of the bank nearest to each query, nearest first; not itself if it is in there."""
    cosines = _unit(queries.features) @ _unit(bank.features).T
    if themselves:
        cosines[queries.index[:, None] == bank.index] = -np.inf
    count = min(SHOWN_NEIGHBOURS, len(bank) - themselves)
    return np.argsort(-cosines, axis=1)[:, :count]


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _cells(session: Session, source: Source, shown: Features) -> list[dict[str, Any]]:
    """The evaluation views of a few examples of a source, with their classes."""
    # By index: features leave corrupt records out, so that their rows are not positions.
    few = source.select(shown.index, 'shown')
    batch = next(iter(in_order(few, session.experiment.recipe, len(shown), max_corrupt=1.0)))
    labels = [None] * len(shown) if shown.labels is None else shown.labels
    return [
        {
            'image': figures.picture(image),
            'name': '' if label is None else source.class_names[label],
            'kind': '',
        }
        for image, label in zip(batch['image'], labels, strict=True)
    ]
