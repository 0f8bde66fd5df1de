"""Data sets that are planned for where they are not."""

import pytest

from ssljax.data.known import SETS, Facts, facts
from ssljax.data.registry import open_source


def test_slices_are_those_of_the_source():
    assert facts('imagenet2012', 'train[:99%]') == Facts(1_268_355, 1000, 3)
    assert facts('cifar10:3.0.2', 'train[100:]+test') == Facts(59_900, 10, 3)


@pytest.mark.parametrize('split', ['train', 'validation', 'test[:50%]'])
def test_the_table_agrees_with_the_set_in_the_package(split):
    there = open_source('fashion_mnist_10k', split)
    classes = len(there.class_names)
    assert facts('fashion_mnist_10k', split) == Facts(there.examples, classes, there.channels)


def test_other_sets_are_not_known():
    assert facts('folder:photos', 'train') is None
    assert 'made_images' not in SETS


def test_a_split_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'test' of imagenet2012.*train \(1,281,167\)"):
        facts('imagenet2012', 'test')
