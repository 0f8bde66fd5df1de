"""The fair comparison: several encoders, one treatment, one table.

Every row is standardised, tuned and drawn for alike: C by cross-validation within the labels given,
k on validation, the same few labels. Test labels are read once, to score what has been chosen.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.table import Table as RichTable

from ssljax.evaluate.accuracy import Accuracy
from ssljax.evaluate.classifier import Moments
from ssljax.evaluate.features import Features
from ssljax.evaluate.knn import CANDIDATES, choose_k, knn
from ssljax.evaluate.linear import FewLabels, LogisticProbe, draw, few_labels, linear

Splits = tuple[Features, Features, Features]
"""(train, validation, test) of one encoder."""

Examples = tuple[tuple[np.ndarray, np.ndarray], ...]
"""(index, labels) of the examples of each split."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How every row is treated.

    Attributes:
        per_class: labels a class of the few-label probe.
        draws: of those labels.
        seed: of the draws.
        candidates: values of k.
        temperature: of the neighbours' weights.
        probe: the linear probe, on all labels and on few; None: neither is fitted.
    """

    per_class: int = 10
    draws: int = 20
    seed: int = 0
    candidates: tuple[int, ...] = CANDIDATES
    temperature: float = 0.07
    probe: LogisticProbe | None = dataclasses.field(default_factory=LogisticProbe)


@dataclasses.dataclass(frozen=True)
class Row:
    """One encoder's results on test, and what was chosen without it.

    Attributes:
        name: of the encoder.
        dimensions: width of its features.
        linear: probe on all labels; None, as `c` and `few`, where the protocol has no probe.
        c: its strength, chosen by cross-validation.
        few: probe on a few labels a class; None also where a class has not as many.
        knn: nearest neighbours among the training features.
        k: how many, chosen on validation.
    """

    name: str
    dimensions: int
    linear: Accuracy | None
    c: float | None
    few: FewLabels | None
    knn: Accuracy
    k: int

    def cells(self) -> tuple[str, str, str, str]:
        """Name, linear, few labels, kNN; in per cent, - for what is not there."""
        linear = '-' if self.linear is None else f'{100 * self.linear.top1:.1f}'
        few = '-' if self.few is None else f'{100 * self.few.mean:.1f} ± {100 * self.few.std:.1f}'
        return self.name, linear, few, f'{100 * self.knn.top1:.1f}'


@dataclasses.dataclass(frozen=True)
class Display:
    """What a table shows, as text: `rich.print(display)` on a terminal, `markdown()` in a file.

    Attributes:
        header: names of the columns, the encoder's first.
        rows: a cell per column.
        note: what the numbers are.
        more: further lines below.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    more: Sequence[str] = ()

    def markdown(self) -> str:
        """In Markdown, the note below."""
        ruler = ('---', *('---:' for _ in self.header[1:]))
        lines = ['| ' + ' | '.join(cells) + ' |' for cells in (self.header, ruler, *self.rows)]
        return '\n\n'.join(('\n'.join(lines), self.note, *self.more)) + '\n'

    def __rich__(self) -> RichTable:
        """For a terminal."""
        drawn = RichTable(caption='\n'.join((self.note, *self.more)), caption_justify='left')
        for i, name in enumerate(self.header):
            drawn.add_column(name, justify='right' if i else 'left')
        for cells in self.rows:
            drawn.add_row(*cells)
        return drawn


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that may be compared. `rich.print(table)`, `table.markdown()`, `table.as_dict()`.

    Attributes:
        rows: in the order given.
        protocol: how each was made.
        examples: number of (training, validation, test) examples.
        classes: number of classes.
    """

    rows: tuple[Row, ...]
    protocol: Protocol
    examples: tuple[int, int, int]
    classes: int

    def header(self) -> tuple[str, str, str, str]:
        """The columns' names."""
        train = self.examples[0]
        few = f'linear, {self.protocol.per_class} labels a class'
        return 'encoder', f'linear, {train:,} labels', few, 'kNN'

    def caption(self) -> str:
        """What the numbers are."""
        train, validation, test = self.examples
        images = f'Top-1 on {test:,} test images in per cent, {self.classes} classes'
        features = f'Features standardised on the {train:,} training images'
        k = f'k on {validation:,} validation images'
        if self.protocol.probe is None:
            return f'{images}. {features}; {k}. Logistic regression is left out (-).'
        c = 'C by cross-validation within the labels given'
        if self.rows[0].few is None:
            few = f'a class has fewer than {self.protocol.per_class} labels'
            return f'{images}. {features}; {c}, {k}. Few labels are left out (-): {few}.'
        return (
            f'{images}; few labels: mean ± std over {self.protocol.draws} draws, the same for '
            f'every row. {features}; {c}, {k}.'
        )

    def display(self) -> Display:
        """The table as text, which can be kept and shown again."""
        return Display(self.header(), tuple(row.cells() for row in self.rows), self.caption())

    def markdown(self) -> str:
        """The table in Markdown, the caption below."""
        return self.display().markdown()

    def __rich__(self) -> Display:
        """The table for a terminal."""
        return self.display()

    def as_dict(self) -> dict:
        """Everything, for JSON: shares in [0, 1], counts, what was chosen; None if left out."""
        return {
            'examples': dict(zip(('train', 'validation', 'test'), self.examples, strict=True)),
            'classes': self.classes,
            'protocol': dataclasses.asdict(self.protocol),
            'rows': [
                {
                    **dataclasses.asdict(row),
                    'few': row.few
                    and {
                        'mean': row.few.mean,
                        'std': row.few.std,
                        'top1': [a.top1 for a in row.few.accuracies],
                        'cs': list(row.few.cs),
                        'labels': row.few.per_class * self.classes,
                    },
                }
                for row in self.rows
            ],
        }


