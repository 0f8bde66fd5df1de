"""`ssljax export`: the encoder of a run in a format that others read."""

from etils import epath

from ssljax.cli import Export
from ssljax.definitions import defined_in
from ssljax.export import native, torchvision
from ssljax.train.folder import RunFolder, reach
from ssljax.train.initial import load_state


def main(options: Export) -> int:
    """Exports; returns the exit code."""
    folder = RunFolder.at(options.run, defined_in(options.definition))
    to = epath.Path(options.to) if options.to else folder.path / 'export' / options.format
    reach(to)
    session, state = load_state(folder, options.checkpoint)
    experiment = session.experiment
    module, variables = experiment.method.product(state.params, state.method)
    meta = {
        'step': int(state.step),
        'channels': session.data.channels,
        'size': dict(session.data.views)['image'][1],
        'mean': list(experiment.recipe.mean),
        'std': list(experiment.recipe.std),
    }
    FORMATS[options.format](to, module, variables, meta)
    print(f'{options.format} encoder of step {int(state.step)}: {to}')
    return 0


FORMATS = {'native': native.save, 'torchvision': torchvision.save}
