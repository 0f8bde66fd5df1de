"""Arrays through safetensors bytes, and files that are there whole or not at all."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ssljax.export import tensors

HERE = epath.Path('some.safetensors')


@pytest.mark.parametrize('kind', tensors.DTYPES)
def test_every_type_comes_back_bit_for_bit(kind):
    dtype = np.dtype(tensors.DTYPES[kind])
    random = np.random.default_rng(0).integers(0, 2, 24 * dtype.itemsize, np.uint8)
    arrays = {
        'matrix': random.view(dtype).reshape(4, 6),
        'scalar': random.view(dtype)[3].reshape(()),
        'empty': random.view(dtype)[:0].reshape(0, 6),
    }
    back = tensors.unpack(tensors.pack(arrays, {'a': 'b'}), HERE)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_views_are_written_as_they_read_not_as_they_lie():
    array = np.arange(24.0).reshape(4, 6).transpose()[::2]
    back = tensors.unpack(tensors.pack({'view': array}, {}), HERE)
    assert np.array_equal(back['view'], array)


def test_equal_arrays_give_equal_bytes_in_any_order():
    a, b = np.ones((3, 2), np.float32), np.arange(5)
    assert tensors.pack({'a': a, 'b': b}, {'x': 'y'}) == tensors.pack({'b': b, 'a': a}, {'x': 'y'})


def test_refuses_a_type_that_the_format_has_not():
    with pytest.raises(ValueError, match='phase has type complex128'):
        tensors.pack({'phase': np.ones(2, np.complex128)}, {})


@pytest.mark.parametrize('keep', [0, 5, 20, -1])
def test_refuses_a_truncated_file(keep):
    whole = tensors.pack({'a': np.ones((3, 2), np.float32)}, {})
    with pytest.raises(ValueError, match=r'some\.safetensors is not a whole safetensors file'):
        tensors.unpack(whole[:keep], HERE)


def test_refuses_a_type_it_does_not_read():
    header = json.dumps({'a': {'dtype': 'F8_E4M3', 'shape': [2], 'data_offsets': [0, 2]}}).encode()
    header += b' ' * (-len(header) % 8)
    with pytest.raises(ValueError, match='a has type F8_E4M3, which is not read'):
        tensors.unpack(struct.pack('<Q', len(header)) + header + b'\0\0', HERE)


def test_bfloat16_arrays_of_jax_come_back(tmp_path):
    array = np.asarray(jnp.arange(7, dtype=jnp.bfloat16) / 3)
    back = tensors.unpack(tensors.pack({'a': array}, {}), HERE)['a']
    assert back.dtype == jnp.bfloat16
    assert np.array_equal(back, array)


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = epath.Path(tmp_path) / 'file'
    tensors.write(path, b'old')
    tensors.write(path, b'new')
    assert path.read_bytes() == b'new'
    assert [p.name for p in path.parent.iterdir()] == ['file']


def test_a_write_that_fails_leaves_nothing_beside_the_file(tmp_path):
    path = epath.Path(tmp_path) / 'taken'
    (path / 'by_a_folder').mkdir(parents=True)
    with pytest.raises(OSError):
        tensors.write(path, b'new')
    assert [p.name for p in path.parent.iterdir()] == ['taken']
