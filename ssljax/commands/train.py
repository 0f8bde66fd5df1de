"""`ssljax train`: an experiment file, overrides and a folder become a run."""

import os

from etils import epath

from ssljax import overrides
from ssljax.cli import Train, guarded
from ssljax.definitions import load_experiment as load
from ssljax.experiment import Experiment


def main(options: Train, changes: list[str]) -> int:
    """Trains, alone or as one of several processes; returns the exit code."""
    experiment, folder = resolve(options, changes)

    from ssljax.train.processes import Asked, together

    asked = Asked(options.coordinator, options.processes, options.process, options.distributed)
    work = lambda: guarded(lambda: _train(experiment, folder, options))
    return together(asked.completed(os.environ), work)


def _train(experiment: Experiment, folder: str, options: Train) -> int:
    import jax

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
    if profile is not None and jax.process_index() == 0:
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
