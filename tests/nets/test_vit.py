"""The Vision Transformer: published sizes, an independent forward pass, and what it sees."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from chex import assert_trees_all_close

from ssljax.config import decode, encode
from ssljax.nets.heads import Classifier
from ssljax.nets.positions import resample
from ssljax.nets.transformer import Block, matrix
from ssljax.nets.vit import ViT, vit

TINY = ViT(width=16, depth=2, heads=2, patch=4, size=16)
SINCOS = TINY.clone(position='sincos')


@functools.cache
def fresh(module, shape=(1, 16, 16, 3)):
    init = jax.jit(lambda key: module.init(key, jnp.zeros(shape, jnp.float32), train=False))
    variables = init(jax.random.key(0))
    # Larger than at first, so that attention has something to attend to.
    return jax.tree.map(
        lambda leaf: (
            leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
        ),
        variables,
    )


@functools.cache
def features(module, train=False):
    apply = functools.partial(module.apply, train=train, method='features')
    return jax.jit(lambda variables, x, **rest: apply(variables, x, **rest))


def images(n=4, height=16, width=16, seed=1):
    return jax.random.normal(jax.random.key(seed), (n, height, width, 3), jnp.float32)


def to_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'patch', 'pixels', 'parameters'),
    [
        ('Ti', 16, 224, 5_524_416),
        ('S', 16, 224, 21_665_664),
        ('S', 8, 224, 21_670_272),
        ('S', 14, 224, 21_619_584),
        ('B', 32, 224, 87_455_232),
        ('B', 16, 224, 85_798_656),
        ('B', 16, 384, 86_090_496),
        ('B', 8, 224, 85_807_872),
        ('L', 16, 224, 303_301_632),
        ('H', 14, 224, 630_764_800),
    ],
)
def test_has_the_published_number_of_parameters(size, patch, pixels, parameters):
    module, x = vit(size, patch, size=pixels), jnp.zeros((1, pixels, pixels, 3))
    init = lambda m: jax.eval_shape(lambda: m.init(jax.random.key(0), x, train=False))['params']
    assert count(init(module)) == parameters
    fixed = init(module.clone(position='sincos'))
    tokens = (pixels // patch) ** 2 + 1
    assert count(fixed) == parameters - tokens * module.width


def test_base_with_a_classifier_has_86_567_656_parameters():
    def init():
        key, x = jax.random.key(0), jnp.zeros((1, 224, 224, 3))
        h, encoder = vit('B').init_with_output(key, x, train=False)
        return encoder['params'], Classifier(1000).init(key, h)['params']

    assert count(jax.eval_shape(init)) == 86_567_656


@pytest.mark.slow
def test_is_the_same_network_written_in_pytorch(x64):
    """Its encoder layer shares no code with ours; tokens are embedded by its convolution."""
    params = to_float64(fresh(TINY)['params'])
    tensor = lambda leaf: torch.from_numpy(np.array(leaf))
    x = np.asarray(images(3), np.float64)
    kernel = tensor(params['patch']['kernel']).permute(3, 2, 0, 1)
    maps = torch.from_numpy(x).permute(0, 3, 1, 2)
    maps = torch.nn.functional.conv2d(maps, kernel, tensor(params['patch']['bias']), stride=4)
    tokens = torch.cat([tensor(params['cls']).expand(3, 1, 16), maps.flatten(2).mT], 1)
    tokens = tokens + tensor(params['position'])
    names = {
        'self_attn.in_proj': ('attention', 'qkv'),
        'self_attn.out_proj.': ('attention', 'out'),
        'linear1.': ('linear1',),
        'linear2.': ('linear2',),
        'norm1.': ('norm1',),
        'norm2.': ('norm2',),
    }
    for i in range(2):
        layer = torch.nn.TransformerEncoderLayer(
            16, 2, 64, 0.0, 'gelu', 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
        )
        weights = {}
        for name, path in names.items():
            leaves = functools.reduce(lambda tree, key: tree[key], path, params[f'block{i}'])
            end = '_' if name.endswith('proj') else ''
            weights[f'{name}{end}bias'] = tensor(leaves['bias'])
            matrix = leaves['kernel'].T if 'kernel' in leaves else leaves['scale']
            weights[f'{name}{end}weight'] = tensor(matrix)
        layer.load_state_dict(weights)
        tokens = layer(tokens)
    norm = [tensor(params['norm'][name]) for name in ('scale', 'bias')]
    want = torch.nn.functional.layer_norm(tokens, (16,), *norm, 1e-6).detach().numpy()
    got = features(TINY)({'params': params}, jnp.asarray(x))
    np.testing.assert_allclose(got['cls'], want[:, 0], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(got['tokens'], want[:, 1:], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize('module', [TINY, SINCOS], ids=['learned', 'sincos'])
def test_all_patches_in_another_order_are_the_same_image(x64, module):
    variables, x = to_float64(fresh(module)), images().astype(jnp.float64)
    order = jax.vmap(lambda key: jax.random.permutation(key, 16))(
        jax.random.split(jax.random.key(3), 4)
    )
    whole, kept = features(module)(variables, x), features(module)(variables, x, keep=order)
    np.testing.assert_allclose(kept['cls'], whole['cls'], rtol=1e-9)
    np.testing.assert_allclose(kept['mean'], whole['mean'], rtol=1e-9)
    tokens = jnp.take_along_axis(whole['tokens'], order[:, :, None], axis=1)
    np.testing.assert_allclose(kept['tokens'], tokens, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('module', [TINY, SINCOS], ids=['learned', 'sincos'])
def test_positions_matter(module):
    variables, x = fresh(module), images()
    turned = jnp.roll(x, 4, axis=2)  # the same patches elsewhere
    difference = features(module)(variables, x)['cls'] - features(module)(variables, turned)['cls']
    assert float(jnp.abs(difference).max()) > 0.01


def test_patches_that_are_not_kept_are_not_seen():
    variables, x = fresh(TINY), images(2)
    keep = jnp.asarray([[0, 5], [6, 3]])
    noise = images(2, seed=7)
    seen = np.zeros((2, 16, 16, 1), bool)
    for example, patches in enumerate(np.asarray(keep)):
        for patch in patches:
            row, column = 4 * (patch // 4), 4 * (patch % 4)
            seen[example, row : row + 4, column : column + 4] = True
    one, other = (
        features(TINY)(variables, image, keep=keep) for image in (x, jnp.where(seen, x, noise))
    )
    assert one['tokens'].shape == (2, 2, 16)
    assert_trees_all_close(one, other, rtol=0, atol=0)
    changed = features(TINY)(variables, jnp.where(seen, noise, x), keep=keep)
    assert float(jnp.abs(changed['cls'] - one['cls']).min()) > 0


@pytest.mark.slow
def test_layers_and_pools():
    deep = TINY.clone(depth=5)
    layers = features(deep)(fresh(deep), images())
    assert {name: leaf.shape for name, leaf in layers.items()} == {
        'tokens': (4, 16, 16), 'mean': (4, 16), 'cls': (4, 16), 'pool': (4, 16), 'last4': (4, 64),
    }  # fmt: skip
    assert np.array_equal(layers['pool'], layers['cls'])
    assert np.array_equal(layers['last4'][:, 48:], layers['cls'])
    np.testing.assert_allclose(layers['mean'], layers['tokens'].mean(1), atol=1e-6)
    shallow = features(deep.clone(depth=4))(
        {'params': {k: v for k, v in fresh(deep)['params'].items() if k != 'block4'}}, images()
    )
    np.testing.assert_allclose(layers['last4'][:, 32:48], shallow['cls'], atol=1e-5)
    mean = features(deep.clone(pool='mean'))(fresh(deep), images())
    assert np.array_equal(mean['pool'], layers['mean'])
    assert features(TINY)(fresh(TINY), images())['last4'].shape == (4, 32)


def test_without_a_class_token():
    module = TINY.clone(cls=False, pool='mean')
    layers = features(module)(fresh(module), images())
    assert 'cls' not in layers and layers['tokens'].shape == (4, 16, 16)
    assert fresh(module)['params']['position'].shape == (16, 16)
    with pytest.raises(ValueError, match="no class token; use 'mean'"):
        TINY.clone(cls=False)


@pytest.mark.parametrize('module', [TINY, SINCOS], ids=['learned', 'sincos'])
def test_takes_other_sizes_and_says_which_it_cannot(module):
    layers = features(module)(fresh(module), images(2, 24, 8))
    assert layers['tokens'].shape == (2, 12, 16)
    with pytest.raises(ValueError, match='18 x 16 pixels cannot be cut into patches of 4'):
        features(module)(fresh(module), images(2, 18, 16))


def test_another_size_meets_the_learned_table_resampled_but_for_the_class_token():
    params = fresh(TINY)['params']
    table = params['position']
    finer = jnp.concatenate([table[:1], resample(table[1:], (4, 4), (8, 8))])
    x = images(2, 32, 32)
    got = features(TINY)({'params': params}, x)
    want = features(TINY.clone(size=32))({'params': {**params, 'position': finer}}, x)
    assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


def test_variables_may_be_numpy_arrays():
    on_host, x = jax.tree.map(np.asarray, fresh(TINY)), images(2, 24, 8)
    keep = jnp.asarray([[0, 3], [1, 2]])
    got = TINY.apply(on_host, x, train=False, keep=keep, method='features')
    want = features(TINY)(fresh(TINY), x, keep=keep)
    assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


def test_remat_changes_neither_values_nor_gradients_nor_parameters(x64):
    variables, x = to_float64(fresh(TINY)), images().astype(jnp.float64)

    def both(module):
        loss = lambda v: jnp.sum(module.apply(v, x, train=True) ** 3)
        return jax.jit(jax.value_and_grad(loss))(variables)

    assert_trees_all_close(both(TINY), both(TINY.clone(remat=True)), rtol=1e-10, atol=1e-12)
    assert jax.tree.structure(fresh(TINY.clone(remat=True))) == jax.tree.structure(fresh(TINY))


@pytest.mark.parametrize('module', [TINY, SINCOS], ids=['learned', 'sincos'])
def test_a_frozen_patch_projection_has_no_gradient_and_nothing_else_changes(x64, module):
    variables, x = to_float64(fresh(module)), images().astype(jnp.float64)

    def both(module):
        loss = lambda v, x: jnp.sum(module.apply(v, x, train=True) ** 3)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)

    (value, (grads, to_image)), (same, (frozen, image)) = both(module), both(frozen_of(module))
    patch = frozen['params'].pop('patch')
    assert set(patch) == {'kernel', 'bias'} and not any(leaf.any() for leaf in patch.values())
    assert all(leaf.all() for leaf in grads['params'].pop('patch').values())
    assert all(leaf.any() for leaf in jax.tree.leaves((frozen, image)))
    assert_trees_all_close((value, grads, to_image), (same, frozen, image), rtol=1e-10, atol=1e-12)


def test_a_frozen_patch_projection_starts_as_any_other_and_comes_back_from_json():
    init = lambda m: m.init(jax.random.key(0), images(1), train=False)
    assert_trees_all_close(init(SINCOS), init(frozen_of(SINCOS)), rtol=0, atol=0)
    assert decode(encode(frozen_of(SINCOS))) == frozen_of(SINCOS) != SINCOS


def frozen_of(module):
    return module.clone(frozen_patch=True)


def test_stochastic_depth_drops_what_it_says_and_keeps_the_mean():
    module = TINY.clone(depth=5, drop_path=0.4)
    keys = jax.random.split(jax.random.key(0), 4096)
    factors = np.asarray(module._factors(True, keys))
    rates = np.array([0, 0.1, 0.2, 0.3, 0.4])
    assert factors.shape == (4096, 5, 2)
    for i, rate in enumerate(rates):
        values = np.unique(factors[:, i])
        want = [1.0] if rate == 0 else [0.0, 1 / (1 - rate)]
        np.testing.assert_allclose(values, want, rtol=1e-6)
    np.testing.assert_allclose((factors == 0).mean((0, 2)), rates, atol=0.02)
    np.testing.assert_allclose(factors.mean((0, 2)), 1, atol=0.03)
    assert abs(np.corrcoef(factors[:, 4].T)[0, 1]) < 0.05  # the branches of a block, each its own


@pytest.mark.slow
def test_stochastic_depth_is_each_examples_own_and_of_training_only():
    module, keys = TINY.clone(drop_path=0.9), jax.random.split(jax.random.key(0), 4)
    variables, x = fresh(module), jnp.repeat(images(1), 4, axis=0)
    trained, tested = (features(module, t)(variables, x, keys=keys)['cls'] for t in (True, False))
    assert_trees_all_close(tested, features(TINY)(variables, x)['cls'], rtol=0, atol=0)
    part = features(module, True)(variables, x[2:], keys=keys[2:])['cls']
    np.testing.assert_allclose(part, trained[2:], rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(trained)[:, 0].round(4))) > 1
    with pytest.raises(ValueError, match='gives the network no keys'):
        module.apply(variables, x, train=True)


def test_a_dropped_branch_adds_nothing_and_the_others_make_up_for_it(x64):
    block, x = Block(2), jax.random.normal(jax.random.key(1), (3, 5, 16), jnp.float64)
    variables = to_float64(block.init(jax.random.key(0), x))
    run = jax.jit(lambda factors: block.apply(variables, x, factors))
    whole = jax.jit(lambda: block.apply(variables, x))()
    np.testing.assert_allclose(run(jnp.zeros((3, 2))), x)
    np.testing.assert_allclose(run(jnp.ones((3, 2))), whole)
    mixed = run(jnp.asarray([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]))
    once = run(jnp.asarray([[1.0, 0.0]] * 3))
    np.testing.assert_allclose(mixed[0], x[0])
    np.testing.assert_allclose(mixed[1], whole[1])
    np.testing.assert_allclose(mixed[2] - x[2], 2 * (once[2] - x[2]))


def test_bfloat16_is_near_float32():
    variables, x = fresh(TINY), images(16)
    exact, near = (features(m)(variables, x)['pool'] for m in (TINY, TINY.clone(dtype='bfloat16')))
    assert near.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(near - exact) / np.linalg.norm(exact) < 0.03


def test_an_image_does_not_see_its_batch():
    variables, x = fresh(TINY), images()
    four, two = (features(TINY, True)(variables, a)['pool'] for a in (x, x[:2]))
    np.testing.assert_allclose(four[:2], two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('initial', 'bound'),
    [('xavier', (6 / (64 + 192)) ** 0.5), ('xavier_apart', (6 / (64 + 64)) ** 0.5)],
)
def test_queries_keys_and_values_start_as_one_matrix_or_as_three(initial, bound):
    apart = 3 if initial == 'xavier_apart' else 1
    weights = np.asarray(matrix(initial, apart)(jax.random.key(0), (64, 192)))
    module = ViT(width=64, depth=1, heads=2, patch=4, size=16, initial=initial)
    init = module.init(jax.random.key(0), images(1), train=False)['params']['block0']
    for found in (weights, np.asarray(init['attention']['qkv']['kernel'])):
        assert 0.99 * bound < np.abs(found).max() <= bound
    assert np.abs(init['linear1']['kernel']).max() <= (6 / (64 + 256)) ** 0.5


@pytest.mark.slow
def test_patches_start_as_a_convolution_of_pytorchs_or_as_xaviers_matrix():
    def start(initial):
        module = vit('Ti', 16, initial=initial)
        made = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
        return made['params']['patch']

    inputs, width = 16 * 16 * 3, 192
    for name in ('kernel', 'bias'):
        values = start('normal')[name]
        assert 0.95 < jnp.max(jnp.abs(values)) * inputs**0.5 <= 1
        assert jnp.std(values) == pytest.approx((3 * inputs) ** -0.5, rel=0.15)
    other = start('xavier')
    assert jnp.std(other['kernel']) == pytest.approx((2 / (inputs + width)) ** 0.5, rel=0.02)
    assert not other['bias'].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('initial', 'deviation'), [('normal', 0.02), ('xavier', 0.02), ('xavier_apart', 1e-6)]
)
def test_the_class_token_starts_near_zero_and_nearer_for_moco_v3(initial, deviation):
    module = ViT(width=1024, depth=1, heads=2, patch=4, size=16, initial=initial)
    token = module.init(jax.random.key(0), images(1), train=False)['params']['cls']
    assert 0.9 * deviation < np.std(token) < 1.1 * deviation


def test_small_and_hashable_and_back_from_json():
    small = vit('L', 14, position='sincos').smoke()
    assert features(small)(fresh(small, (1, 32, 32, 3)), images(1, 32, 32))['pool'].shape == (1, 32)
    assert decode(encode(TINY)) == TINY and hash(TINY) == hash(TINY.clone())


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'heads': 3}, 'heads must divide width'),
        ({'patch': 0}, 'must be at least 1'),
        ({'patch': 5}, '16 x 16 pixels cannot be cut into patches of 5'),
        ({'width': 18, 'position': 'sincos'}, 'multiple of 4'),
        ({'pool': 'max'}, "pool is 'max'; use one of"),
        ({'position': 'rotary'}, "position is 'rotary'; use one of"),
        ({'initial': 'zeros'}, "initial is 'zeros'; use one of"),
        ({'drop_path': 1.0}, r'drop_path is 1.0; it must be in \[0, 1\)'),
        ({'dtype': 'float16'}, 'dtype is'),
    ],
)
def test_refuses_what_it_cannot_be(monkeypatch, fields, message):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)  # as users have it
    with pytest.raises(ValueError, match=message):
        TINY.clone(**fields)


def test_unknown_sizes_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
    with pytest.raises(ValueError, match="size is 'G'; use one of Ti, S, B, L, H"):
        vit('G')
