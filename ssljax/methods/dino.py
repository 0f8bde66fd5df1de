"""DINO: self-distillation with no labels.

A student sees every view of an image, a teacher, its moving average, only those of most of it, and
the student is trained to assign each view as the teacher assigns another. There are no negatives
and no predictor: centring and sharpening the teacher's scores keep both from collapsing. Caron,
Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin 2021, arXiv 2104.14294 (algorithm 1).
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Key, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import clustering
from ssljax.methods import measures
from ssljax.momentum import Momentum, average
from ssljax.nets.dino_head import DINOHead
from ssljax.nets.vit import vit

VIEWS = ('image', 'local')
"""What a student sees, in this order; the teacher sees the first."""

STUDENT = 1 << 20
"""Folded, with a view's number added, into an example's key to draw what the student drops."""


@dataclasses.dataclass(frozen=True)
class Temperature:
    """A temperature that rises linearly at the beginning of a run, step by step.

    The authors' code takes one value per epoch, that of the end in the last epoch of the rise.

    Attributes:
        start: at step 0.
        end: from the end of the rise on.
        epochs: that the rise takes.
    """

    start: float = 0.04
    end: float = 0.04
    epochs: float = 0.0

    def __post_init__(self):
        if not (self.start > 0 and self.end > 0 and self.epochs >= 0):
            raise ValueError(
                f'the temperature goes from {self.start} to {self.end} in {self.epochs} epochs; '
                'give two numbers above 0, such as 0.04, and 0 epochs or more'
            )

    def at(self, now: Now) -> Float[Array, '']:
        """The temperature at a step."""
        steps = max(self.epochs * now.run.steps_per_epoch, 1e-9)
        return self.start + (self.end - self.start) * jnp.clip(now.step / steps, 0, 1)


@dataclasses.dataclass(frozen=True)
class DINO(Method):
    """DINO, of any number of views in two resolutions; global views alone will do too.

    Freeze the prototypes for the first epoch (`frozen=(('^head/last/', 1.0),)` of the optimizer).
    A collapse shows in the metrics: `teacher_entropy` at 0 with `kl` at 0 is one prototype for
    everything, at ln K with `kl` at 0 the uniform assignment; `usage`, the entropy of the batch's
    mean assignment, is then no greater than it.

    Attributes:
        encoder: f, images of several sizes to features.
        head: g, features to scores of K prototypes.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's, below the student's. Paper: from 0.04 to 0.07 within
            30 epochs, or 0.04.
        center_momentum: of the mean of the teacher's scores that is taken off them.
        momentum: of the teacher. Paper: cosine to 1 from 0.996. A teacher as fast as its centre (10
            steps for 0.9) runs away from it, and all images become alike.
    """

    mean_over_examples: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = VIEWS

    encoder: nn.Module = dataclasses.field(
        default_factory=functools.partial(vit, 'S', drop_path=0.1)
    )
    head: nn.Module = dataclasses.field(default_factory=DINOHead)
    student_temperature: float = 0.1
    teacher_temperature: Temperature = dataclasses.field(default_factory=Temperature)
    center_momentum: float = 0.9
    momentum: Momentum = dataclasses.field(
        default_factory=functools.partial(Momentum, 0.996, 'cosine')
    )

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError if views, temperature or momentum do not fit."""
        views = dict(data.views)
        if views.get('image', (0, 0))[0] < 2:
            made = ', '.join(f'{count} x {name}' for name, (count, _) in views.items())
            raise ValueError(
                'DINO needs 2 or more global views under `image` and takes local ones under '
                f'`local`, the recipe makes {made or "none"}; use MultiCrop'
            )
        if self.student_temperature <= 0:
            raise ValueError(
                f'student_temperature is {self.student_temperature}; it must be above 0, such as '
                '0.1'
            )
        if not 0 <= self.center_momentum <= 1:
            raise ValueError(
                f'center_momentum is {self.center_momentum}; it must be in [0, 1], such as 0.9'
            )

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """A fresh student, the teacher as its copy, and a centre at 0."""
        k_encoder, k_head = jax.random.split(key)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        scores, g = self.head.init_with_output(k_head, h, train=False)
        params = {'encoder': f['params'], 'head': g['params']}
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        # Copies: what is donated to the step must not be two names of one array.
        target, target_stats = jax.tree.map(jnp.copy, (params, stats))
        return params, {
            'stats': {**stats, 'target': target_stats},
            'target': target,
            'center': jnp.zeros_like(scores[0]),
        }

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """Scores of all views by the student, of the global ones by the teacher, [n, v, k]."""
        own, theirs = state['stats'], state['stats']['target']
        views = [batch[name] for name in VIEWS if name in batch]
        # Only the student drops anything, and then by keys of its examples.
        drops = getattr(self.encoder, 'drop_path', 0) > 0
        whole = self.encoder.clone(drop_path=0.0) if drops else self.encoder
        keys = batch['key'] if drops else None
        student, own = self._scores(self.encoder, params, own, views, keys)
        teacher, theirs = self._scores(whole, state['target'], theirs, views[:1], None)
        return {'student': student, 'teacher': teacher}, {**own, 'target': theirs}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Equations 1 to 3, then the teacher's scores move the centre, equation 4."""
        student = outputs['student']
        teacher, center = jax.lax.stop_gradient((outputs['teacher'], state['center']))
        sharpness = self.teacher_temperature.at(now)
        loss = clustering.self_distillation(
            student,
            teacher,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=sharpness,
        )
        m = self.center_momentum
        moved = m * center + (1 - m) * jnp.mean(teacher, axis=(0, 1), dtype=center.dtype)
        p = jax.nn.softmax((teacher - center) / sharpness)
        entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(p), axis=-1))
        metrics = {
            **measures.of_views(student),
            'teacher_entropy': entropy,
            'usage': jnp.sum(jax.scipy.special.entr(jnp.mean(p, axis=(0, 1)))),
            'kl': loss - entropy,
            'teacher_temperature': sharpness,
            'momentum': self.momentum.at(now),
        }
        return loss, ({**state, 'center': moved}, metrics)

    def after(self, params: Tree, state: Tree, now: Now) -> tuple[Tree, Tree]:
        """The teacher moves towards the new student; its batch statistics are its own."""
        target = average(state['target'], params, self.momentum.at(now))
        return params, {**state, 'target': target}

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """The teacher's f, which the paper evaluates: it is better than the student's throughout.

        A run that starts from it (`init_from`) gives it to both.
        """
        return self.encoder, {
            'params': state['target']['encoder'],
            'batch_stats': state['stats']['target']['encoder'],
        }

    def _scores(
        self,
        encoder: nn.Module,
        params: Tree,
        stats: Tree,
        views: list[Float[Array, 'n _ _ _ _']],
        keys: Key[Array, 'n'] | None,
    ) -> tuple[Float[Array, 'n v k'], Tree]:
        """g(f(view)), each resolution through f by itself, and the new running statistics."""
        features, f = [], {'batch_stats': stats['encoder']}
        for image in views:
            variables = {'params': params['encoder'], 'batch_stats': f.get('batch_stats', {})}
            n, before = len(image), sum(h.shape[1] for h in features)
            extra = {} if keys is None else {'keys': _keys(keys, before, image.shape[1])}
            x = rearrange(image, 'n v h w c -> (n v) h w c')
            h, f = encoder.apply(variables, x, train=True, mutable=['batch_stats'], **extra)
            features.append(rearrange(h, '(n v) d -> n v d', n=n))
        h = rearrange(jnp.concatenate(features, axis=1), 'n v d -> (n v) d')
        g = {'params': params['head'], 'batch_stats': stats['head']}
        scores, g = self.head.apply(g, h, train=True, mutable=['batch_stats'])
        stats = {'encoder': f.get('batch_stats', {}), 'head': g.get('batch_stats', {})}
        return rearrange(scores, '(n v) k -> n v k', n=n), stats


def _keys(keys: Key[Array, 'n'], before: int, views: int) -> Key[Array, 'm']:
    """A key for each of so many views of every example, when so many views came before."""
    numbers = STUDENT + before + jnp.arange(views)
    each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, numbers)
    return each.reshape(-1)
