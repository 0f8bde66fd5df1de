"""Multinomial logistic regression to its optimum, in JAX: the solver under the linear probes.

L-BFGS in the eigenbasis of the features, where the Hessian's upper bound is diagonal and serves as
the initial inverse (Boehning 1992); the step length comes from Newton's method along the line,
which costs no product with the features, since logits are linear in the step. Every iteration
therefore needs two products with the feature matrix, and several problems over the same features
(cross-validation folds) share them under `vmap`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_HISTORY = 10
_LINE_STEPS = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """sum_i w_i crossentropy_i + l2/2 |W|^2, the intercept free.

    scikit-learn's strength C is `l2 = 1 / (C n)` with weights 1/n.

    Attributes:
        inputs: features in their eigenbasis, last column 1.
        targets: one-hot classes.
        weights: of the examples; they sum to 1, and 0 leaves an example out.
        spectrum: second moments of the columns of `inputs`.
        l2: strength of the penalty, >= 0.
    """

    inputs: Float[Array, 'n r']
    targets: Float[Array, 'n c']
    weights: Float[Array, ' n']
    spectrum: Float[Array, ' r']
    l2: Float[Array, '']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """Where the solver stopped; of several problems under `vmap`, with a leading axis.

    Attributes:
        weights: the parameters in the eigenbasis, the intercept last.
        objective: the problem's value there.
        iterations: how many were taken.
    """

    weights: Float[Array, '*problems r c']
    objective: Float[Array, '*problems']
    iterations: Int[Array, '*problems']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Carry:
    """The solver's state between iterations; histories are oldest first."""

    weights: Float[Array, 'r c']
    logits: Float[Array, 'n c']
    value: Float[Array, '']
    gradient: Float[Array, 'r c']
    steps: Float[Array, 'm r c']
    changes: Float[Array, 'm r c']
    inverses: Float[Array, ' m']
    scale: Float[Array, '']
    iteration: Int[Array, '']
    done: Bool[Array, '']


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision='highest')


def with_intercept(x: Float[Array, 'n d']) -> Float[Array, 'n d+1']:
    """Appends a column of ones."""
    return jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)


@jax.jit
def rotate(
    x: Float[Array, 'n d'],
) -> tuple[Float[Array, 'n r'], Float[Array, 'd r'], Float[Array, ' r']]:
    """Turns features into the eigenbasis of their second moments, r = min(n, d).

    With fewer examples than features the optimum lies in the span of the examples, so nothing is
    lost by going down to n dimensions.

    Returns:
        `(x @ basis, basis, spectrum)`.
    """
    n, d = x.shape
    if n < d:
        _, values, rows = jnp.linalg.svd(x, full_matrices=False)
        basis, spectrum = rows.T, values**2 / n
    else:
        spectrum, basis = jnp.linalg.eigh(_product(x.T, x) / n)
    return _product(x, basis), basis, jnp.maximum(spectrum, 0)


def _penalty(problem: Problem) -> Float[Array, 'r 1']:
    r = problem.inputs.shape[1]
    return jnp.where(jnp.arange(r) < r - 1, problem.l2, 0)[:, None]


def _preconditioner(problem: Problem) -> Float[Array, 'r 1']:
    """The inverse of half the Hessian at zero weights, averaged over classes."""
    classes = problem.targets.shape[1]
    curvature = problem.spectrum / (2 * classes)
    floor = 1e-7 * jnp.max(curvature)
    return 1 / (curvature[:, None] + _penalty(problem) + floor)


def _value_and_gradient(problem, logits, weights):
    log_z = jax.nn.logsumexp(logits, axis=1)
    penalty = _penalty(problem)
    entropy = log_z - jnp.sum(logits * problem.targets, axis=1)
    value = jnp.sum(problem.weights * entropy) + jnp.sum(penalty * weights**2) / 2
    residual = problem.weights[:, None] * (jnp.exp(logits - log_z[:, None]) - problem.targets)
    return value, _product(problem.inputs.T, residual) + penalty * weights


def _direction(carry: _Carry, metric: Float[Array, 'r 1']) -> Float[Array, 'r c']:
    """-H gradient by the two-loop recursion (Nocedal, Wright, algorithm 7.4)."""

    def backward(q, pair):
        step, change, inverse = pair
        along = inverse * jnp.sum(step * q)
        return q - along * change, along

    def forward(r, pair):
        step, change, inverse, along = pair
        return r + step * (along - inverse * jnp.sum(change * r)), None

    pairs = carry.steps, carry.changes, carry.inverses
    q, along = jax.lax.scan(backward, carry.gradient, pairs, reverse=True)
    r, _ = jax.lax.scan(forward, carry.scale * metric * q, (*pairs, along))
    return -r


