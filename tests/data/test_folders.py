import os
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssljax.data.picture import Picture
from ssljax.data.pipeline import in_order
from ssljax.data.registry import open_source


def contents(source):
    return source.records(tf.range(source.examples, dtype=tf.int64))['image'].numpy()


def test_subfolders_are_classes_and_files_are_sorted_bytewise(tmp_path, write_image, recipe):
    names = ['b/2.jpg', 'b/10.JPG', 'b/deep/1.jpeg', 'B/z.png', 'ä/1.jpg', 'a b/ü.png']
    images = {n: write_image(tmp_path / n, (20 + i, 30, 3), i) for i, n in enumerate(names)}
    for other in ['b/.hidden.jpg', '.cache/1.jpg', 'b/notes.txt', 'README.md']:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b'not an image')
    source = open_source(f'folder:{tmp_path}', 'train')
    expected = ['B/z.png', 'a b/ü.png', 'b/10.JPG', 'b/2.jpg', 'b/deep/1.jpeg', 'ä/1.jpg']
    assert list(source.files) == expected
    assert source.class_names == ('B', 'a b', 'b', 'ä')
    np.testing.assert_array_equal(source.labels(), [0, 1, 2, 2, 2, 3])
    assert source.channels == 3 and source.encoded and source.size is None
    assert source.where(3) == f'{tmp_path}/b/2.jpg'
    assert contents(source).tolist() == [(tmp_path / name).read_bytes() for name in expected]
    (batch,) = in_order(source, recipe, 6)
    assert batch['valid'].all()
    np.testing.assert_array_equal(batch['label'], source.labels())
    for row, name in enumerate(expected):
        if name.endswith('png'):
            np.testing.assert_array_equal(batch['image'][row], images[name][:8, :8])


def test_a_flat_folder_has_no_labels(tmp_path, write_image):
    for i in range(3):
        write_image(tmp_path / f'{i}.png', (9, 9, 3))
    source = open_source(str(tmp_path), 'train')
    assert (source.examples, source.class_names, source.labels()) == (3, None, None)
    assert set(source.records(tf.constant([0], tf.int64))) == {'image'}


def test_images_are_grey_if_all_are(tmp_path, write_image):
    grey = write_image(tmp_path / '1.png', (9, 12))
    write_image(tmp_path / '2.jpg', (9, 12))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / '3.png')
    source = open_source(str(tmp_path), 'train')
    assert source.channels == 1
    for index in (0, 2):
        pixels = Picture(tf.constant(contents(source)[index]), 1).pixels()
        np.testing.assert_array_equal(pixels[..., 0], grey)
    write_image(tmp_path / '4.png', (5, 5, 3))
    source = open_source(str(tmp_path), 'train')
    assert source.channels == 3
    np.testing.assert_array_equal(
        Picture(tf.constant(contents(source)[0]), 3).pixels()[..., 1], grey
    )


def test_a_list_is_known_by_its_fingerprint(tmp_path, write_image):
    for root in ('here', 'there'):
        for name in ('cat/1.png', 'cat/2.png', 'dog/1.png'):
            write_image(tmp_path / root / name, (9, 9, 3))
    here = open_source(f'{tmp_path}/here', 'train').fingerprint()
    assert open_source(f'{tmp_path}/there', 'train').fingerprint() == here
    os.rename(tmp_path / 'there/cat/2.png', tmp_path / 'there/cat/3.png')
    assert open_source(f'{tmp_path}/there', 'train').fingerprint() != here


def test_other_labels_or_channels_are_another_fingerprint(tmp_path, write_image):
    for name in ('train/ant/1.png', 'train/cat/1.png', 'val/cat/1.png'):
        write_image(tmp_path / name, (9, 9))
    seen = [open_source(str(tmp_path), 'train').fingerprint()]
    write_image(tmp_path / 'val/bee/1.png', (9, 9))
    seen.append(open_source(str(tmp_path), 'train').fingerprint())
    write_image(tmp_path / 'train/ant/1.png', (9, 9, 3))
    seen.append(open_source(str(tmp_path), 'train').fingerprint())
    assert len(set(seen)) == 3


