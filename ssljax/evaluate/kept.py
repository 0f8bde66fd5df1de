"""The evaluation that a run's folder keeps, and which checkpoint it is of.

A step does not tell: checkpoints may be deleted and the run trained anew, to the same step, by
other code or on other images.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ssljax.core import TrainState, Tree
from ssljax.train.session import Session

Identity = Mapping[str, int | str]
"""What tells an encoder that is evaluated from any other, as JSON takes it."""


def identity(
    session: Session, state: TrainState, record: Mapping[str, Any]
) -> dict[str, int | str]:
    """What an evaluation of a state is of.

    Args:
        session: of the run.
        state: whose encoder is evaluated.
        record: of the run's folder.

    Returns:
        `step`; `weights`: a digest (hex) of the encoder's variables; `images`: the fingerprint of
        the training images.
    """
    _, variables = session.experiment.method.product(state.params, state.method)
    return {
        'step': int(state.step),
        'weights': _digest(variables),
        'images': record['data']['fingerprint'],
    }


def read(path: epath.Path) -> dict[str, Any] | None:
    """The evaluation in a file; None if there is none, or one that does not say what it is of."""
    try:
        found = json.loads(path.read_text()) if path.exists() else None
    except json.JSONDecodeError:
        return None
    return found if found and 'weights' in found.get('question', ()) else None


def is_of(evaluation: Mapping[str, Any], which: Identity) -> bool:
    """Whether an evaluation that `read` has found is of this encoder."""
    return all(evaluation['question'].get(name) == value for name, value in which.items())


def _digest(variables: Tree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
