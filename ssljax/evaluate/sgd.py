"""The papers' linear probe: a linear layer trained by SGD on frozen features.

The papers see a new random crop of each image in every epoch; here each image has one feature
vector, computed once, so a probe takes seconds and its numbers are not quite theirs. The layer
starts at zero rather than at small random weights. The presets' rates and batches are ImageNet's:
on some thousand images they take few steps (SimCLR's two an epoch) and end away from the optimum,
which `linear.LogisticProbe` reaches.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ssljax.evaluate.classifier import Classifier, Moments, encode
from ssljax.evaluate.features import Features


@dataclasses.dataclass(frozen=True)
class SGDProbe:
    """Multinomial logistic regression by mini-batch SGD. `SIMCLR`, `BYOL` and `MOCO` are presets.

    Attributes:
        learning_rate: base rate, multiplied by batch / 256.
        batch: examples a step; all of them where there are fewer. The last batch of an epoch is
            smaller where the batch does not divide the examples: each counts once an epoch.
        epochs: passes over the features.
        momentum: of SGD, in [0, 1).
        nesterov: whether the momentum looks ahead.
        weight_decay: added to the gradient, of kernel and bias.
        schedule: `cosine` to zero, step by step, or `step`.
        milestones: epochs at which `step` multiplies the rate by `factor`.
        factor: of `step`.
        standardize: whether features are standardised by the training set's moments first. The
            papers take them as they are.
        seed: of the order of the examples.
    """

    learning_rate: float = 0.1
    batch: int = 256
    epochs: int = 100
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal['cosine', 'step'] = 'cosine'
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    standardize: bool = False
    seed: int = 0

    def fit(self, train: Features) -> tuple[Classifier, Float[np.ndarray, ' epochs']]:
        """Trains on labelled features.

        Returns:
            The classifier, and the mean training loss of every epoch in nats.

        Raises:
            ValueError: no labels.
        """
        labels = train.targets()
        classes = np.unique(labels)
        x = jnp.asarray(train.features)
        moments = Moments.of(x) if self.standardize else Moments.identity(x.shape[1])
        (kernel, bias), losses = _train(
            moments.standardise(x), encode(labels, classes), probe=self, classes=len(classes)
        )
        return Classifier(moments, kernel, bias, jnp.asarray(classes)), np.asarray(losses)

    def rate(self, examples: int) -> optax.Schedule:
        """The learning rate by step."""
        batch = min(self.batch, examples)
        peak = self.learning_rate * batch / 256
        steps = -(-examples // batch)
        if self.schedule == 'cosine':
            return optax.cosine_decay_schedule(peak, self.epochs * steps)
        return optax.piecewise_constant_schedule(
            peak, {epoch * steps: self.factor for epoch in self.milestones}
        )


SIMCLR = SGDProbe(learning_rate=0.1, batch=4096, epochs=90, nesterov=True)
"""Chen et al. 2020, arXiv:2002.05709, linear evaluation."""

BYOL = SGDProbe(learning_rate=0.2, batch=1024, epochs=80, nesterov=True)
"""Grill et al. 2020, arXiv:2006.07733, linear evaluation."""

MOCO = SGDProbe(learning_rate=30.0, batch=256, schedule='step', milestones=(60, 80))
"""He et al. 2019, arXiv:1911.05722, section 4.1: 100 epochs, a tenth of the rate at 60 and 80."""


@functools.partial(jax.jit, static_argnames=('probe', 'classes'))
def _train(x, columns, *, probe: SGDProbe, classes: int):
    """One compiled loop over epochs and, inside, over batches."""
    n, d = x.shape
    batch = min(probe.batch, n)
    steps = -(-n // batch)
    optimizer = optax.chain(
        optax.add_decayed_weights(probe.weight_decay),
        optax.sgd(probe.rate(n), momentum=probe.momentum, nesterov=probe.nesterov),
    )

    def loss(parameters, x, y, real) -> Array:
        kernel, bias = parameters
        logits = jnp.matmul(x, kernel, precision='highest') + bias
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(entropy * real) / jnp.sum(real)

    def step(carry, item):
        parameters, state = carry
        rows, real = item
        value, gradient = jax.value_and_grad(loss)(parameters, x[rows], columns[rows], real)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value * jnp.sum(real)

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(probe.seed), number), n)
        rows = jnp.pad(order, (0, steps * batch - n)).reshape(steps, batch)
        real = (jnp.arange(steps * batch) < n).astype(x.dtype).reshape(steps, batch)
        carry, values = jax.lax.scan(step, carry, (rows, real))
        return carry, jnp.sum(values) / n

    parameters = jnp.zeros((d, classes), x.dtype), jnp.zeros(classes, x.dtype)
    start = parameters, optimizer.init(parameters)
    (parameters, _), losses = jax.lax.scan(epoch, start, jnp.arange(probe.epochs))
    return parameters, losses
