"""ResNets under torchvision's names, and the way back in.

The folder holds `model.safetensors` and, for people, `config.json`. In PyTorch:

    model = torchvision.models.resnet50()
    weights = safetensors.torch.load_file('model.safetensors')
    model.load_state_dict(weights, strict=False)  # there is no fc: the classifier is yours

Kernels are OIHW there and HWIO here; the numbers are the same, bit for bit.
"""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from flax.core import unfreeze

from ssljax.core import Tree
from ssljax.export import tensors
from ssljax.nets.resnet import LAYOUTS, ResNet

TWINS = {
    (18, 1): 'resnet18',
    (34, 1): 'resnet34',
    (50, 1): 'resnet50',
    (101, 1): 'resnet101',
    (152, 1): 'resnet152',
    (50, 2): 'wide_resnet50_2',
    (101, 2): 'wide_resnet101_2',
}
"""torchvision's networks by our depth and inner width."""

NORM = {
    ('params', 'scale'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}


def twin(module: nn.Module) -> str:
    """The name of torchvision's network of the same layout.

    Raises:
        ValueError: if there is none, saying why and which encoders have one.
    """
    reason = None
    if not isinstance(module, ResNet):
        reason = f'a {type(module).__name__} is not in torchvision'
    elif module.stem != 'imagenet':
        reason = f'its stem is {module.stem!r}, torchvision has the imagenet stem only'
    elif module.width != 1:
        reason = (
            f'its width is {module.width}, for every channel; torchvision has width 1, and its '
            'wide_resnet widens the inner 3x3 only (inner_width=2)'
        )
    elif (module.depth, module.inner_width) not in TWINS:
        reason = f'depth {module.depth} with inner_width {module.inner_width} is not in torchvision'
    if reason:
        raise ValueError(
            f'this encoder has no twin in torchvision: {reason}. ResNets with stem="imagenet" and '
            f'width=1 have one ({", ".join(TWINS.values())}); use the native format for others'
        )
    return TWINS[module.depth, module.inner_width]


def state_dict(module: nn.Module, variables: Tree) -> dict[str, np.ndarray]:
    """The weights under torchvision's names and in its layout, without `fc`.

    Raises:
        ValueError: if the encoder has no twin there (`twin`), or its images are not RGB.
    """
    name = twin(module)
    result = {}
    for path, leaf in traverse_util.flatten_dict(unfreeze(variables)).items():
        array = np.asarray(jax.device_get(leaf))
        result[_name(path)] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    channels = result['conv1.weight'].shape[1]
    if channels != 3:
        raise ValueError(
            f'this encoder has no twin in torchvision: it takes {channels} channels and {name} 3; '
            'use the native format'
        )
    for mean in [key for key in result if key.endswith('.running_mean')]:
        # PyTorch counts the batches a norm has seen; with a momentum set it never reads the count.
        result[mean.replace('running_mean', 'num_batches_tracked')] = np.zeros((), np.int64)
    return result


def save(
    folder: epath.PathLike, module: nn.Module, variables: Tree, meta: dict[str, Any]
) -> epath.Path:
    """Writes `model.safetensors` and `config.json` (the network's name, and `meta`).

    Args:
        folder: made if it is missing; may be a `gs://` path. Only one process may write.
        module: a `ResNet` that torchvision has too.
        variables: as `module.apply` takes them.
        meta: what goes along (normalisation, step, ...): what JSON holds.

    Returns:
        The folder.

    Raises:
        ValueError: as `state_dict`.
    """
    folder = epath.Path(folder)
    weights = tensors.pack(state_dict(module, variables), {'format': 'pt'})
    config = {'architecture': twin(module), 'classifier': None, 'meta': meta}
    text = json.dumps(config, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write(folder / 'model.safetensors', weights)
    tensors.write(folder / 'config.json', text.encode())
    return folder


def load(path: epath.PathLike) -> tuple[ResNet, Tree]:
    """`(module, variables)` from a safetensors file with torchvision's names, ours or another's.

    The network is recognised by its weights. A classifier (`fc`) is left out.

    Args:
        path: the file, or a folder with a `model.safetensors`.

    Raises:
        ValueError: if the file is damaged or is not a whole ResNet of torchvision's.
    """
    path = epath.Path(path)
    path = path / 'model.safetensors' if path.is_dir() else path
    if not path.exists():
        raise ValueError(f'there is no file {path}; name a safetensors file or its folder')
    found = tensors.unpack(path.read_bytes(), path)
    found = {
        name: array
        for name, array in found.items()
        if not name.startswith('fc.') and not name.endswith('.num_batches_tracked')
    }
    module = _recognised(found, path)
    image = jnp.zeros((1, 32, 32, 3))
    wanted = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
    leaves, problems = {}, []
    for place, leaf in traverse_util.flatten_dict(wanted).items():
        array = found.pop(_name(place), None)
        if array is None:
            problems.append(f'{_name(place)} is missing')
            continue
        leaves[place] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if leaves[place].shape != leaf.shape:
            problems.append(f'{_name(place)} has shape {array.shape}')
    problems += [f'{name} is not known' for name in found]
    if problems:
        raise ValueError(
            f'{path} is not a {twin(module)} of torchvision: {"; ".join(problems[:5])}'
            + (f' and {len(problems) - 5} more' if len(problems) > 5 else '')
        )
    return module, traverse_util.unflatten_dict(leaves)


def _recognised(found: dict[str, np.ndarray], path: epath.Path) -> ResNet:
    """The ResNet whose blocks the names count."""
    numbers = {m.groups() for m in (re.match(r'layer(\d)\.(\d+)\.', name) for name in found) if m}
    counts = tuple(len({j for i, j in numbers if i == str(stage)}) for stage in (1, 2, 3, 4))
    kind = 'bottleneck' if 'layer1.0.conv3.weight' in found else 'basic'
    depth = next((depth for depth, layout in LAYOUTS.items() if layout == (kind, counts)), None)
    middle = found.get('layer1.0.conv2.weight')
    inner = 2 if kind == 'bottleneck' and middle is not None and len(middle) == 128 else 1
    if (depth, inner) not in TWINS:
        raise ValueError(
            f'{path} is not a ResNet of torchvision: it has {counts} blocks in layer1 to layer4; '
            f'known are {", ".join(TWINS.values())}'
        )
    return ResNet(depth=depth, inner_width=inner)


def _name(path: tuple[str, ...]) -> str:
    """torchvision's name of the variable at `path`: (collection, [block,] layer, field).

    ('params', 'stage1_block0', 'shortcut_conv', 'kernel') is layer1.0.downsample.0.weight.
    """
    collection, *block, layer, field = path
    place = re.sub(r'stage(\d)_block(\d+)', r'layer\1.\2.', ''.join(block))
    layer = {
        'stem_conv': 'conv1',
        'stem_norm': 'bn1',
        'shortcut_conv': 'downsample.0',
        'shortcut_norm': 'downsample.1',
    }.get(layer, layer.replace('norm', 'bn'))
    return f'{place}{layer}.{"weight" if field == "kernel" else NORM[collection, field]}'
