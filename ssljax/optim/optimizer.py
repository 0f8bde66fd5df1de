"""What all optimizers share: rate and weight decay over a run, clipping, and what is left out."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ssljax.core import Run, Tree
from ssljax.optim.freeze import freeze
from ssljax.optim.paths import BIASES_AND_NORMS, check_pattern, matches

Scaling = Literal['linear', 'sqrt', 'none']
Decay = Literal['cosine', 'constant', 'steps']


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimizers share: rate and weight decay over a run, clipping, and what is left out.

    Attributes:
        learning_rate: the base rate, as papers state it; >= 0.
        scaling: the highest rate is learning_rate * batch / 256 (linear), learning_rate *
            sqrt(batch) (sqrt), or learning_rate itself (none).
        warmup_epochs: the rate rises from exactly 0, linearly, over so many epochs.
        decay: after the warmup, along half a cosine to final_learning_rate (cosine), by
            milestone_factor at each of the milestones (steps), or not (constant).
        final_learning_rate: where the cosine ends; not scaled by the batch.
        milestones: epochs at which the rate falls.
        milestone_factor: what it is then multiplied by.
        weight_decay: pull of the parameters towards 0; 0 or more.
        final_weight_decay: where half a cosine over the whole run takes weight_decay, up or down;
            None leaves it constant. DINO: from 0.04 to 0.4.
        frozen: pairs of a regular expression and a number of epochs: parameters whose path matches
            stay as they are for so long from the start (`freeze`), `inf` for ever. SwAV:
            `(('prototypes', 1.0),)`.
        exclude: regular expressions; parameters with one of them in their path have no weight
            decay (and LARS does not adapt their rate).
        clip_global: largest norm of all gradients together; None does not clip.
        clip_tensor: largest norm of each parameter's gradient, applied first; None does not clip.
    """

    learning_rate: float = 0.1
    scaling: Scaling = 'linear'
    warmup_epochs: float = 0.0
    decay: Decay = 'cosine'
    final_learning_rate: float = 0.0
    milestones: tuple[float, ...] = ()
    milestone_factor: float = 0.1
    weight_decay: float = 0.0
    final_weight_decay: float | None = None
    frozen: tuple[tuple[str, float], ...] = ()
    exclude: tuple[str, ...] = (BIASES_AND_NORMS,)
    clip_global: float | None = None
    clip_tensor: float | None = None

    def __post_init__(self):
        require_one_of('scaling', self.scaling, Scaling)
        require_one_of('decay', self.decay, Decay)
        for name in ('learning_rate', 'warmup_epochs', 'final_learning_rate', 'weight_decay'):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, '0 or more, and finite')
        last = self.final_weight_decay
        good = last is None or 0 <= last < math.inf
        require(good, 'final_weight_decay', last, '0 or more, and finite, or None to stay constant')
        for pattern, epochs in self.frozen:
            check_pattern(pattern)
            require(epochs >= 0, f'frozen for {pattern!r}', epochs, '0 or more epochs, or inf')
        require(self.milestone_factor > 0, 'milestone_factor', self.milestone_factor, 'above 0')
        for name in ('clip_global', 'clip_tensor'):
            limit = getattr(self, name)
            require(limit is None or limit > 0, name, limit, 'above 0, or None to not clip')
        for pattern in self.exclude:
            check_pattern(pattern)
        rising = all(a < b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False))
        require(rising, 'milestones', self.milestones, 'epochs above 0 in rising order')
        if (self.decay == 'steps') != bool(self.milestones):
            raise ValueError(
                f"decay is '{self.decay}' and milestones are {self.milestones}; milestones and "
                "decay 'steps' need each other"
            )
        if self.decay != 'cosine' and self.final_learning_rate:
            raise ValueError(
                f'final_learning_rate is {self.final_learning_rate}, but only the cosine goes '
                f"there and decay is '{self.decay}'; leave it 0"
            )

    def peak(self, run: Run) -> float:
        """The highest learning rate, after scaling by the batch."""
        factors = {'linear': run.batch / 256, 'sqrt': run.batch**0.5, 'none': 1.0}
        return self.learning_rate * factors[self.scaling]

    def schedule(self, run: Run) -> optax.Schedule:
        """The learning rate as a function of the step, counted from 0.

        With T_w steps of warmup and T steps in all, the cosine is

            peak * t / T_w                                                       for t < T_w
            final + (peak - final) * (1 + cos(pi (t - T_w) / (T - T_w))) / 2     from T_w on.

        Raises:
            ValueError: if warmup or milestones do not fit into the run, or the rate would rise.
        """
        peak, final = self.peak(run), self.final_learning_rate
        warmup = round(self.warmup_epochs * run.steps_per_epoch)
        edges = [round(epoch * run.steps_per_epoch) for epoch in self.milestones]
        if warmup > run.steps:
            raise ValueError(
                f'a warmup of {self.warmup_epochs} epochs is {warmup} steps, longer than the run '
                f'of {run.steps}; use warmup_epochs {run.steps / run.steps_per_epoch:g} at most'
            )
        if edges and not warmup <= edges[0] <= edges[-1] < run.steps:
            raise ValueError(
                f'milestones at epochs {self.milestones} are steps {edges}; they must lie between '
                f'the end of the warmup, step {warmup}, and the end of the run, step {run.steps}'
            )
        if final > peak:
            raise ValueError(
                f'final_learning_rate {final} is above the highest rate {peak:g}; use less'
            )

        def rate(step: ArrayLike) -> Float[Array, '']:
            t = jnp.asarray(step, jnp.result_type(float))
            if self.decay == 'cosine':
                progress = jnp.clip((t - warmup) / max(run.steps - warmup, 1), 0, 1)
                later = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            else:
                passed = jnp.sum(t >= jnp.asarray(edges, t.dtype), dtype=jnp.int32)
                later = peak * self.milestone_factor**passed
            return jnp.where(t < warmup, peak * (t / max(warmup, 1)), later)

        return rate

    def build(self, run: Run) -> optax.GradientTransformation:
        """The optax transformation: its updates are added to the parameters."""
        clips = []
        if self.clip_tensor is not None:
            clips.append(clip_each(self.clip_tensor))
        if self.clip_global is not None:
            clips.append(optax.clip_by_global_norm(self.clip_global))
        rule = self.rule(self.schedule(run), self.weight_decay_schedule(run))
        transform = optax.chain(*clips, rule)
        for pattern, epochs in self.frozen:
            until = round(min(epochs * run.steps_per_epoch, run.steps))
            transform = freeze(transform, pattern, until)
        return transform

    def weight_decay_schedule(self, run: Run) -> optax.Schedule:
        """The weight decay as a function of the step, counted from 0.

        Over T steps in all it is final + (first - final) * (1 + cos(pi t / T)) / 2.
        """
        first, final = self.weight_decay, self.final_weight_decay
        if final is None:
            return lambda step: first

        def decay(step: ArrayLike) -> Float[Array, '']:
            t = jnp.asarray(step, jnp.result_type(float))
            progress = jnp.clip(t / run.steps, 0, 1)
            return final + (first - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

        return decay

    def rule(
        self, schedule: optax.Schedule, weight_decay: optax.Schedule
    ) -> optax.GradientTransformation:
        """The update from clipped gradients: what makes one optimizer differ from another.

        Args:
            schedule: the learning rate by step.
            weight_decay: likewise.
        """
        raise NotImplementedError

    def smoke(self) -> 'Optimizer':
        """The same optimizer for a few steps of a small batch: its rate fits into any run."""
        decay = 'constant' if self.decay == 'steps' else self.decay
        return dataclasses.replace(
            self, warmup_epochs=0.0, decay=decay, milestones=(), final_learning_rate=0.0
        )

    def included(self, params: Tree) -> Tree:
        """Which parameters `exclude` leaves in, as a tree of bools."""
        return jax.tree.map(lambda found: not found, matches(self.exclude, params))


class DecayState(NamedTuple):
    """Steps taken."""

    count: Int[Array, '']


def add_weight_decay(
    weight_decay: optax.Schedule, included: Callable[[Tree], Tree]
) -> optax.GradientTransformation:
    """Adds `weight_decay(step) * w` to the updates of the parameters that `included` says."""

    def init(params: Tree) -> DecayState:
        return DecayState(jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: DecayState, params: Tree) -> tuple[Tree, DecayState]:
        rate = weight_decay(state.count)

        def decayed(u: Array, w: Array, left_in: bool) -> Array:
            return u + jnp.asarray(rate, w.dtype) * w if left_in else u

        updates = jax.tree.map(decayed, updates, params, included(params))
        return updates, DecayState(state.count + 1)

    return optax.GradientTransformation(init, update)


def clip_each(limit: float) -> optax.GradientTransformation:
    """Scales each parameter's gradient down to norm `limit` where it is longer."""

    def clipped(g: Array, _: Array | None) -> Array:
        return g * (limit / jnp.maximum(norm(g), limit)).astype(g.dtype)

    return optax.stateless_with_tree_map(clipped)


def norm(x: Array) -> Float[Array, '']:
    """The Euclidean norm of all elements, flattening nothing: that would gather sharded arrays."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def require(good: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError, saying what was given and what was expected, unless `good`."""
    if not good:
        raise ValueError(f'{name} is {value}; it must be {expected}')


def require_one_of(name: str, value: str, options: object) -> None:
    """Raises ValueError unless `value` is one of those of a Literal."""
    require(value in get_args(options), name, repr(value), f'one of {get_args(options)}')
