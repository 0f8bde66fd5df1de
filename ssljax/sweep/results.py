"""The table of a study: every run as a line of CSV, mean and standard deviation in Markdown."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssljax.study import Run, Study
from ssljax.sweep import curves, figure, lock
from ssljax.sweep.folder import StudyFolder, write
from ssljax.sweep.lines import COLUMNS, SHARE, Line, cell, lines, share

COST = ('parameters', 'steps', 'images', 'passes', 'wall_s', 'peak_memory_mib')
ORIGIN = ('date', 'commit', 'ssljax', 'devices')


def publish(study: Study, folder: StudyFolder) -> None:
    """Writes table and figure from all results there are, each file whole; others may do so too."""
    with lock.held(folder.path):
        found = folder.results(study)
        table = lines(study, found)
        write(folder.path / 'results.csv', as_csv(found))
        write(folder.path / 'results.md', as_markdown(study, table))
        panels = {COLUMNS[m]: [(line, line.values(m)) for line in table] for m in study.figure}
        shown = {name: panel for name, panel in panels.items() if all(v for _, v in panel)}
        if table and shown:
            write(folder.path / 'figure.png', figure.draw(study.title, shown, study.grid()))
        if picture := curves.draw(study.title, found):
            write(folder.path / 'curves.png', picture)


def as_csv(found: Sequence[tuple[Run, Mapping[str, Any]]]) -> str:
    """A line for every row (`trained`, `random`, `pixels`) of every result; shares in [0, 1]."""
    factors = dict.fromkeys(name for run, _ in found for name, _ in run.variant.factors)
    collapse = ('feature_std', 'effective_rank', 'uniformity', 'alignment')
    scored = ('linear', 'few', 'few_std', 'knn', 'c', 'k', 'dimensions')
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['variant', 'seed', 'row', *factors, *scored, *collapse, *COST, *ORIGIN])
    for run, result in found:
        own = dict(run.variant.factors)
        for kind, row in result['rows'].items():
            values = [share(row, measure) for measure in SHARE]
            values.insert(2, row['few'] and row['few']['std'])
            writer.writerow(
                [run.variant.name, run.seed, kind, *(own.get(name, '') for name in factors)]
                + [*values, row['c'], row['k'], row['dimensions']]
                + [row.get(name, '') for name in collapse]
                + [result[name] if kind == 'trained' else '' for name in COST]
                + [result[name] for name in ORIGIN]
            )
    return text.getvalue()


def as_markdown(study: Study, table: Sequence[Line]) -> str:
    """The table and what its numbers are."""
    factors = list(dict.fromkeys(name for line in table for name in line.factors))
    measured = [COLUMNS[measure] for measure in SHARE]
    header = ['encoder', *factors, *measured, 'rank', 'seeds']
    header += ['images', 'passes', 'training, s', 'memory, MiB']
    ruler = ['---', *('---:' for _ in header[1:])]
    rows = [header, ruler, *(_cells(line, factors) for line in table)]
    parts = [f'# {study.title}', '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)]
    if table:
        parts.append(_caption(table))
    if study.note:
        parts.append(study.note)
    done = sum(len(line.rows) for line in table if not line.reference)
    total = len(study.runs())
    if done < total:
        parts.append(f'**{total - done} of {total} runs are missing.**')
    return '\n\n'.join(parts) + '\n'


def _cells(line: Line, factors: Sequence[str]) -> list[str]:
    rank = statistics.mean(row['effective_rank'] for row in line.rows)
    cells = [line.name, *(str(line.factors.get(name, '')) for name in factors)]
    cells += [*(cell(line.values(m)) for m in SHARE), f'{rank:.1f}', str(len(line.rows))]
    if line.reference:
        return [*cells, '', '', '', '']
    mean = lambda name: _mean(result[name] for result in line.results)
    memory = mean('peak_memory_mib')
    cells += [f'{mean("images"):,.0f}', f'{mean("passes"):.1f}', f'{mean("wall_s"):.0f}']
    return [*cells, '' if memory is None else f'{memory:,.0f}']


def _mean(values: Iterable[int | float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.mean(known)) if known else None


def _caption(table: Sequence[Line]) -> str:
    linear = table[0].rows[0]['linear']
    error = 100 * (linear['top1'] * (1 - linear['top1']) / linear['count']) ** 0.5
    newest = max((result for line in table for result in line.results), key=lambda r: r['date'])
    commits = sorted({str(result['commit']) for line in table for result in line.results})
    return (
        f'{table[0].results[0]["note"]} Several seeds: mean ± standard deviation (n - 1) over '
        'seeds, of the few labels after averaging over draws. Of every run the last checkpoint is '
        'evaluated, and nothing is chosen on test. rank: effective rank of the features on '
        'validation. images: drawn, each as often as passes says. training: wall-clock seconds '
        'without compilation and without validation on the way; memory: the most that the '
        'training process held of the host. The standard error of one linear score, from the '
        f'number of test images alone, is {error:.1f} points; all rows are scored on the same '
        f'images, so their differences are surer than that. Commit {", ".join(commits)}; '
        f'{newest["date"][:10]}; {newest["devices"]}.'
    )
