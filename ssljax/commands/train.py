"""`ssljax train`: an experiment file, overrides and a folder become a run."""

import difflib
import importlib.util
import pathlib

from etils import epath

from ssljax import overrides
from ssljax.cli import Train
from ssljax.experiment import Experiment


def main(options: Train, changes: list[str]) -> int:
    """Trains; returns the exit code."""
    experiment, folder = resolve(options, changes)

    from ssljax.evaluate.monitor import monitor
    from ssljax.train.folder import RunFolder
    from ssljax.train.interrupt import EXIT_INTERRUPTED
    from ssljax.train.loop import train
    from ssljax.train.session import Session

    session = Session.open(experiment, options.devices)
    target = RunFolder.at(folder)
    profile = None
    if options.profile:
        from ssljax.train.profile import Profile

        profile = Profile(session, target)
    outcome = train(session, target, monitor(session), profile)
    if profile is not None:
        print(profile.summary())
    return 0 if outcome.finished else EXIT_INTERRUPTED


def resolve(options: Train, changes: list[str]) -> tuple[Experiment, str]:
    """The experiment with its changes, and the folder of its run."""
    path = epath.Path(options.experiment)
    prog = f'ssljax train {options.experiment}'
    if (path / 'run.json').exists():
        from ssljax.train.folder import RunFolder

        experiment, folder = RunFolder(path).experiment(), str(path)
    else:
        experiment = load(options.experiment)
        if options.smoke:
            experiment = experiment.smoke()
        folder = f'runs/{path.stem}' + ('_smoke' if options.smoke else '')
    return overrides.apply(experiment, changes, prog), options.folder or folder


def load(file: str) -> Experiment:
    """The experiment that a file defines by `config()`.

    Raises:
        ValueError: there is no such file (with near names), or it defines no experiment.
    """
    path = pathlib.Path(file)
    if path.suffix != '.py' or not path.is_file():
        known = [str(p) for p in sorted(pathlib.Path('experiments').glob('**/*.py'))]
        names = {p: p for p in known} | {pathlib.Path(p).stem: p for p in known}
        near = difflib.get_close_matches(file, names, n=3) or difflib.get_close_matches(
            path.stem, names, n=3
        )
        found = sorted({names[n] for n in near}) or known
        hint = f'; did you mean {" or ".join(found)}?' if found else ''
        raise ValueError(f'no experiment file {file}{hint}')
    spec = importlib.util.spec_from_file_location(f'experiment_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'config'):
        raise ValueError(f'{file} has no function config() -> Experiment; see experiments/')
    experiment = module.config()
    if not isinstance(experiment, Experiment):
        raise ValueError(f'config() of {file} returns {type(experiment).__name__}, not Experiment')
    return experiment
