"""What the training loop measures of the features every so many steps."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ssljax.evaluate.collapse import alignment, effective_rank, feature_std, uniformity
from ssljax.evaluate.features import Features
from ssljax.evaluate.knn import knn
from ssljax.evaluate.linear import LogisticProbe

Views = tuple[Float[np.ndarray, 'm d'], Float[np.ndarray, 'm d']]
"""Features of two augmented views of the same images."""

_SAMPLE = 2048
"""Validation examples, evenly spaced, that the collapse measures are taken over at most."""


def online(
    train: Features,
    validation: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    l2: float = 3e-3,
    iterations: int = 30,
) -> dict[str, float]:
    """Quick kNN and linear accuracy on validation, and the collapse measures; all deterministic.

    The linear probe is logistic regression on standardised features with a fixed penalty, `l2`/2
    times the squared weights beside the mean cross-entropy, after a fixed number of L-BFGS
    iterations from zero: no choice is made, so that only the features move the curve. Without
    labels there are only the collapse measures.

    Args:
        train: features that vote and that the linear probe is fitted to.
        validation: features that are scored. Never test.
        k: neighbours; all of `train` where it has fewer.
        temperature: of the neighbours' weights.
        l2: penalty of the linear probe.
        iterations: of the linear probe.

    Returns:
        `knn_top1, knn_top5, linear_top1, linear_top5` as shares in [0, 1], and those of `spread`.
    """
    measures = spread(validation)
    if train.labels is None or validation.labels is None:
        return measures
    k = min(k, len(train))
    neighbours = knn(train, validation, ks=(k,), temperature=temperature)[k]
    probe = LogisticProbe(cs=(1 / (l2 * len(train)),), tolerance=0.0, iterations=iterations)
    linear = probe.fit(train).classifier.accuracy(validation)
    return {
        'knn_top1': neighbours.top1,
        'knn_top5': neighbours.top5,
        'linear_top1': linear.top1,
        'linear_top5': linear.top5,
        **measures,
    }


def spread(features: Features, views: Views | None = None) -> dict[str, float]:
    """The collapse measures of a split: `feature_std`, `effective_rank`, `uniformity`.

    Args:
        features: at least two examples; of more than 2,048 an even sample is taken.
        views: of whatever images; adds `alignment`.
    """
    rows = np.unique(np.linspace(0, len(features) - 1, min(len(features), _SAMPLE)).astype(int))
    x = jnp.asarray(features.features[rows])
    measures = {
        'feature_std': float(feature_std(x)),
        'effective_rank': float(effective_rank(x)),
        'uniformity': float(uniformity(x)),
    }
    if views is not None:
        measures['alignment'] = float(alignment(*map(jnp.asarray, views)))
    return measures
