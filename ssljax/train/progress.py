"""What a person sees while a run goes: a bar on a terminal, plain lines in a file."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping

import jax
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

SHOWN = ('loss', 'knn_top1', 'linear_top1', 'images/s')
PLAIN_EVERY = 10.0
"""Seconds between plain lines, so that a log of a long run stays readable."""


class Bar(Progress):
    """A bar, and under it the newest measures: beside it they do not fit into 80 columns."""

    shown = ''

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar's own line, and the measures'."""
        yield from super().get_renderables()
        yield Text(self.shown, overflow='ellipsis', no_wrap=True)


class Reporter:
    """Shows the newest value of a few measures, and lines of text."""

    def __init__(self, steps: int, console: Console, bar: Bar | None):
        self._console, self._bar, self._steps = console, bar, steps
        self._task = None if bar is None else bar.add_task('training', total=steps)
        self._values: dict[str, float] = {}
        self._last = -PLAIN_EVERY

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """The state of the run after `step` steps and `seconds` of running."""
        self._values.update({name: values[name] for name in SHOWN if name in values})
        shown = '  '.join(f'{name} {_short(value)}' for name, value in self._values.items())
        if self._bar is not None:
            self._bar.shown = shown
            self._bar.update(self._task, completed=step)
        elif seconds - self._last >= PLAIN_EVERY or step == self._steps:
            self._last = seconds
            self.say(f'step {step}/{self._steps}  {shown}  {seconds:.0f} s')


def _short(value: float) -> str:
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3f}'


@contextlib.contextmanager
def reporter(steps: int, start: int = 0) -> Iterator[Reporter]:
    """A reporter on standard output; silent but in process 0."""
    console = Console(file=sys.stdout, quiet=jax.process_index() != 0)
    if not console.is_terminal:
        yield Reporter(steps, console, None)
        return
    columns = (
        TextColumn('{task.description}'),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, expand=True) as bar:
        shown = Reporter(steps, console, bar)
        shown.show(start, {}, 0.0)
        yield shown
