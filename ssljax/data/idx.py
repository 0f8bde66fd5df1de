"""Arrays in idx format, the form of MNIST and its kin: bytes, gzip-compressed or not."""

import gzip
import os
import zlib

import numpy as np
from etils import epath
from jaxtyping import UInt8

_BYTES = 0x08
"""The type code of unsigned bytes, the only type read here."""


def read(path: os.PathLike | str) -> UInt8[np.ndarray, '...']:
    """The array in a file: two zero bytes, a type code, the number of axes, int32 sizes, the data.

    Raises:
        ValueError: it is not such a file of unsigned bytes, or is cut short.
    """
    content = epath.Path(path).read_bytes()
    if content[:2] == b'\x1f\x8b':
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f'{path} cannot be decompressed ({error}); fetch it again') from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _BYTES)):
        raise ValueError(
            f'{path} begins with {content[:4].hex(" ")}; expected an idx file of unsigned bytes, '
            '00 00 08 and the number of axes'
        )
    begin = 4 + 4 * content[3]
    if len(content) < begin:
        raise ValueError(f'{path} ends within its header of {begin} bytes; fetch it again')
    shape = np.frombuffer(content[4:begin], '>i4')
    wanted = int(np.prod(shape, dtype=np.int64))
    if len(content) - begin != wanted:
        raise ValueError(
            f'{path} holds {len(content) - begin:,} bytes of data; its header says '
            f'{" x ".join(map(str, shape))} = {wanted:,}; fetch it again'
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(tuple(shape.tolist()))
