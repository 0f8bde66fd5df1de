"""Named arrays as safetensors bytes and back; files that are there whole or not at all."""

import uuid

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': jnp.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U64': np.uint64,
    'U32': np.uint32,
    'U16': np.uint16,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
"""The types of safetensors that are read and written; its own NumPy reader lacks bfloat16."""


def pack(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """The arrays as the content of a safetensors file; equal arrays give equal bytes.

    Raises:
        ValueError: for a type that safetensors has not.
    """
    for name, array in arrays.items():
        if array.dtype not in [np.dtype(kind) for kind in DTYPES.values()]:
            raise ValueError(f'{name} has type {array.dtype}, which safetensors cannot hold')
    # The writer takes the memory as it lies, so a transposed view would come back scrambled.
    laid_out = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    return safetensors.numpy.save(laid_out, metadata)


def unpack(data: bytes, origin: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Args:
        data: its content.
        origin: where it came from, for the error.

    Raises:
        ValueError: if it is not a whole safetensors file, or holds a type not in `DTYPES`.
    """
    try:
        found = safetensors.deserialize(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f'{origin} is not a whole safetensors file ({error}); export or download it again'
        ) from error
    arrays = {}
    for name, entry in found:
        if entry['dtype'] not in DTYPES:
            raise ValueError(f'{origin}: {name} has type {entry["dtype"]}, which is not read')
        kind = DTYPES[entry['dtype']]
        arrays[name] = np.frombuffer(entry['data'], dtype=kind).reshape(entry['shape'])
    return arrays


def write(path: epath.Path, data: bytes) -> None:
    """Writes a file beside `path` and moves it there, so that no reader ever sees half of it."""
    beside = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
