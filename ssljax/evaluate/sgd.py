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
from jaxtyping import Array, Float, Int

from ssljax.evaluate.classifier import Classifier, Moments, encode
from ssljax.evaluate.features import Features
from ssljax.losses.classification import cross_entropy

_SENT = 2**26
"""Numbers (256 MiB in float32) that are sent to the device at a time."""


@dataclasses.dataclass(frozen=True)
class SGDProbe:
    """Multinomial logistic regression by mini-batch SGD. `SIMCLR`, `BYOL` and `MOCO` are presets.

    Memory is bounded: the features are copied a few batches at a time.

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
        labels, x = train.targets(), train.features
        classes = np.unique(labels)
        columns = encode(labels, classes)
        (n, d), batch = x.shape, min(self.batch, len(x))
        moments = Moments.of(x) if self.standardize else Moments.identity(d)
        parameters = jnp.zeros((d, len(classes)), x.dtype), jnp.zeros(len(classes), x.dtype)
        carry = parameters, _optimizer(self, n).init(parameters)
        # The features stay on the host; as many batches of them as this are sent at a time.
        sent = max(1, _SENT // (batch * d))
        losses = []
        for epoch in range(self.epochs):
            rows, real = _batches(self, n, epoch)
            values = []
            for i in range(0, len(rows), sent):
                some = rows[i : i + sent]
                batches = x[some], columns[some], real[i : i + sent]
                carry, value = _train(carry, moments, batches, probe=self, examples=n)
                values.append(value)
                # What is sent waits on the device for its turn: no more than two of them.
                jax.block_until_ready(values[-2:-1])
            losses.append(sum(float(np.sum(value)) for value in values) / n)
        kernel, bias = carry[0]
        return Classifier(moments, kernel, bias, jnp.asarray(classes)), np.array(losses)

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


def _optimizer(probe: SGDProbe, examples: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(probe.weight_decay),
        optax.sgd(probe.rate(examples), momentum=probe.momentum, nesterov=probe.nesterov),
    )


def _batches(
    probe: SGDProbe, examples: int, epoch: int
) -> tuple[Int[np.ndarray, 'steps batch'], Float[np.ndarray, 'steps batch']]:
    """The rows of an epoch's batches, and 1 where they are real, 0 where they fill up the last."""
    batch = min(probe.batch, examples)
    steps = -(-examples // batch)
    key = jax.random.fold_in(jax.random.key(probe.seed), epoch)
    order = np.asarray(jax.random.permutation(key, examples))
    rows = np.pad(order, (0, steps * batch - examples)).reshape(steps, batch)
    real = np.arange(steps * batch).reshape(steps, batch) < examples
    return rows, real.astype(np.float32)


@functools.partial(jax.jit, static_argnames=('probe', 'examples'))
def _train(carry, moments: Moments, batches, *, probe: SGDProbe, examples: int):
    """Some steps in one compiled loop; also the loss of each, summed over its batch."""
    optimizer = _optimizer(probe, examples)

    def loss(parameters, x, y, real) -> Array:
        kernel, bias = parameters
        logits = jnp.matmul(x, kernel, precision='highest') + bias
        entropy = cross_entropy(logits, y)
        return jnp.sum(entropy * real) / jnp.sum(real)

    def step(carry, item):
        parameters, state = carry
        x, y, real = item
        x = moments.standardise(x)
        value, gradient = jax.value_and_grad(loss)(parameters, x, y, real)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value * jnp.sum(real)

    return jax.lax.scan(step, carry, batches)
