"""The state a run begins with: fresh, or with weights from elsewhere."""

import json
from typing import Literal

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from ssljax.core import TrainState, Tree
from ssljax.definitions import executed
from ssljax.export import native, torchvision
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.folder import RunFolder
from ssljax.train.placement import MOVING_AVERAGE
from ssljax.train.session import Session


def initial_state(session: Session) -> TrainState:
    """Fresh parameters, with the encoder of `experiment.init_from` in place if it is named.

    Only the encoder is taken over (parameters and batch statistics), and by the moving average of a
    method that has one (`state['target']`), which starts as a copy: heads, optimizer and step start
    fresh, as for a new run on known weights.

    Raises:
        ValueError: if there is neither a run nor an export, or its encoder is another.
    """
    origin = session.experiment.init_from
    fresh = session.fresh()
    if origin is None:
        return fresh
    given = trained_encoder(origin)

    def taken_over(params: Tree, stats: Tree) -> tuple[Tree, Tree]:
        # An encoder without BatchNorm has no statistics, and its method may not mention them.
        here = {'params': params['encoder'], 'batch_stats': stats.get('encoder', {})}
        placed = _fit(here, given, origin)
        kept = {'encoder': placed['batch_stats']} if 'encoder' in stats else {}
        return {**params, 'encoder': placed['params']}, {**stats, **kept}

    method = dict(fresh.method)
    params, method['stats'] = taken_over(fresh.params, fresh.method['stats'])
    if MOVING_AVERAGE in method:
        there, known = method[MOVING_AVERAGE], method['stats']
        average, stats = taken_over(there, known[MOVING_AVERAGE])
        method |= {MOVING_AVERAGE: average, 'stats': {**known, MOVING_AVERAGE: stats}}
    return TrainState(fresh.step, params, fresh.opt, method, fresh.key)


def trained_encoder(origin: str) -> Tree:
    """The variables of an encoder trained before, as `module.apply` takes them.

    Args:
        origin: the folder of a run (its latest checkpoint), of a native export or of one under
            torchvision's names; of the latter also the safetensors file itself.

    Raises:
        ValueError: if it is none of these, or one that is damaged.
    """
    path = epath.Path(origin)
    if (path / 'run.json').exists():
        # Whose method may be the user's own, as that of the run which begins here may be.
        _, variables = load_product(RunFolder(path, executed()))
    elif _is_native(path):
        _, variables, _ = native.load(path)
    elif path.is_file() or (path / 'model.safetensors').exists():
        _, variables = torchvision.load(path)
    else:
        raise ValueError(
            f'{origin} is neither the folder of a run (run.json) nor a native export (config.json) '
            "nor a ResNet under torchvision's names (a safetensors file or its folder); name one "
            'of these for init_from'
        )
    return variables


def _is_native(path: epath.Path) -> bool:
    """Whether there is a config.json of a native export, be it damaged.

    Those of others, torchvision exports among them, name no module.
    """
    try:
        config = json.loads((path / native.CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        return True  # `native.load` says what is wrong with it
    return isinstance(config, dict) and 'module' in config


def load_state(
    folder: RunFolder, checkpoint: Literal['latest', 'best'] | int = 'latest'
) -> tuple[Session, TrainState]:
    """A run's session, without its data, and a state that it has saved, on one device.

    Args:
        folder: of the run.
        checkpoint: `latest`: the newest whole one; `best`: of highest kNN accuracy on validation
            images among those kept; or a step.

    Raises:
        ValueError: if it has none, or not that one.
    """
    session = Session.without_data(folder.experiment(), folder.signature())
    keep = session.experiment.checkpoint
    checkpoints = Checkpoints(folder.checkpoints, keep.keep_last, keep.keep_best)
    try:
        if checkpoint == 'latest':
            restored = checkpoints.restore(session.abstract)
        else:
            step = checkpoints.best_step() if checkpoint == 'best' else checkpoint
            if step is None and checkpoints.steps():
                raise ValueError(
                    f'no checkpoint in {folder.path} has a score: the run was not evaluated on '
                    f'validation images; take one of its steps, {checkpoints.steps()}, or latest'
                )
            restored = None if step is None else checkpoints.restore_step(step, session.abstract)
    finally:
        checkpoints.close()
    if restored is None:
        raise ValueError(f'{folder.path} has no checkpoint yet; train it first')
    return session, restored[0]


def load_product(folder: RunFolder) -> tuple[nn.Module, Tree]:
    """`(module, variables)` of the encoder of a run's latest good state."""
    session, state = load_state(folder)
    return session.experiment.method.product(state.params, state.method)


def _fit(here: Tree, given: Tree, origin: str) -> Tree:
    """`given` in the places, types and on the devices of `here`."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(here))
    found = dict(jax.tree_util.tree_leaves_with_path(dict(given)))
    name = jax.tree_util.keystr
    problems = [f'  {name(p)} is missing' for p in wanted.keys() - found.keys()]
    problems += [f'  {name(p)} is not in this encoder' for p in found.keys() - wanted.keys()]
    problems += [
        f'  {name(p)} has shape {found[p].shape}, this encoder {wanted[p].shape}'
        for p in wanted.keys() & found.keys()
        if found[p].shape != wanted[p].shape
    ]
    if problems:
        raise ValueError(
            f'the encoder in {origin} is not the one of this experiment:\n'
            + '\n'.join(sorted(problems)[:8])
            + '\nuse the same method.encoder fields, or drop init_from'
        )
    # Through the host: one buffer must not be in two places of a state that is donated.
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(np.array(found[path], leaf.dtype), leaf.sharding), here
    )
