"""Python files that define something to run: `config() -> Experiment`, `study() -> Study`."""

import difflib
import importlib.util
import os
import pathlib
import sys
from types import ModuleType
from typing import Any

from ssljax.experiment import Experiment
from ssljax.study import Study

PREFIX = 'defined_'
"""What the names of modules that are such files begin with."""


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


def defined_in(file: str | os.PathLike | None) -> tuple[ModuleType, ...]:
    """The module that a file is, for `config.decode` to be allowed its classes; none for None.

    Raises:
        ValueError: there is no such file (with near names).
    """
    return () if file is None else (_module(os.fspath(file), 'Python', 'experiments/*.py'),)


def executed() -> tuple[ModuleType, ...]:
    """The modules of all files executed here: named by the user, so that their classes may load."""
    return tuple(module for name, module in sys.modules.items() if name.startswith(PREFIX))


def defining(encoded: Any) -> tuple[str, ...]:
    """The files, executed here before, that define classes which a configuration in JSON names."""
    if isinstance(encoded, list):
        return tuple(sorted({file for item in encoded for file in defining(item)}))
    if not isinstance(encoded, dict) or 'type' not in encoded:
        return ()
    home = encoded['type'].rpartition('.')[0]
    own = (sys.modules[home].__file__,) if home.startswith(PREFIX) else ()
    return tuple(sorted({*own, *defining(list(encoded['fields'].values()))}))


def _called(file: str, function: str, kind: type, examples: str) -> Any:
    """What the function of that name in the file returns; `examples` are files that have one."""
    module = _module(file, kind.__name__.lower(), examples)
    if not hasattr(module, function):
        raise ValueError(f'{file} has no function {function}() -> {kind.__name__}; see {examples}')
    value = getattr(module, function)()
    if not isinstance(value, kind):
        raise ValueError(
            f'{function}() of {file} returns {type(value).__name__}, not {kind.__name__}'
        )
    return value


def _module(file: str, what: str, examples: str) -> ModuleType:
    """The file, executed as a module whose name follows from the file's alone."""
    path = pathlib.Path(file)
    if path.suffix != '.py' or not path.is_file():
        known = [str(p) for p in sorted(pathlib.Path().glob(examples))]
        names = {p: p for p in known} | {pathlib.Path(p).stem: p for p in known}
        near = difflib.get_close_matches(file, names, n=3) or difflib.get_close_matches(
            path.stem, names, n=3
        )
        found = sorted({names[n] for n in near}) or known
        hint = f'; did you mean {" or ".join(found)}?' if found else ''
        raise ValueError(f'no {what} file {file}{hint}')
    # One name for an experiment, a study and the file of a class: what one wrote the other reads.
    spec = importlib.util.spec_from_file_location(f'{PREFIX}{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module
