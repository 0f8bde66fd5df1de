"""`ssljax train`: an experiment file, overrides and a folder become a run."""

import os
from typing import Any

from etils import epath

from ssljax import overrides
from ssljax.cli import Train, guarded
from ssljax.definitions import defined_in
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

    from ssljax.commands.alone import alone
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

        profile = Profile(session, target, flops, peak)
    measure = monitor(session)
    # Only behind all that may be refused: the lock makes the folder.
    with alone(target.path):
        outcome = train(session, target, measure, profile)
    if profile is not None and jax.process_index() == 0:
        print(profile.summary())
    return 0 if outcome.finished else EXIT_INTERRUPTED


def flops(lowered: Any) -> float:
    """Floating-point operations of a step on one device, rounds of its loops included."""
    from ssljax.plan.work import work_of

    return work_of(lowered, lowered.compile()).flops


def peak(dtype: str) -> float:
    """FLOP/s of a large matrix product on a device of this process, by itself."""
    import jax

    from ssljax.plan.measure import product_rate
    from ssljax.train.placement import Placement, make_mesh

    return product_rate(Placement(make_mesh(devices=jax.local_devices()[:1])), dtype)


def resolve(options: Train, changes: list[str]) -> tuple[Experiment, str]:
    """The experiment with its changes, and the folder of its run.

    Raises:
        ValueError: a run is to go on, and to be shrunk.
    """
    path, own = epath.Path(options.experiment), defined_in(options.definition)
    prog = f'ssljax train {options.experiment}'
    if (path / 'run.json').exists():
        if options.smoke:
            raise ValueError(
                f'{path} is the folder of a run, which goes on as it began; --smoke shrinks an '
                'experiment file. Leave --smoke out, or name the file'
            )
        from ssljax.train.folder import RunFolder

        experiment, folder = RunFolder(path, own).experiment(), str(path)
    else:
        experiment = load(options.experiment)
        if options.smoke:
            experiment = experiment.smoke()
        folder = f'runs/{path.stem}' + ('_smoke' if options.smoke else '')
    return overrides.apply(experiment, changes, prog), options.folder or folder