def _length(problem, carry, direction, slope_logits):
    """The step that minimises along the line: safeguarded Newton, from 1."""
    penalty = _penalty(problem)
    linear = jnp.sum(penalty * carry.weights * direction)
    square = jnp.sum(penalty * direction**2)
    target = jnp.sum(problem.weights[:, None] * problem.targets * slope_logits)

    def refine(_, bracket):
        t, low, high = bracket
        p = jax.nn.softmax(carry.logits + t * slope_logits, axis=1)
        mean = jnp.sum(p * slope_logits, axis=1)
        spread = jnp.sum(p * slope_logits**2, axis=1) - mean**2
        slope = jnp.sum(problem.weights * mean) - target + linear + t * square
        bend = jnp.sum(problem.weights * spread) + square
        low, high = jnp.where(slope < 0, t, low), jnp.where(slope < 0, high, t)
        newton = t - slope / bend
        middle = jnp.where(jnp.isinf(high), 2 * t, (low + high) / 2)
        return jnp.where((newton > low) & (newton < high), newton, middle), low, high

    one = jnp.ones((), carry.value.dtype)
    return jax.lax.fori_loop(0, _LINE_STEPS, refine, (one, 0 * one, jnp.inf * one))[0]


def _iterate(problem: Problem, carry: _Carry, tolerance: float | Float[Array, '']) -> _Carry:
    metric = _preconditioner(problem)
    direction = _direction(carry, metric)
    slope_logits = _product(problem.inputs, direction)
    t = _length(problem, carry, direction, slope_logits)
    weights, logits = carry.weights + t * direction, carry.logits + t * slope_logits
    value, gradient = _value_and_gradient(problem, logits, weights)

    step, change = t * direction, gradient - carry.gradient
    curvature = jnp.sum(step * change)
    good = curvature > 0
    push = lambda history, new: jnp.roll(history, -1, axis=0).at[-1].set(new)
    better = value < carry.value  # fails at the floor of the arithmetic, and for NaN
    keep = lambda new, old: jnp.where(better, new, old)
    # -g.d/2 is the quasi-Newton estimate of how far above the optimum the value was.
    gap = -jnp.sum(carry.gradient * direction) / 2
    return _Carry(
        weights=keep(weights, carry.weights),
        logits=keep(logits, carry.logits),
        value=keep(value, carry.value),
        gradient=keep(gradient, carry.gradient),
        steps=push(carry.steps, step),
        changes=push(carry.changes, change),
        inverses=push(carry.inverses, jnp.where(good, 1 / curvature, 0)),
        scale=jnp.where(good, curvature / jnp.sum(change * metric * change), carry.scale),
        iteration=carry.iteration + 1,
        done=~better | (gap < tolerance * carry.value),
    )


def solve(
    problem: Problem,
    start: Float[Array, 'r c'],
    *,
    tolerance: float | Float[Array, ''],
    iterations: int | Int[Array, ''],
) -> Solution:
    """Minimises a problem from `start`. Pure; `jit` and `vmap` it.

    Args:
        problem: what to minimise.
        start: parameters to begin with, e.g. the optimum of a neighbouring `l2`.
        tolerance: stops when the estimated distance to the optimum, relative to the objective, is
            below it; 0 stops only where float32 sees no more progress.
        iterations: stops after so many in any case.
    """
    logits = _product(problem.inputs, start)
    value, gradient = _value_and_gradient(problem, logits, start)
    history = jnp.zeros((_HISTORY, *start.shape), start.dtype)
    carry = _Carry(
        weights=start,
        logits=logits,
        value=value,
        gradient=gradient,
        steps=history,
        changes=history,
        inverses=jnp.zeros(_HISTORY, start.dtype),
        scale=jnp.ones((), start.dtype),
        iteration=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
    )
    carry = jax.lax.while_loop(
        lambda c: (c.iteration < iterations) & ~c.done,
        lambda c: _iterate(problem, c, tolerance),
        carry,
    )
    return Solution(carry.weights, carry.value, carry.iteration)
