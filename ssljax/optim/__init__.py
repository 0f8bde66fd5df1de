"""Optimizers as values: LARS, AdamW and SGD, their learning rates, clipping and freezing.

An optimizer is a frozen dataclass: `schedule(run)` is its learning rate by step, `build(run)` the
optax transformation. Which parameters are left out of weight decay and of LARS's adaptation is
said by regular expressions over their paths, and so is, in `ByPath`, which optimizer trains what.
"""

from ssljax.optim.adamw import AdamW
from ssljax.optim.by_path import ByPath, Part
from ssljax.optim.freeze import freeze
from ssljax.optim.lars import LARS
from ssljax.optim.optimizer import Optimizer
from ssljax.optim.sgd import SGD

__all__ = ['LARS', 'SGD', 'AdamW', 'ByPath', 'Optimizer', 'Part', 'freeze']