def table(
    rows: Mapping[str, Splits] | Iterable[tuple[str, Splits]], protocol: Protocol | None = None
) -> Table:
    """Compares encoders by linear probe, few labels and kNN, all treated exactly alike.

    Args:
        rows: (train, validation, test) features by name; the same examples in every row. An
            iterator may make them as they are asked for: those of a row are let go before.
        protocol: how.

    Returns:
        The table, rows in the order given.

    Raises:
        ValueError: no rows, labels missing, or rows of different examples.
    """
    protocol = protocol or Protocol()
    found, first, drawn = [], None, None
    for name, splits in rows.items() if isinstance(rows, Mapping) else rows:
        examples = tuple((split.index, split.targets()) for split in splits)
        if first is None:
            first, known = name, examples
            labels = known[0][1]
            enough = np.unique(labels, return_counts=True)[1].min() >= protocol.per_class
            if protocol.probe is not None and enough:
                drawn = draw(labels, protocol.per_class, draws=protocol.draws, seed=protocol.seed)
        _same_examples(first, known, name, examples)
        found.append(_row(name, splits, drawn, protocol))
        del splits  # before the next ones are made
    if first is None:
        raise ValueError('a table of no rows; give the features of at least one encoder')
    return Table(
        rows=tuple(found),
        protocol=protocol,
        examples=tuple(len(index) for index, _ in known),
        classes=len(np.unique(labels)),
    )


def _same_examples(first: str, known: Examples, name: str, other: Examples) -> None:
    for split, a, b in zip(('train', 'validation', 'test'), known, other, strict=True):
        if not all(map(np.array_equal, a, b)):
            raise ValueError(
                f'rows {first!r} and {name!r} hold different {split} examples or labels; extract '
                'every row from the same splits'
            )


def _row(name: str, splits: Splits, drawn: np.ndarray | None, protocol: Protocol) -> Row:
    train, validation, test = splits
    # A layer's own scale is no merit. The probes standardise by the same statistics.
    near = {'temperature': protocol.temperature, 'moments': Moments.of(train.features)}
    k, _ = choose_k(train, validation, candidates=protocol.candidates, **near)
    accuracy = c = few = None
    if protocol.probe is not None:
        accuracy, fit = linear(train, test, protocol.probe)
        c = fit.c
    if drawn is not None:
        few = few_labels(train, test, drawn, protocol.probe)
    return Row(
        name=name,
        dimensions=train.features.shape[1],
        linear=accuracy,
        c=c,
        few=few,
        knn=knn(train, test, ks=(k,), **near)[k],
        k=k,
    )
