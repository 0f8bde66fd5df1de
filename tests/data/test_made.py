import numpy as np

from ssljax.data.registry import open_source


def test_made_images_are_the_same_every_time_and_tell_their_class():
    train, again = open_source('made_images', 'train'), open_source('made_images', 'train')
    assert (train.examples, train.channels) == (256, 3)
    assert train.fingerprint() == again.fingerprint()
    assert train.fingerprint() != open_source('made_images', 'train[:64]').fingerprint()
    test = open_source('made_images', 'test')
    for source in (train, test):
        counts = np.bincount(source.labels())
        np.testing.assert_array_equal(counts, [source.examples // len(train.class_names)] * 4)
    images = train.parent.images
    assert len({image.tobytes() for image in images}) == len(images)
