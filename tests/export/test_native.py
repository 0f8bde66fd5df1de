"""The native format: the same bits back; nothing damaged, foreign or executable comes in."""

import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ssljax.export import native
from ssljax.nets.heads import Classifier, ProjectionHead
from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet

SMALL = SmallResNet(widths=(4, 8), blocks=(1, 1))
META = {'step': 3, 'mean': [0.5, 0.25, 0.1], 'note': 'ä', 'nested': {'a': None}}


def fresh(module, shape):
    """Random variables, in the places and types of fresh ones."""
    key, x = jax.random.key(0), jnp.zeros(shape)
    shapes = jax.eval_shape(lambda: module.init(key, x, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1, a.shape), a.dtype), shapes)


@pytest.fixture
def exported(tmp_path):
    variables = fresh(SMALL, (1, 28, 28, 1))
    return native.save(tmp_path / 'export', SMALL, variables, META), variables


@pytest.mark.parametrize(
    ('module', 'shape'),
    [
        (SMALL, (2, 28, 28, 1)),
        (ResNet(depth=18, width=2, stem='cifar', dtype='bfloat16'), (1, 32, 32, 8)),
        (ProjectionHead((6, 5), 'none', True, 'none', True), (2, 7)),
        (Classifier(classes=3), (2, 7)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_every_module_comes_back_bit_for_bit(tmp_path, module, shape):
    variables = fresh(module, shape)
    folder = native.save(tmp_path / 'new' / 'folder', module, variables, META)
    assert isinstance(folder, epath.Path)
    assert sorted(p.name for p in folder.iterdir()) == ['config.json', 'model.safetensors']
    again, back, meta = native.load(str(folder))
    assert again == module
    assert meta == META
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == b.tobytes()


def test_what_comes_back_computes_the_same(exported):
    folder, variables = exported
    module, back, _ = native.load(folder)
    x = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    run = jax.jit(lambda v: module.apply(v, x, train=False))
    assert np.array_equal(run(back), run(variables))


def test_keeps_types_and_empty_collections(tmp_path):
    variables = {
        'params': {'a': jnp.ones(3, jnp.bfloat16), 'b': np.float64([[1.5]]), 'c': {}},
        'batch_stats': {},
        'counts': {'n': jnp.int32(7), 'seen': jnp.array([True, False])},
    }
    folder = native.save(tmp_path, SMALL, variables, {})
    _, back, _ = native.load(folder)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(back), strict=True):
        assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_frozen_dicts_and_sharded_arrays_are_gathered(tmp_path, mesh8):
    rows = jax.sharding.NamedSharding(mesh8, jax.sharding.PartitionSpec('data'))
    array = jax.device_put(jnp.arange(16.0).reshape(8, 2), rows)
    native.save(tmp_path, SMALL, flax.core.freeze({'params': {'w': array}}), {})
    _, back, _ = native.load(tmp_path)
    assert np.array_equal(back['params']['w'], array)


def test_saving_again_replaces_the_export(exported):
    folder, variables = exported
    native.save(folder, SMALL, jax.tree.map(lambda a: a + 1, variables), {'step': 4})
    _, back, meta = native.load(folder)
    assert meta == {'step': 4}
    assert np.array_equal(
        back['batch_stats']['stem_norm']['var'], variables['batch_stats']['stem_norm']['var'] + 1
    )


def test_equal_encoders_give_equal_files(exported, tmp_path):
    folder, variables = exported
    other = native.save(tmp_path / 'other', SMALL, variables, META)
    for name in ('config.json', 'model.safetensors'):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_any_flipped_bit_of_the_weights_is_seen(exported):
    folder, _ = exported
    path = folder / 'model.safetensors'
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 20):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match='damaged or exchanged; export it again'):
            native.load(folder)


def test_an_export_cut_short_is_refused(exported, monkeypatch):
    folder, variables = exported
    write = native.tensors.write

    def killed_before_the_config(path, data):
        if path.name == 'config.json':
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(native.tensors, 'write', killed_before_the_config)
    with pytest.raises(KeyboardInterrupt):
        native.save(folder, SMALL, jax.tree.map(lambda a: a + 1, variables), META)
    with pytest.raises(ValueError, match=r'has no config\.json.*cut short'):
        native.load(folder)


@pytest.mark.parametrize('missing', ['config.json', 'model.safetensors'])
def test_a_missing_file_is_named(exported, missing):
    folder, _ = exported
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f'has no {missing}'):
        native.load(folder)


def edited(folder, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    'module',
    [
        {'type': 'os.system', 'fields': {'command': 'touch ran'}},
        {'type': 'subprocess.Popen', 'fields': {'args': ['touch', 'ran']}},
        {'type': 'flax.linen.Dense', 'fields': {'features': 3}},
        {'type': 'ssljax.export.native.json', 'fields': {}},
        {'type': 'ssljax.core.Run', 'fields': dict.fromkeys(
            ('examples', 'batch', 'steps', 'steps_per_epoch'), 1)},
        {'type': 'ssljax.nets.heads.Classifier', 'fields': {}},
        {'type': 'ssljax.nets.heads.Classifier', 'fields': {'classes': 3, 'clases': 3}},
        {'type': 'ssljax.nets.heads.Nothing', 'fields': {}},
        {'fields': {}},
    ],
    ids=lambda m: m.get('type', 'no type'),
)  # fmt: skip
def test_only_whole_encoders_of_the_package_are_built(exported, monkeypatch, module):
    folder, _ = exported
    monkeypatch.chdir(folder)
    edited(folder, module=module)
    with pytest.raises(ValueError, match=r'config\.json'):
        native.load(folder)
    assert not (folder / 'ran').exists()


def test_a_field_of_the_wrong_type_is_refused(exported):
    folder, _ = exported
    module = json.loads((folder / 'config.json').read_text())['module']
    edited(folder, module={**module, 'fields': {**module['fields'], 'widths': ['a', 'b']}})
    with pytest.raises(ValueError, match='names no encoder that can be built'):
        native.load(folder)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"format": ', 'is not JSON'),
        ('\udcff', 'is not JSON'),
        ('[1, 2]', 'is not a native export'),
        ('{"architectures": ["ResNetModel"]}', 'is not a native export'),
        ('{"format": "ssljax-encoder-1", "meta": {}}', 'lacks module, empty, sha256'),
    ],
)
def test_a_config_from_elsewhere_is_refused(exported, text, message):
    folder, _ = exported
    (folder / 'config.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ValueError, match=message):
        native.load(folder)


@pytest.mark.parametrize(
    ('variables', 'meta', 'message'),
    [
        ({'params': {'a/b': np.ones(2)}}, {}, 'slash'),
        ({'params': {'a': 'text'}}, {}, 'params/a is a str; only arrays'),
        ({'params': {'key': jax.random.key(0)}}, {}, 'only arrays'),
        ({'params': {'a': np.ones(2, np.complex128)}}, {}, 'complex128'),
        ({'params': {}}, {'score': float('nan')}, 'meta cannot be written as JSON'),
        ({'params': {}}, {'path': object()}, 'meta cannot be written as JSON'),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, variables, meta, message):
    with pytest.raises(ValueError, match=message):
        native.save(tmp_path / 'export', SMALL, variables, meta)
    assert not (tmp_path / 'export').exists()
