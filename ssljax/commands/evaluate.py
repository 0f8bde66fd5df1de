"""`ssljax evaluate`: a run's encoder beside random weights and raw pixels, all treated alike."""

import dataclasses
import json

import jax
from rich.console import Console
from rich.table import Table

from ssljax.cli import Evaluate
from ssljax.core import Embed
from ssljax.data.pipeline import in_order
from ssljax.data.registry import open_source
from ssljax.evaluate.embed import jitted
from ssljax.evaluate.features import Features, extract, pixels
from ssljax.evaluate.sgd import SGDProbe
from ssljax.evaluate.table import Splits, table
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.session import Session


def main(options: Evaluate) -> int:
    """Evaluates; returns the exit code."""
    folder, console = RunFolder.at(options.run), Console()
    session, state = load_state(folder)
    question = {'step': int(state.step), **dataclasses.asdict(options)}
    question.pop('run')
    known = _known(folder)
    if known is None or known['question'] != question:
        known = {'question': question, **_answer(session, state, options)}
        half = folder.evaluation.with_suffix('.tmp')
        half.write_text(json.dumps(known, indent=1))
        half.replace(folder.evaluation)
    _show(console, known['display'])
    return 0


def _show(console: Console, display: dict) -> None:
    """A drawn table for a person, Markdown for a file."""
    if not console.is_terminal:
        console.print(display['markdown'], highlight=False, markup=False, soft_wrap=True)
        return
    drawn = Table(caption=display['note'], caption_justify='left')
    for i, name in enumerate(display['header']):
        drawn.add_column(name, justify='right' if i else 'left')
    for cells in display['rows']:
        drawn.add_row(*cells)
    console.print(drawn)
    for line in display['more']:
        console.print(line, highlight=False)


def _known(folder: RunFolder) -> dict | None:
    """The table that is there already: test is looked at once a question."""
    return json.loads(folder.evaluation.read_text()) if folder.evaluation.exists() else None


def _answer(session: Session, state, options: Evaluate) -> dict:
    experiment = session.experiment
    method, recipe = experiment.method, experiment.recipe
    fresh = session.fresh()
    weights = lambda s: jitted(method, recipe, s.params, s.method, options.layer)
    encoders = {
        f'{type(method).__name__}, {int(state.step) / session.run.steps_per_epoch:.0f} epochs': (
            weights(state)
        ),
        'the same at random': weights(fresh),
        'raw pixels': jax.jit(pixels),
    }
    rows = {name: _features(session, embed, options) for name, embed in encoders.items()}
    found = table(rows)
    answer = {
        'table': found.as_dict(),
        'display': {
            'header': found.header(),
            'rows': [row.cells() for row in found.rows],
            'note': found.caption(),
            'markdown': found.markdown(),
            'more': [],
        },
    }
    if options.sgd:
        answer['sgd'] = {name: _sgd(splits) for name, splits in rows.items()}
        lines = [f'{name}: {100 * a["top1"]:.1f}' for name, a in answer['sgd'].items()]
        line = 'Linear probe by SGD, top-1: ' + '; '.join(lines)
        answer['display']['more'].append(line)
        answer['display']['markdown'] += f'\n{line}\n'
    return answer


def _features(session: Session, embed: Embed, options: Evaluate) -> Splits:
    data = session.experiment.data
    name = options.data or data.name

    def of(split: str) -> Features:
        source = open_source(name, split)
        return extract(embed, in_order(source, session.experiment.recipe, options.batch))

    return of(data.train), of(data.validation), of(data.test)


def _sgd(splits: Splits) -> dict[str, float]:
    train, _, test = splits
    classifier, _ = SGDProbe().fit(train)
    return dataclasses.asdict(classifier.accuracy(test))
