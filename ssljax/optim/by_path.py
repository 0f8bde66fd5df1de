"""An optimizer for each part of the parameters, as two players of a game each have their own."""

import dataclasses
import re

import jax
import optax

from ssljax.core import Run, Tree
from ssljax.optim.optimizer import Optimizer
from ssljax.optim.paths import check_pattern, paths

DEFAULT = 'default'
"""The label of the parameters that no pattern takes."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of the parameters, and what trains them.

    Attributes:
        pattern: a regular expression, searched in paths such as `discriminator/conv1/kernel`.
        optimizer: of the parameters with it in their path.
    """

    pattern: str
    optimizer: Optimizer

    def __post_init__(self):
        check_pattern(self.pattern)


@dataclasses.dataclass(frozen=True)
class ByPath:
    """Optimizers side by side: each sees its own parameters and their gradients, nothing else.

    Everything is per part: learning rate and its schedule, moments, weight decay, clipping (the
    global norm is that of the part). A part is trained as if the others did not exist.

    Attributes:
        default: trains the parameters that no part takes; the logged learning rate is its.
        parts: of the first whose pattern is found a parameter is trained.
    """

    default: Optimizer
    parts: tuple[Part, ...]

    def __post_init__(self):
        if not self.parts:
            raise ValueError(
                'there are no parts, so the default trains everything; give a Part for what is '
                'trained otherwise, or the default itself as the optimizer'
            )

    def schedule(self, run: Run) -> optax.Schedule:
        """The learning rate of the default by step."""
        return self.default.schedule(run)

    def build(self, run: Run) -> optax.GradientTransformation:
        """The optax transformation: its updates are added to the parameters.

        Raises:
            ValueError: when initialised, if a part is left without parameters.
        """
        transforms = {f'part{i}': part.optimizer.build(run) for i, part in enumerate(self.parts)}
        inner = optax.multi_transform({DEFAULT: self.default.build(run), **transforms}, self.labels)

        def init(params: Tree) -> Tree:
            found = set(jax.tree.leaves(self.labels(params)))
            for label, part in zip(transforms, self.parts, strict=True):
                if label not in found:
                    raise ValueError(
                        f'no parameter is left for the part {part.pattern!r}; there are '
                        f'{", ".join(paths(params)[:3])}, ..., and the first pattern found counts'
                    )
            return inner.init(params)

        return optax.GradientTransformation(init, inner.update)

    def labels(self, params: Tree) -> Tree:
        """Whose each parameter is: `part0`, `part1`, ... or `default`."""

        def label(path: str) -> str:
            found = (i for i, part in enumerate(self.parts) if re.search(part.pattern, path))
            return next((f'part{i}' for i in found), DEFAULT)

        return jax.tree.unflatten(jax.tree.structure(params), [label(p) for p in paths(params)])

    def smoke(self) -> 'ByPath':
        """The same parts, each for a few steps of a small batch."""
        small = [dataclasses.replace(part, optimizer=part.optimizer.smoke()) for part in self.parts]
        return dataclasses.replace(self, default=self.default.smoke(), parts=tuple(small))
