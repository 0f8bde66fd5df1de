"""A digest tells every change of a folder, and its own."""

import hashlib
import json
import os

import numpy as np
import pytest
from etils import epath

from ssljax.train import digest


@pytest.fixture
def folder(tmp_path):
    folder = epath.Path(tmp_path / 'folder')
    (folder / 'deep' / 'er').mkdir(parents=True)
    (folder / 'a').write_bytes(b'one')
    (folder / 'deep' / 'er' / 'b').write_bytes(bytes(range(256)) * 40)
    (folder / 'deep' / 'empty').write_bytes(b'')
    digest.write(folder, {'step': 3, 'meta': {'π': [1.5, None]}})
    return folder


def test_an_untouched_folder_is_whole_and_gives_the_record_back(folder):
    for record in (digest.verify(folder), digest.read(folder)):
        assert record['step'] == 3
        assert record['meta'] == {'π': [1.5, None]}
    assert record['files'] == {
        'a': [3, hashlib.sha256(b'one').hexdigest()],
        'deep/er/b': [10240, hashlib.sha256(bytes(range(256)) * 40).hexdigest()],
        'deep/empty': [0, hashlib.sha256(b'').hexdigest()],
    }


def test_every_bit_of_the_digest_is_sealed(folder):
    path = folder / digest.NAME
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(changed))
        with pytest.raises(digest.DigestError):
            digest.verify(folder)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(digest.DigestError):
            digest.read(folder)


def test_flipped_bits_anywhere_in_the_files_are_seen(folder):
    rng = np.random.default_rng(0)
    for name in ('a', 'deep/er/b'):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(20):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(changed))
            with pytest.raises(digest.DigestError, match=f'file {name} was changed'):
                digest.verify(folder)
        path.write_bytes(whole)
    digest.verify(folder)


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (lambda f: (f / 'a').write_bytes(b'on'), 'file a has 2 bytes, its digest says 3'),
        (lambda f: (f / 'a').unlink(), 'file a is missing'),
        (lambda f: (f / 'deep' / 'empty').unlink(), 'file deep/empty is missing'),
        (lambda f: (f / 'deep').rename(f / 'shallow'), 'is missing'),
        (lambda f: (f / 'deep' / 'c').touch(), 'file deep/c is not in its digest'),
        (lambda f: (f / digest.NAME).unlink(), 'it has no digest'),
        (lambda f: f.rmtree(), 'it has no digest'),
    ],
)
def test_what_is_missing_extra_or_short_is_named(folder, damage, reason):
    damage(folder)
    with pytest.raises(digest.DigestError, match=reason):
        digest.verify(folder)


def test_a_file_in_the_folders_place_has_no_digest(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(digest.DigestError, match='cannot be read'):
        digest.verify(epath.Path(tmp_path / 'file'))


def test_it_is_written_behind_everything_else_and_all_at_once(folder, monkeypatch):
    """Until its last rename there is no digest; every file has reached the disk by then."""
    (folder / digest.NAME).unlink()
    flushed, fsync = set(), os.fsync

    def watched(descriptor):
        flushed.add(os.readlink(f'/proc/self/fd/{descriptor}'))
        fsync(descriptor)
        assert not (folder / digest.NAME).exists() or len(flushed) >= 7

    monkeypatch.setattr(os, 'fsync', watched)
    digest.write(folder, {})
    for path, _, names in os.walk(folder):
        assert {path, *(os.path.join(path, n) for n in names if n != digest.NAME)} <= flushed
    assert str(folder.parent) in flushed
    assert not (folder / f'{digest.NAME}.tmp').exists()


def test_the_record_is_plain_json_behind_its_seal(folder):
    seal, body = (folder / digest.NAME).read_bytes().split(b'\n', 1)
    assert seal.decode() == hashlib.sha256(body).hexdigest()
    assert json.loads(body)['step'] == 3