def test_folders_without_images_are_no_classes(tmp_path, write_image):
    for name in ('train/cat/1.png', 'train/dog/1.png', 'val/dog/2.png', 'val/eel/1.png'):
        write_image(tmp_path / name, (9, 9, 3))
    for name in ('annotations/1.xml', 'train/__MACOSX/notes.txt', 'val/empty/deep/none.txt'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('no image')
    train = open_source(str(tmp_path), 'train')
    assert train.class_names == ('cat', 'dog', 'eel') and train.examples == 2
    assert open_source(str(tmp_path), 'val').labels().tolist() == [1, 2]


def test_images_beside_the_splits_are_refused(tmp_path, write_image):
    for name in ('train/cat/1.png', 'val/cat/1.png', 'extra/1.png'):
        write_image(tmp_path / name, (9, 9, 3))
    with pytest.raises(ValueError, match=r'train, val, which are splits, .* images in extra'):
        open_source(str(tmp_path), 'train')


def test_links_that_lead_round_are_refused_and_others_followed(tmp_path, write_image):
    for name in ('in/a/1.png', 'in/b/1.png', 'elsewhere/2.png'):
        write_image(tmp_path / name, (9, 9, 3))
    (tmp_path / 'in/a/more').symlink_to(tmp_path / 'elsewhere')
    assert open_source(f'{tmp_path}/in', 'train').labels().tolist() == [0, 0, 1]
    (tmp_path / 'in/b/up').symlink_to('..')
    with pytest.raises(ValueError, match=r'b/up is a link to .*/in, in which it lies'):
        open_source(f'{tmp_path}/in', 'train')


def test_names_and_sizes_that_cannot_be_taken(tmp_path, write_image):
    header = b'\x89PNG\r\n\x1a\n' + (13).to_bytes(4, 'big') + b'IHDR'
    sides = (20_000).to_bytes(4, 'big') * 2 + b'\x08\x02\x00\x00\x00'
    crc = zlib.crc32(b'IHDR' + sides).to_bytes(4, 'big')
    (tmp_path / '0.png').write_bytes(header + sides + crc)
    write_image(tmp_path / '1.png', (9, 9, 3))
    assert open_source(str(tmp_path), 'train').examples == 2  # the first is corrupt, if it is
    with open(os.fsencode(tmp_path) + b'/\xff.png', 'wb') as file:
        file.write(b'')
    with pytest.raises(ValueError, match='not UTF-8'):
        open_source(str(tmp_path), 'train')


def test_slices_are_shuffled_disjoint_and_do_not_change_with_new_files(tmp_path, write_image):
    for name in (f'{label}/{i:02}.png' for label in 'ab' for i in range(20)):
        write_image(tmp_path / name, (9, 9, 3))
    whole, first, rest = (
        open_source(str(tmp_path), split) for split in ('train', 'train[:80%]', 'train[80%:]')
    )
    paths = [[source.where(i) for i in range(source.examples)] for source in (whole, first, rest)]
    assert (first.examples, rest.examples) == (32, 8)
    assert paths[0] == sorted(paths[0]) == sorted(paths[1] + paths[2])
    assert set(rest.labels()) == {0, 1}  # in sorted order the last fifth is all 'b'
    write_image(tmp_path / 'b/new.png', (9, 9, 3))
    after = open_source(str(tmp_path), 'train[:80%]')
    files = [after.where(i) for i in range(after.examples)]
    assert [file for file in files if 'new' not in file][:30] == paths[1][:30]


def test_a_folder_may_bring_its_splits(tmp_path, write_image):
    for name in ('train/cat/1.png', 'train/dog/1.png', 'train/eel/1.png', 'val/eel/2.png'):
        write_image(tmp_path / name, (9, 9, 3))
    train, val = open_source(str(tmp_path), 'train'), open_source(str(tmp_path), 'val')
    assert train.class_names == val.class_names == ('cat', 'dog', 'eel')
    np.testing.assert_array_equal(train.labels(), [0, 1, 2])
    np.testing.assert_array_equal(val.labels(), [2])
    both = open_source(str(tmp_path), 'val+train[:2]')
    assert both.where(0) == f'{tmp_path}/val/eel/2.png' and both.examples == 3
    assert open_source(str(tmp_path), 'all').examples == 4
    with pytest.raises(ValueError, match=r"Unknown split 'test'.*train \(3\), val \(1\)"):
        open_source(str(tmp_path), 'test')


def test_any_file_system_of_tensorflows_will_do(tmp_path, write_image, recipe):
    for name in ('cat/1.png', 'dog/1.jpg', 'dog/2.png'):
        write_image(tmp_path / name, (20, 30, 3))
        target = f'ram://pictures/{name}'
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(str(tmp_path / name), target, overwrite=True)
    local, remote = open_source(str(tmp_path), 'train'), open_source('ram://pictures', 'train')
    assert remote.files == local.files and remote.class_names == ('cat', 'dog')
    (ours,), (theirs,) = in_order(remote, recipe, 3), in_order(local, recipe, 3)
    assert ours['valid'].all()
    np.testing.assert_array_equal(ours['image'], theirs['image'])


def test_folders_that_hold_no_images_are_refused(tmp_path, write_image):
    with pytest.raises(ValueError, match=r'there is no folder .*absent'):
        open_source(f'folder:{tmp_path}/absent', 'train')
    with pytest.raises(ValueError, match=r'holds no images; expected files that end in \.jpg'):
        open_source(f'folder:{tmp_path}', 'train')
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'clip.gif').write_bytes(b'GIF89a')
    with pytest.raises(ValueError, match='holds no images'):
        open_source(f'folder:{tmp_path}', 'train')
    (tmp_path / 'sub' / 'text.jpg').write_bytes(b'no picture')
    (tmp_path / 'sub' / 'link.jpg').symlink_to('nowhere')
    with pytest.raises(ValueError, match=r'none of the 2 files looked at .* sub/link\.jpg'):
        open_source(f'folder:{tmp_path}', 'train')
    write_image(tmp_path / 'sub' / '1.png', (9, 9, 3))
    assert open_source(f'folder:{tmp_path}', 'train').examples == 3
    write_image(tmp_path / '1.png', (9, 9, 3))
    with pytest.raises(ValueError, match='1 images beside its subfolders and 3 inside'):
        open_source(f'folder:{tmp_path}', 'train')
