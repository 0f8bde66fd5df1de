"""Two branches: an online network that learns, and a target that is its moving average.

BYOL and MoCo v3 share all of this and differ in their equation.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.momentum import Momentum, average


@dataclasses.dataclass(frozen=True)
class TwoBranches(Method):
    """p = q(g(f(view))) online, t = g'(f'(view)) in the target, for two views of every image.

    The target has no predictor, starts as a copy, and is averaged behind the optimizer's step with
    the parameters that step gave. Both branches normalise every view by that view's own batch; the
    target's running statistics are its own (`state['stats']['target']`) and are not averaged.

    Attributes:
        encoder: f, images to features: what training is for.
        projector: g, features to projections.
        predictor: q, projections to predictions of the other view's target.
        momentum: of the target, m in t <- m t + (1 - m) s.
    """

    encoder: nn.Module
    projector: nn.Module
    predictor: nn.Module
    momentum: Momentum

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless there are two views."""
        views, _ = dict(data.views).get('image', (0, 0))
        if views != 2:
            raise ValueError(
                f'{type(self).__name__} predicts one view from another and needs 2, the recipe '
                f'makes {views}; use a recipe of two views such as BYOLViews'
            )

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh online networks, and the target as their copy."""
        x = batch['image'][:, 0]
        params, stats = {}, {}
        keys = jax.random.split(key, 3)
        for name, k in zip(('encoder', 'projector', 'predictor'), keys, strict=True):
            x, net = getattr(self, name).init_with_output(k, x, train=False)
            params[name], stats[name] = net.get('params', {}), net.get('batch_stats', {})
        # Copies: one buffer in two places of the state could not be donated.
        copied = jax.tree.map(jnp.copy, (_branch(params), _branch(stats)))
        return params, {'target': copied[0], 'stats': {**stats, 'target': copied[1]}}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """`prediction` p and `target` t of every view, [n, v, d]."""
        stats, predictions, targets = state['stats'], [], []
        for k in range(batch['image'].shape[1]):
            x = batch['image'][:, k]
            z, online = self._project(params, stats, x)
            p, predictor = _train(self.predictor, params['predictor'], stats['predictor'], z)
            t, target = self._project(state['target'], stats['target'], x)
            stats = {**online, 'predictor': predictor, 'target': target}
            predictions.append(p)
            targets.append(t)
        outputs = {'prediction': jnp.stack(predictions, 1), 'target': jnp.stack(targets, 1)}
        return outputs, stats

    def after(self, params: Tree, state: Tree, now: Now) -> tuple[Tree, Tree]:
        """The target moves towards the new online parameters."""
        target = average(state['target'], _branch(params), self.momentum.at(now))
        return params, {**state, 'target': target}

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """The online encoder, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }

    def _project(self, params: Tree, stats: Tree, x: Array) -> tuple[Array, Tree]:
        """Projections of one view by one branch, and the branch's new running statistics."""
        h, encoder = _train(self.encoder, params['encoder'], stats['encoder'], x)
        z, projector = _train(self.projector, params['projector'], stats['projector'], h)
        return z, {'encoder': encoder, 'projector': projector}


def _branch(tree: Tree) -> Tree:
    """What both branches have."""
    return {name: tree[name] for name in ('encoder', 'projector')}


def _train(net: nn.Module, params: Tree, stats: Tree, x: Array) -> tuple[Array, Tree]:
    """A network in training mode: its outputs and its new running statistics."""
    variables = {'params': params, 'batch_stats': stats}
    y, new = net.apply(variables, x, train=True, mutable=['batch_stats'])
    return y, new.get('batch_stats', {})
