"""Devices by the name of a topology: those of TPUs that nobody here owns, or the ones at hand."""

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax

from ssljax.plan.chips import CHIPS, Chip, known
from ssljax.plan.environment import HERE

INSTALL = "pip install -c launch/constraints.txt -e '.[tpu-plan]'"

SHAPES = {
    2: ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    3: ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16'),
}
"""Usual slices of chips in a 2D (v5e, v6e) and a 3D (v4, v5p) network."""

AXES = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
        name: as given.
        devices: all of them; they need not exist.
        chip: what they are, None if that is not in the table.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None

    @property
    def kind(self) -> str:
        """What JAX calls the devices."""
        return self.devices[0].device_kind


def topology(name: str, devices: int | None = None) -> Topology:
    """The devices of a topology, such as `v5e:4x4` or `here`.

    Args:
        name: chip and slice as `CHIP:AxB` or `CHIP:AxBxC`; `here` (or `local`) for those present.
        devices: how many of those here; None for all.

    Raises:
        ValueError: if there is no such chip or slice, with near names, or if `libtpu` is missing.
    """
    if name in HERE:
        found = jax.devices()
        count = len(found) if devices is None else devices
        if not 1 <= count <= len(found):
            raise ValueError(f'{count} devices asked for, {len(found)} here; use 1 to {len(found)}')
        return Topology(name, found[:count], known(found[0].device_kind))
    if devices is not None:
        raise ValueError(f'--devices is for --topology here; {name} states its number of devices')
    chip, shape = _checked(name)
    if importlib.util.find_spec('libtpu') is None:
        raise ValueError(
            f'planning for {name} needs the TPU compiler (libtpu), which is not installed: run\n'
            f'    {INSTALL}\n'
            'in a checkout (best in an environment of its own: with libtpu there, JAX looks for a '
            'TPU whenever it starts). --topology here needs nothing'
        )
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if chip == 'v4':
        options['chip_config_name'] = 'megacore'  # its two cores as one device, as JAX runs it
    if len(sizes := [int(n) for n in shape.split('x')]) == 2 and max(sizes) == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(name, platform='tpu', **options)
    except Exception as error:
        raise ValueError(
            f'the TPU compiler knows no slice {name}: {str(error).splitlines()[0]}. '
            f'Usual ones: {_usual(chip)}'
        ) from error
    return Topology(name, described.devices, CHIPS[chip])


def _checked(name: str) -> tuple[str, str]:
    """Chip and slice of a topology's name."""
    chip, _, shape = name.partition(':')
    if chip not in CHIPS:
        near = difflib.get_close_matches(chip.lower().replace('tpu', '').strip(' -_'), CHIPS, n=2)
        hint = f', did you mean {" or ".join(near)}' if near else ''
        raise ValueError(
            f'{name!r} names no known chip{hint}; expected CHIP:SLICE with one of '
            f'{", ".join(CHIPS)}, such as v5e:4x4, or here'
        )
    if not re.fullmatch(r'\d+(x\d+)*', shape) or shape.count('x') + 1 != AXES[chip]:
        near = difflib.get_close_matches(shape, SHAPES[AXES[chip]], n=2, cutoff=0.4)
        hint = f'; did you mean {" or ".join(f"{chip}:{s}" for s in near)}?' if near else '.'
        raise ValueError(
            f'{name!r} names no slice of {chip}, whose chips lie in {AXES[chip]} dimensions{hint} '
            f'Usual ones: {_usual(chip)}'
        )
    return chip, shape


def _usual(chip: str) -> str:
    return ', '.join(f'{chip}:{shape}' for shape in SHAPES[AXES[chip]])
