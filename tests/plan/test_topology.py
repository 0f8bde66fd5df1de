"""Devices by name, and what is said about names that are wrong."""

import importlib.util

import jax
import pytest

from ssljax.plan.topology import topology


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('v5x:4x4', r"'v5x:4x4' names no known chip, did you mean v5[ep] or v5[ep]; expected"),
        ('TPU v5e:4x4', 'did you mean v5e'),
        ('h100:8', 'names no known chip; expected CHIP:SLICE with one of v4, v5e, v5p, v6e'),
        ('v5e', 'names no slice of v5e, whose chips lie in 2 dimensions'),
        ('v5e:16', r'did you mean v5e:8x16 or v5e:16x16'),
        ('v5e:4x4x4', r'chips lie in 2 dimensions; did you mean v5e:4x4'),
        ('v5p:4x4', r'chips lie in 3 dimensions; did you mean v5p:[\dx]+ .*Usual ones: v5p:2x2x1'),
        ('v5e:axb', 'Usual ones: v5e:1x1'),
        ('', 'names no known chip; expected CHIP:SLICE'),
    ],
)
def test_a_wrong_name_is_answered_with_near_ones(name, says):
    with pytest.raises(ValueError, match=says):
        topology(name)


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .*-e '\.\[tpu-plan\]'"):
        topology('v5e:4x4')


def test_here_are_the_devices_that_are_here():
    for name in ('here', 'local'):
        assert topology(name).devices == jax.devices()
    assert topology('here', 3).devices == jax.devices()[:3]
    assert topology('here').chip is None and topology('here').kind == 'cpu'
    with pytest.raises(ValueError, match='9 devices asked for, 8 here'):
        topology('here', 9)


def test_a_slice_has_the_devices_it_has():
    with pytest.raises(ValueError, match='--devices is for --topology here'):
        topology('v5e:4x4', 8)
