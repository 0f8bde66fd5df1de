"""The command line: `ssljax train | evaluate | export | report | sweep | plan`.

Nothing heavy is imported before it is needed: `--help` answers at once.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Literal

import tyro
from tyro.conf import Positional

Checkpoint = Literal['latest', 'best'] | int
"""Which checkpoint of a run."""

EXIT_USAGE = 2
"""Exit code of bad input: nothing was started."""

EXIT_FAILED = 1
"""Exit code of a run that failed; what it had saved is kept."""

USAGE = """usage: ssljax COMMAND ...

  train EXPERIMENT     pre-train, or go on where a run was stopped
  evaluate RUN         linear probe, few labels and kNN, beside random weights and raw pixels
  export RUN           hand the encoder on: native, torchvision
  report RUN           curves, views, neighbours and the table as one HTML page
  sweep STUDY          run what is missing of a study: variants over seeds, one table, one figure
  plan EXPERIMENT      what it needs on TPUs that need not be there: memory, time, cost

`ssljax COMMAND --help` says more. RUN is a folder that `train` has written.
"""


@dataclasses.dataclass(frozen=True)
class Train:
    """Pre-train EXPERIMENT, or go on where its run was stopped.

    Any field of the experiment may follow as an option (`--method.temperature 0.2`); `ssljax train
    EXPERIMENT --help` lists them. Exit codes: 0 finished, 75 told to stop (SIGTERM, Ctrl-C) and
    saved, 1 failed, 2 bad input. Started once on every host (see launch/), it is one run on all
    their devices; --folder is then on a disk that all of them see.
    """

    experiment: Positional[str]
    """A file with a function `config() -> Experiment`, or the folder of a run to go on with."""
    folder: str | None = None
    """Where the run is kept (default: runs/ and the name of the file)."""
    devices: int | None = None
    """Number of devices to use (default: all)."""
    smoke: bool = False
    """Shrink the experiment to seconds, on made images: does everything work?"""
    definition: str | None = None
    """The Python file that defines classes of your own, if EXPERIMENT or --init-from is the folder
    of a run that has any. It is executed."""
    profile: bool = False
    """Write a JAX trace of a few steps and the measured share of peak FLOPs."""
    coordinator: str | None = None
    """Of several processes: HOST:PORT of process 0 (default: JAX_COORDINATOR_ADDRESS)."""
    processes: int | None = None
    """Of several processes: how many (default: JAX_NUM_PROCESSES)."""
    process: int | None = None
    """Of several processes: which this is, from 0 (default: JAX_PROCESS_ID)."""
    distributed: bool = False
    """Of several processes: have SLURM, Open MPI, Cloud TPU or Kubernetes say which."""


@dataclasses.dataclass(frozen=True)
class OfRun:
    """What a command that takes a run is told of it."""

    run: Positional[str]
    """The folder of a run."""
    checkpoint: Checkpoint = 'latest'
    """latest, best (by kNN on validation images), or a step that is kept."""
    definition: str | None = None
    """The Python file that defines classes of your own, if the run has any. It is executed."""


@dataclasses.dataclass(frozen=True)
class Evaluate(OfRun):
    """Compare RUN's encoder with random weights and raw pixels, all treated alike.

    Prints the table and writes it to evaluation.json in the run's folder. Looks at the test split:
    once, when training and choosing are over.
    """

    data: str | None = None
    """Evaluate on another data set (default: the run's)."""
    train: str | None = None
    """Split that probes are fitted to and neighbours taken from (default: the run's)."""
    validation: str | None = None
    """Split that the k of kNN is chosen on (default: the run's)."""
    test: str | None = None
    """Split that is scored (default: the run's)."""
    layer: str = 'pool'
    """Layer of the encoder."""
    references: bool = True
    """Whether random weights and raw pixels have a row each."""
    sgd: Literal['none', 'simclr', 'byol', 'moco'] = 'none'
    """Also a paper's linear probe, SGD by its preset, for every row alike; on one frozen feature
    vector an image, where the papers crop and flip anew in every epoch. It takes any number of
    training images; logistic regression is left out where they are too many."""
    batch: int = 256
    """Images a batch."""


@dataclasses.dataclass(frozen=True)
class Export(OfRun):
    """Write the encoder of a checkpoint of RUN in a format that others read."""

    format: Literal['native', 'torchvision'] = 'native'
    """native: safetensors and config.json; torchvision: state-dict names, for ResNets."""
    to: str | None = None
    """Folder to write (default: export/ and the format, in the run's folder)."""


@dataclasses.dataclass(frozen=True)
class Report(OfRun):
    """Write RUN's report.html: curves, views as the network sees them, neighbours, the table."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run what is missing of STUDY: train and evaluate every variant with every seed.

    Leaves results.csv, results.md (mean and standard deviation over seeds), figure.png and, where
    runs look at validation on the way, curves.png; all written anew as each run finishes. Stopped
    in any way, the same command goes on. Several shells may work on one folder. Exit codes: 0
    finished, 75 told to stop (SIGTERM, Ctrl-C) and saved, 1 some runs failed, 2 bad input.
    """

    study: Positional[str]
    """A file with a function `study() -> Study`, such as those in experiments/ablations/."""
    folder: str | None = None
    """Where the study is kept, on a local disk (default: studies/ and the name of the file)."""
    only: tuple[str, ...] = ()
    """Names of the variants to run (default: all)."""
    smoke: bool = False
    """Shrink every experiment to seconds, on made images: does everything work?"""
    list: bool = False
    """Say what there is and what is done, and run nothing."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile EXPERIMENT's step for chips that need not be there, and say what it comes to.

    Memory by its parts, FLOPs, bytes and collectives of a chip; time at the chip's peaks, images/s,
    chip-hours and cost of the whole run; what the hosts have to feed. Any field of the experiment
    may follow as an option (`--batch 8192`). The data set need not be there if it is well known or
    `--examples` is given. Exit codes: 0 it fits, 1 it does not, 2 bad input.
    """

    experiment: Positional[str]
    """A file with a function `config() -> Experiment`."""
    topology: str
    """Chips as v5e:4x4, v5p:4x4x4 (v4, v5e, v5p, v6e); or `here` for the devices present."""
    sweep_batch: bool = False
    """Find the largest batch that fits, and plan for that one."""
    price: float | None = None
    """Dollars for a chip and hour."""
    host_rate: float | None = None
    """Images by second that one host core decodes (default: as measured, see benchmarks/)."""
    examples: int | None = None
    """Training images (default: a table of well-known sets, or the data set itself)."""
    classes: int | None = None
    """Classes; 0 for data without labels (default: likewise)."""
    channels: int | None = None
    """Channels of an image (default: likewise)."""
    devices: int | None = None
    """Number of devices to use, with `--topology here` (default: all)."""
    measure: bool = False
    """With `--topology here`: take some steps on made images, beside the plan."""
    json: str | None = None
    """File to write every figure to."""
    text: str | None = None
    """File to write the compiled program to, as XLA's text: to see what the bytes are."""


def _with_fields(command: type, module: str) -> Callable[[list[str]], int]:
    """A command whose options may be followed by fields of its experiment."""

    def main(arguments: list[str]) -> int:
        prog = f'ssljax {module}'
        # With an experiment named, --help is about its fields too, which takes importing it.
        named = next((a for a in arguments if not a.startswith('-')), None)
        asked = ['--help'] if any(a in ('-h', '--help') for a in arguments) else []
        if named is None or (asked and not os.path.exists(named)):
            tyro.cli(command, args=[*arguments, *asked], prog=prog)
        own = [a for a in arguments if a not in ('-h', '--help')]
        options, rest = tyro.cli(command, args=own, prog=prog, return_unknown_args=True)
        import importlib

        return importlib.import_module(f'ssljax.commands.{module}').main(options, [*rest, *asked])

    return main


def _plain(command: type, module: str) -> Callable[[list[str]], int]:
    def main(arguments: list[str]) -> int:
        options = tyro.cli(command, args=arguments, prog=f'ssljax {module}')
        import importlib

        return importlib.import_module(f'ssljax.commands.{module}').main(options)

    return main


COMMANDS = {
    'train': _with_fields(Train, 'train'),
    'evaluate': _plain(Evaluate, 'evaluate'),
    'export': _plain(Export, 'export'),
    'report': _plain(Report, 'report'),
    'sweep': _plain(Sweep, 'sweep'),
    'plan': _with_fields(Plan, 'plan'),
}


def main() -> None:
    """The entry point of `ssljax`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line and returns its exit code."""
    if not arguments or arguments[0] in ('-h', '--help'):
        print(USAGE, end='')
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == '--version':
        import ssljax

        print(ssljax.__version__)
        return 0
    if arguments[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        print(f'ssljax: no command {arguments[0]!r}{hint}\n\n{USAGE}', end='', file=sys.stderr)
        return EXIT_USAGE
    # TensorFlow greets at length otherwise.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    return guarded(lambda: COMMANDS[arguments[0]](arguments[1:]))


def guarded(command: Callable[[], int]) -> int:
    """The exit code of a command; an error that ssljax explains is printed without a traceback."""
    try:
        return command()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get('SSLJAX_TRACEBACK') or not _explains_itself(error):
            raise
        print(f'ssljax: {error}', file=sys.stderr)
        usage = EXIT_FAILED if isinstance(error, OSError) else EXIT_USAGE
        return getattr(error, 'exit_code', usage)


def _explains_itself(error: Exception) -> bool:
    """Whether an error was raised by ssljax, with a message for the user."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get('__name__', '').split('.')[0] == 'ssljax'
