"""SGD with momentum."""

import dataclasses

import optax

from ssljax.optim.optimizer import Optimizer, add_weight_decay, require


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: m <- momentum * m + g + weight_decay * w, w <- w - rate * m.

    Weight decay is part of the gradient and, as in the recipes that use it, excludes nothing unless
    told to.

    Attributes:
        exclude: regular expressions; parameters with one of them in their path do not decay.
        momentum: in [0, 1).
        nesterov: step along momentum * m + g instead of m.
    """

    exclude: tuple[str, ...] = ()
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.momentum < 1, 'momentum', self.momentum, 'in [0, 1)')
        if self.nesterov and not self.momentum:
            raise ValueError(
                'nesterov is True and momentum 0; Nesterov needs momentum, such as 0.9'
            )

    def rule(
        self, schedule: optax.Schedule, weight_decay: optax.Schedule
    ) -> optax.GradientTransformation:
        """Weight decay, then optax's momentum."""
        return optax.chain(
            add_weight_decay(weight_decay, self.included),
            optax.sgd(schedule, self.momentum or None, nesterov=self.nesterov),
        )
