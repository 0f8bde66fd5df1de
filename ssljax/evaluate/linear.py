"""Linear probes on frozen features: logistic regression on all labels, or on a few a class.

The strength of the penalty is chosen by cross-validation within the labels given, and by nothing
else: neither validation nor test labels have any part in it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ssljax.evaluate.accuracy import Accuracy
from ssljax.evaluate.classifier import Classifier, Moments, encode
from ssljax.evaluate.features import Features
from ssljax.evaluate.logistic import Problem, Solution, rotate, solve, with_intercept

STRENGTHS = tuple(float(f'{10 ** (i / 2):.3g}') for i in range(-10, 5))
"""C from 1e-5 to 100 in half decades."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted probe and how it was chosen.

    Attributes:
        classifier: fitted on all labels given.
        c: the strength chosen (scikit-learn's C).
        validated: mean cross-entropy of held-out examples in nats, by C, for every C tried; empty
            where there was nothing to choose.
        objective: C sum_i crossentropy_i + |W|^2 / 2 at the end, as scikit-learn counts it.
        iterations: of the last fit.
    """

    classifier: Classifier
    c: float
    validated: dict[float, float]
    objective: float
    iterations: int


@dataclasses.dataclass(frozen=True)
class FewLabels:
    """Test accuracy from a few labels a class, over draws.

    Attributes:
        accuracies: by draw.
        cs: the strength chosen in every draw.
        per_class: labels a class.
    """

    accuracies: tuple[Accuracy, ...]
    cs: tuple[float, ...]
    per_class: int

    @property
    def mean(self) -> float:
        """Mean top-1, in [0, 1]."""
        return float(np.mean([a.top1 for a in self.accuracies]))

    @property
    def std(self) -> float:
        """Standard deviation of top-1 over draws (n - 1 in the denominator; 0 for one draw)."""
        return float(np.std([a.top1 for a in self.accuracies], ddof=len(self.accuracies) > 1))


@dataclasses.dataclass(frozen=True)
class LogisticProbe:
    """Full-batch multinomial logistic regression with an L2 penalty, intercept free.

    The strength is the one with the least held-out cross-entropy. Held-out accuracy, the other
    usual criterion, is too coarse on a hundred labels: on Fashion-MNIST pixels (10 a class, 20
    draws) it made 70.2 +- 1.8 where cross-entropy made 70.6 +- 1.6; on all labels both chose alike.

    All examples and classes are in memory at once, once per fold: meant for up to about 1e5
    examples and 100 classes. `sgd.SGDProbe` is for more.

    Attributes:
        cs: strengths C to choose from, ascending; larger means less penalty. One value: no
            cross-validation.
        folds: of the stratified cross-validation; fewer where a class has fewer labels (a class
            with one label is trained on in all and held out in none).
        patience: the path from small to large C ends once this many values in a row did worse than
            the best: what lies beyond costs most and wins nothing, since the held-out
            cross-entropy falls to one minimum and rises again. It may rise a little before that
            (where one direction that says nothing of the classes outweighs all others), so the
            path goes on as long as no value is 2% better than the first.
        seed: of the folds.
        tolerance: of the last fit, relative to the objective; cross-validation stops at 100 times
            as much.
        iterations: the most a fit may take.
    """

    cs: tuple[float, ...] = STRENGTHS
    folds: int = 5
    patience: int = 2
    seed: int = 0
    tolerance: float = 1e-6
    iterations: int = 1000

    def fit(self, train: Features, moments: Moments | None = None) -> Fit:
        """Fits to labelled features.

        Args:
            train: the features and the labels given.
            moments: statistics to standardise by; those of `train` if None.

        Returns:
            The classifier with the best C (of equals the smallest).

        Raises:
            ValueError: no labels, or too few of a class to cross-validate.
        """
        labels, n = train.targets(), len(train)
        classes = np.unique(labels)
        columns = encode(labels, classes)
        moments = Moments.of(train.features) if moments is None else moments
        base, basis = _problem(train.features, moments, columns, classes=len(classes))
        start = jnp.zeros((1, base.inputs.shape[1], len(classes)))
        c, validated = self.cs[0], {}
        if len(self.cs) > 1:
            c, validated, start = self._choose(base, columns, start)
        solution = _solve(
            base,
            jnp.full((1, n), 1 / n),
            jnp.full(1, 1 / (c * n)),
            start,
            tolerance=self.tolerance,
            iterations=self.iterations,
        )
        parameters = solution.weights[0]
        classifier = Classifier(
            moments=moments,
            kernel=jnp.matmul(basis, parameters[:-1], precision='highest'),
            bias=parameters[-1],
            classes=jnp.asarray(classes),
        )
        objective = float(solution.objective[0]) * c * n
        return Fit(classifier, c, validated, objective, int(solution.iterations[0]))

    def _choose(self, base: Problem, columns: np.ndarray, start: Array):
        """The path of C over all folds at once, each fit starting where the last one ended."""
        fold = stratified(columns, self.folds, self.seed)
        held = np.arange(fold.max() + 1)[:, None] == fold
        counts = np.sum(~held, axis=1)
        weights = jnp.asarray(~held / counts[:, None], jnp.float32)
        start = jnp.repeat(start, len(held), axis=0)
        best, chosen, worse, validated = start, None, 0, {}
        for c in self.cs:
            start = _solve(
                base,
                weights,
                jnp.asarray(1 / (c * counts), jnp.float32),
                start,
                tolerance=100 * self.tolerance,
                iterations=self.iterations,
            ).weights
            validated[c] = float(_held_out(base, start, held))
            if chosen is None or validated[c] < validated[chosen]:
                best, chosen, worse = start, c, 0
            else:
                worse += 1
            if worse >= self.patience and validated[chosen] < 0.98 * validated[self.cs[0]]:
                break
        return chosen, validated, jnp.mean(best, axis=0, keepdims=True)


def linear(
    train: Features, test: Features, probe: LogisticProbe | None = None
) -> tuple[Accuracy, Fit]:
    """Fits a probe on all training labels and scores it on test.

    Raises:
        ValueError: labels are missing.
    """
    fit = (probe or LogisticProbe()).fit(train)
    return fit.classifier.accuracy(test), fit


def few_labels(
    train: Features,
    test: Features,
    rows: Int[np.ndarray, 'draws m'],
    probe: LogisticProbe | None = None,
) -> FewLabels:
    """Fits a probe on each draw of a few labels and scores it on test.

    Features are standardised by the statistics of all training features, whose labels that takes
    none of; C is chosen within each draw's labels.

    Args:
        train: training features; only the labels of the rows drawn are read.
        test: what every probe is scored on.
        rows: rows of `train` by draw, from `draw`: the same for every encoder compared.
        probe: how to fit.

    Raises:
        ValueError: labels are missing, or too few of a class to cross-validate.
    """
    probe = probe or LogisticProbe()
    moments = Moments.of(train.features)
    fits = [probe.fit(train.take(r), moments) for r in rows]
    per_class = rows.shape[1] // len(np.unique(train.targets()[rows[0]]))
    accuracies = tuple(fit.classifier.accuracy(test) for fit in fits)
    return FewLabels(accuracies, tuple(fit.c for fit in fits), per_class)


def draw(
    labels: Int[np.ndarray, ' n'], per_class: int, *, draws: int = 20, seed: int = 0
) -> Int[np.ndarray, 'draws m']:
    """Stratified draws without replacement: `per_class` rows of every class, `draws` times.

    A function of the labels and the seed alone, so every encoder gets the same.

    Raises:
        ValueError: a class has fewer than `per_class` examples.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if per_class < 1 or counts.min() < per_class:
        raise ValueError(
            f'{per_class} labels a class asked for, but class {classes[counts.argmin()]} has '
            f'{counts.min()}; ask for 1 to {counts.min()}'
        )

    def one(t: int) -> np.ndarray:
        rng = np.random.default_rng((seed, t))
        chosen = [rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in classes]
        return np.sort(np.concatenate(chosen))

    return np.stack([one(t) for t in range(draws)]).astype(np.int32)


def stratified(columns: Int[np.ndarray, ' n'], folds: int, seed: int) -> Int[np.ndarray, ' n']:
    """The fold of every example: each class spread evenly, sizes equal to within one.

    With fewer examples of a class than folds there are only as many folds, so that every class is
    held out and trained on in each. The example of a class that has no other is never held out: its
    fold is -1.

    Raises:
        ValueError: no class has two examples, or there are fewer than two folds.
    """
    counts = np.bincount(columns)
    folds = min(folds, int(counts[counts > 1].min(initial=folds)))
    if folds < 2 or counts.max() < 2:
        raise ValueError(
            'cross-validation needs 2 folds and a class with at least 2 labels; give more labels, '
            'or fix the strength with a single value in cs'
        )
    order = np.random.default_rng(seed).permutation(len(columns))
    order = order[np.argsort(columns[order], kind='stable')]
    order = order[counts[columns[order]] > 1]
    fold = np.full(len(columns), -1, np.int32)
    fold[order] = np.arange(len(order)) % folds
    return fold


@functools.partial(jax.jit, static_argnames='classes')
def _problem(x, moments, columns, *, classes):
    """The problem without a penalty, all examples alike, and the basis it is in."""
    z, basis, spectrum = rotate(moments.standardise(x))
    problem = Problem(
        inputs=with_intercept(z),
        targets=jax.nn.one_hot(columns, classes),
        weights=jnp.full(len(x), 1 / len(x)),
        spectrum=jnp.append(spectrum, 1),
        l2=jnp.zeros(()),
    )
    return problem, basis


@jax.jit
def _solve(base, weights, l2, start, *, tolerance, iterations) -> Solution:
    """Solves over the first axis of weights, l2 and start: several problems, the same features."""

    def one(weights, l2, start):
        problem = dataclasses.replace(base, weights=weights, l2=l2)
        return solve(problem, start, tolerance=tolerance, iterations=iterations)

    return jax.vmap(one)(weights, l2, start)


@jax.jit
def _held_out(
    base: Problem, parameters: Float[Array, 'b r c'], held: Bool[Array, 'b n']
) -> Float[Array, '']:
    """Mean cross-entropy of the held-out examples over all folds: each once."""

    def one(parameters, held):
        logits = jnp.matmul(base.inputs, parameters, precision='highest')
        own = jnp.sum(jax.nn.log_softmax(logits) * base.targets, axis=1)
        return -jnp.sum(jnp.where(held, own, 0))

    return jnp.sum(jax.vmap(one)(parameters, held)) / jnp.sum(held)
