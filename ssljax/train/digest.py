"""A digest of a folder: size and SHA-256 of every file in it, written last and checked first.

Orbax commits a checkpoint atomically but does not see a flipped bit in it, nor a file cut short by
a machine that lost power. The digest does, and because it is written behind everything else, its
presence says that everything else is there. It carries a small record along (step, score, ...),
under its own seal.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

NAME = 'DIGEST'
_CHUNK = 4 << 20


class DigestError(ValueError):
    """A folder is not what its digest says; the message is the reason alone."""


def write(folder: epath.Path, record: Mapping[str, Any]) -> None:
    """Writes the digest of everything that lies in `folder`, whole or not at all.

    On a local disk every file is flushed to it first, so that a digest never outlives its files.

    Args:
        folder: the finished folder; nothing may be written into it any more.
        record: what to carry along, as JSON takes it; the name `files` is the digest's own.

    Raises:
        OSError: if the disk is full or a file cannot be read.
    """
    local = '://' not in os.fspath(folder)
    files = {name: _fingerprint(path, flush=local) for name, path in _files(folder) if name != NAME}
    body = json.dumps({**record, 'files': files}).encode()
    seal = hashlib.sha256(body).hexdigest().encode()
    temporary = folder / f'{NAME}.tmp'
    with temporary.open('wb') as f:
        f.write(seal + b'\n' + body)
        if local:
            f.flush()
            os.fsync(f.fileno())
    if local:
        for path, _, _ in os.walk(folder):
            _flush_directory(path)
    temporary.replace(folder / NAME)
    if local:
        _flush_directory(folder)
        _flush_directory(folder.parent)


def read(folder: epath.Path) -> dict[str, Any]:
    """The record written with the digest, and `files`. Checks the digest's own seal, not the files.

    Raises:
        DigestError: if there is no digest, or it was changed.
    """
    try:
        seal, _, body = (folder / NAME).read_bytes().partition(b'\n')
    except FileNotFoundError:
        raise DigestError('it has no digest: it was never finished') from None
    except OSError as error:
        raise DigestError(f'its digest cannot be read: {error}') from error
    if seal != hashlib.sha256(body).hexdigest().encode():
        raise DigestError('its digest was changed or cut short')
    return json.loads(body)


def verify(folder: epath.Path) -> dict[str, Any]:
    """Compares every file with the digest.

    Returns:
        The record, as `read` gives it.

    Raises:
        DigestError: naming the first file that is missing, extra, of another size, or changed.
    """
    record = read(folder)
    try:
        _compare(record['files'], {name: path for name, path in _files(folder) if name != NAME})
    except OSError as error:
        raise DigestError(f'it cannot be read: {error}') from error
    return record


def _compare(expected: Mapping[str, list[Any]], found: Mapping[str, epath.Path]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise DigestError(f'file {name} is missing')
        if name not in expected:
            raise DigestError(f'file {name} is not in its digest')
        size, sha256 = expected[name]
        length = _length(found[name])
        if length != size:
            raise DigestError(f'file {name} has {length} bytes, its digest says {size}')
        if _fingerprint(found[name])[1] != sha256:
            raise DigestError(f'file {name} was changed: its SHA-256 differs from its digest')


def _files(folder: epath.Path, prefix: str = '') -> Iterator[tuple[str, epath.Path]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f'{prefix}{path.name}/')
        else:
            yield prefix + path.name, path


def _length(path: epath.Path) -> int:
    """Bytes of a file."""
    if '://' in os.fspath(path):
        return path.stat().length
    # epath asks for the owner's name too, and in a container the owner may have none.
    return os.stat(path).st_size


def _fingerprint(path: epath.Path, flush: bool = False) -> list[int | str]:
    sha256, size = hashlib.sha256(), 0
    with path.open('rb') as f:
        while chunk := f.read(_CHUNK):
            sha256.update(chunk)
            size += len(chunk)
        if flush:
            os.fsync(f.fileno())
    return [size, sha256.hexdigest()]


def _flush_directory(path: os.PathLike | str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
