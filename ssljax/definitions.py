"""Python files that define something to run: `config() -> Experiment`, `study() -> Study`."""

import difflib
import importlib.util
import os
import pathlib
from typing import Any

from ssljax.experiment import Experiment
from ssljax.study import Study


def load_experiment(file: str | os.PathLike) -> Experiment:
    """The experiment that a file defines by `config()`.

    Raises:
        ValueError: there is no such file (with near names), or it defines no experiment.
    """
    return _called(os.fspath(file), 'config', Experiment, 'experiments/*.py')


def load_study(file: str | os.PathLike) -> Study:
    """The study that a file defines by `study()`.

    Raises:
        ValueError: there is no such file (with near names), or it defines no study.
    """
    return _called(os.fspath(file), 'study', Study, 'experiments/ablations/*.py')


def _called(file: str, function: str, kind: type, examples: str) -> Any:
    """What the function of that name in the file returns; `examples` are files that have one."""
    path, what = pathlib.Path(file), kind.__name__.lower()
    if path.suffix != '.py' or not path.is_file():
        known = [str(p) for p in sorted(pathlib.Path().glob(examples))]
        names = {p: p for p in known} | {pathlib.Path(p).stem: p for p in known}
        near = difflib.get_close_matches(file, names, n=3) or difflib.get_close_matches(
            path.stem, names, n=3
        )
        found = sorted({names[n] for n in near}) or known
        hint = f'; did you mean {" or ".join(found)}?' if found else ''
        raise ValueError(f'no {what} file {file}{hint}')
    spec = importlib.util.spec_from_file_location(f'{what}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ValueError(f'{file} has no function {function}() -> {kind.__name__}; see {examples}')
    value = getattr(module, function)()
    if not isinstance(value, kind):
        raise ValueError(
            f'{function}() of {file} returns {type(value).__name__}, not {kind.__name__}'
        )
    return value
