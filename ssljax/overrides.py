"""The command line as an editor of a frozen dataclass: `--method.temperature 0.2 --batch 512`."""

from typing import TypeVar

import tyro

Config = TypeVar('Config')

_STYLE = (
    tyro.conf.AvoidSubcommands,  # what a field holds is chosen in Python, its fields here
    tyro.conf.FlagConversionOff,  # `--flag True`: every override reads `--path value`
)


def apply(
    config: Config, arguments: list[str], prog: str, description: str | None = None
) -> Config:
    """A copy of `config` with the named fields replaced.

    Every field of every dataclass and Linen module inside, to any depth, is an option whose type is
    checked and whose default is what `config` holds; its help is its entry in the docstring.
    One value follows an option, as many as there are for a tuple (none for an empty one):
    `--method.tile None`, `--recipe.scale 0.2 1.0`, `--method.encoder.dtype bfloat16`,
    `--optimizer.nesterov True`. `-` and `_` are the same in names. The last of equal options wins.

    Args:
        config: a frozen dataclass, nested.
        arguments: the command line, without the program's name.
        prog: what the program is called in help and errors.
        description: what heads the help; None for the docstring of `config`.

    Returns:
        The edited copy, equal to `config` where nothing was given.

    Raises:
        SystemExit: with code 0 after `--help`; with 2, after a message that names near options, for
            an unknown option, a value of the wrong type or a value that a class refuses.
    """
    return tyro.cli(
        type(config),
        default=config,
        args=arguments,
        prog=prog,
        description=description,
        config=_STYLE,
    )
