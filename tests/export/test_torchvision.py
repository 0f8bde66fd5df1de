"""torchvision's ResNets: our weights in two independent forward passes, and the way back in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812

from ssljax.export import tensors, torchvision
from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def drawn(module, dtype=jnp.float64):
    """Variables in which every norm's statistics, scale and offset count."""
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            fan_in = np.prod(leaf.shape[:3])
            return jnp.asarray(rng.normal(0, (2 / fan_in) ** 0.5, leaf.shape), dtype)
        if name == 'var':  # down to where epsilon is a hundredth of it
            return jnp.asarray(10 ** rng.uniform(-3, 0.5, leaf.shape), dtype)
        low, high = (0.2, 0.6) if name == 'scale' else (-0.3, 0.3)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(size, dtype=np.float64):
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(dtype)


def ours(module, variables, x):
    return np.asarray(jax.jit(lambda v: module.apply(v, jnp.asarray(x), train=False))(variables))


def by_hand(weights, x, *, epsilon=1e-5, same=False):
    """torchvision's ResNet-18 up to the pool, by its names; `same` pads as TensorFlow does."""
    weights = dict(weights)

    def conv(x, name, stride, padding):
        kernel = weights.pop(f'{name}.weight')
        if same and stride > 1 and padding:
            total = max(
                (-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0
            )
            x = F.pad(x, (total // 2, total - total // 2) * 2)
            padding = 0
        return F.conv2d(x, kernel, stride=stride, padding=padding)

    def norm(x, name):
        weights.pop(f'{name}.num_batches_tracked')
        names = ('running_mean', 'running_var', 'weight', 'bias')
        mean, var, scale, bias = (weights.pop(f'{name}.{n}')[:, None, None] for n in names)
        return (x - mean) / torch.sqrt(var + epsilon) * scale + bias

    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    x = F.max_pool2d(F.relu(norm(conv(x, 'conv1', 2, 3), 'bn1')), 3, 2, 1)
    for i in range(1, 5):
        for j in range(2):
            place, stride = f'layer{i}.{j}', 2 if i > 1 and j == 0 else 1
            y = F.relu(norm(conv(x, f'{place}.conv1', stride, 1), f'{place}.bn1'))
            y = norm(conv(y, f'{place}.conv2', 1, 1), f'{place}.bn2')
            if stride == 2:
                x = norm(conv(x, f'{place}.downsample.0', 2, 0), f'{place}.downsample.1')
            x = F.relu(x + y)
    assert not weights, f'left over: {sorted(weights)}'
    return x.mean((2, 3)).numpy()


def by_transformers(depth, weights, x):
    """The pooled output of `transformers`' ResNet, given torchvision's names."""
    from transformers import ResNetConfig, ResNetModel

    bottleneck = depth >= 50
    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
        depths=list(BLOCKS[depth]),
        layer_type='bottleneck' if bottleneck else 'basic',
        downsample_in_bottleneck=False,
    )

    def renamed(name):
        *place, layer, field = name.split('.')
        if not place:
            return f'embedder.embedder.{_KINDS[layer[:-1]]}.{field}'
        stage, block = int(place[0][-1]) - 1, place[1]
        if place[2:] == ['downsample']:
            inner = f'shortcut.{"convolution" if layer == "0" else "normalization"}'
        else:
            inner = f'layer.{int(layer[-1]) - 1}.{_KINDS[layer[:-1]]}'
        return f'encoder.stages.{stage}.layers.{block}.{inner}.{field}'

    model = ResNetModel(config).to(torch.from_numpy(x).dtype).eval()
    model.load_state_dict({renamed(name): a for name, a in weights.items()}, strict=True)
    with torch.no_grad():
        return model(torch.from_numpy(x).permute(0, 3, 1, 2)).pooler_output[:, :, 0, 0].numpy()


_KINDS = {'conv': 'convolution', 'bn': 'normalization'}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ('depth', 'size'),
    [
        (18, 97),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((18, 224), (50, 97), (50, 224))),
    ],
)
def test_transformers_computes_the_same_from_our_file(x64, tmp_path, depth, size):
    module = ResNet(depth=depth)
    variables = drawn(module)
    torchvision.save(tmp_path, module, variables, {})
    weights = load_file(tmp_path / 'model.safetensors')
    features = ours(module, variables, images(size))
    assert relative(by_transformers(depth, weights, images(size)), features) < 1e-11


@pytest.mark.parametrize('size', [64, 97])
def test_the_forward_pass_written_out_computes_the_same_from_our_file(x64, tmp_path, size):
    module = ResNet(depth=18)
    variables = drawn(module)
    torchvision.save(tmp_path, module, variables, {})
    weights = load_file(tmp_path / 'model.safetensors')
    features, x = ours(module, variables, images(size)), images(size)
    assert relative(by_hand(weights, x), features) < 1e-11
    # and the comparison would notice the classic mistakes
    assert relative(by_hand(weights, x, epsilon=1e-3), features) > 1e-2
    assert (relative(by_hand(weights, x, same=True), features) > 1e-2) == (size % 2 == 0)


def test_float32_agrees_to_its_rounding(tmp_path):
    module = ResNet(depth=18)
    variables = drawn(module, jnp.float32)
    torchvision.save(tmp_path, module, variables, {})
    x = images(97, np.float32)
    features = ours(module, variables, x)
    assert (
        relative(by_transformers(18, load_file(tmp_path / 'model.safetensors'), x), features) < 1e-5
    )


@pytest.mark.parametrize(
    ('depth', 'inner_width', 'name', 'tensors_there', 'parameters'),
    [  # numbers of torchvision's own models, less the two tensors of fc
        (18, 1, 'resnet18', 120, 11_176_512),
        (34, 1, 'resnet34', 216, 21_284_672),
        (50, 1, 'resnet50', 318, 23_508_032),
        (101, 1, 'resnet101', 624, 42_500_160),
        (152, 1, 'resnet152', 930, 58_143_808),
        (50, 2, 'wide_resnet50_2', 318, 66_834_240),
        (101, 2, 'wide_resnet101_2', 624, 124_837_696),
    ],
)
def test_every_twin_has_its_name_and_size(depth, inner_width, name, tensors_there, parameters):
    module = ResNet(depth=depth, inner_width=inner_width)
    assert torchvision.twin(module) == name
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    weights = torchvision.state_dict(module, jax.tree.map(lambda a: np.zeros(a.shape), shapes))
    assert len(weights) == tensors_there
    learned = [a.size for n, a in weights.items() if n.endswith(('weight', 'bias'))]
    assert sum(learned) == parameters
    counter = weights['bn1.num_batches_tracked']
    assert (counter.dtype, counter.shape) == (np.int64, ())


@pytest.mark.parametrize('depth', [18, 50])
def test_the_way_out_and_back_keeps_every_bit(tmp_path, depth):
    module = ResNet(depth=depth)
    variables = drawn(module, jnp.float32)
    folder = torchvision.save(tmp_path / 'there', module, variables, {'step': 3})
    for path in (folder, folder / 'model.safetensors'):
        again, back = torchvision.load(path)
        assert again == module
        assert jax.tree.structure(back) == jax.tree.structure(variables)
        for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(back), strict=True):
            assert np.array_equal(a, b)


def test_a_wide_one_is_recognised_and_a_classifier_left_out(tmp_path):
    module = ResNet(depth=50, inner_width=2)
    weights = torchvision.state_dict(module, drawn(module, jnp.float32))
    weights |= {'fc.weight': np.ones((7, 2048), np.float32), 'fc.bias': np.ones(7, np.float32)}
    path = tmp_path / 'wide.safetensors'
    path.write_bytes(tensors.pack(weights, {}))
    again, back = torchvision.load(path)
    assert again == module
    assert back['params']['stage4_block2']['conv3']['kernel'].shape == (1, 1, 1024, 2048)


@pytest.mark.parametrize(
    ('module', 'reason'),
    [
        (SmallResNet(), 'a SmallResNet is not in torchvision'),
        (ResNet(depth=18, stem='cifar'), "its stem is 'cifar'"),
        (ResNet(depth=50, width=2), 'its width is 2, for every channel'),
        (ResNet(depth=200), 'depth 200 with inner_width 1 is not in torchvision'),
        (ResNet(depth=152, inner_width=2), 'depth 152 with inner_width 2 is not in torchvision'),
    ],
    ids=lambda p: p if isinstance(p, str) else '',
)
def test_an_encoder_without_a_twin_is_refused_by_name(tmp_path, module, reason):
    with pytest.raises(ValueError, match=reason) as error:
        torchvision.save(tmp_path / 'there', module, {'params': {}}, {})
    assert 'resnet18, resnet34, resnet50' in str(error.value)
    assert not (tmp_path / 'there').exists()


def test_an_encoder_of_other_channels_is_refused():
    module = ResNet(depth=18)
    variables = drawn(module, jnp.float32)
    kernel = variables['params']['stem_conv']['kernel']
    variables['params']['stem_conv']['kernel'] = kernel[:, :, :1]
    with pytest.raises(ValueError, match='it takes 1 channels and resnet18 3'):
        torchvision.state_dict(module, variables)


def without(weights, name):
    return {n: a for n, a in weights.items() if n != name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: without(w, 'layer2.1.conv2.weight'), r'layer2\.1\.conv2\.weight is missing'),
        (lambda w: w | {'layer1.0.se.weight': np.ones(3)}, r'layer1\.0\.se\.weight is not known'),
        (lambda w: w | {'bn1.bias': np.ones(3)}, r'bn1\.bias has shape \(3,\)'),
        (lambda w: {'vit.weight': np.ones(3)}, r'\(0, 0, 0, 0\) blocks'),
        (lambda w: w | {'layer1.2.bn1.bias': np.ones(64)}, r'\(3, 2, 2, 2\) blocks'),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, message):
    module = ResNet(depth=18)
    weights = change(torchvision.state_dict(module, drawn(module, jnp.float32)))
    path = tmp_path / 'other.safetensors'
    path.write_bytes(tensors.pack(weights, {}))
    with pytest.raises(ValueError, match=message):
        torchvision.load(path)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match='there is no file'):
        torchvision.load(tmp_path)
    (tmp_path / 'model.safetensors').write_bytes(b'PK\3\4 a zip file, as .pth is')
    with pytest.raises(ValueError, match='is not a whole safetensors file'):
        torchvision.load(tmp_path)
