import pytest
import tensorflow as tf

from ssljax.data import faults
from ssljax.data.faults import UnreachableDataError, of_data, patiently


def raised(kind, message='/data/one.jpg; it happened'):
    return getattr(tf.errors, f'{kind}Error')(None, None, message)


class Attempt:
    """Fails with the errors of a list, one a call; then returns 7."""

    def __init__(self, *errors):
        self.left = list(errors)

    def __call__(self):
        if self.left:
            raise self.left.pop(0)
        return 7


@pytest.fixture
def slept(monkeypatch):
    seconds = []
    monkeypatch.setattr(faults.time, 'sleep', seconds.append)
    return seconds


DATA = ('InvalidArgument', 'DataLoss', 'NotFound')
PASSING = (
    'Unavailable',
    'DeadlineExceeded',
    'Aborted',
    'ResourceExhausted',
    'Internal',
    'Unknown',
    'FailedPrecondition',
    'PermissionDenied',
)


@pytest.mark.parametrize('kind', DATA)
def test_an_error_of_the_data_is_raised_at_once(kind, slept):
    error = raised(kind)
    assert of_data(error)
    with pytest.raises(type(error)):
        patiently(Attempt(error))
    assert slept == []


@pytest.mark.parametrize('kind', PASSING)
def test_any_other_is_waited_for_ever_longer(kind, slept):
    assert patiently(Attempt(*[raised(kind)] * 5)) == 7
    assert slept == [1, 2, 4, 8, 16]


def test_what_does_not_pass_says_what_and_what_to_do(slept):
    with pytest.raises(UnreachableDataError) as error:
        patiently(Attempt(*[raised('Unavailable')] * 6))
    said = str(error.value)
    assert '6 tries over 31 s: /data/one.jpg; it happened; nothing was put in' in said
    assert 'goes on from its last checkpoint' in said
    assert len(slept) == 5


@pytest.mark.parametrize(
    'path, kind',
    [('gone.jpg', 'NotFound'), ('folder.jpg', 'FailedPrecondition'), ('loop.jpg', 'Unknown')],
)
def test_kinds_are_those_of_the_file_system(tmp_path, path, kind):
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'loop.jpg').symlink_to(tmp_path / 'loop.jpg')
    with pytest.raises(getattr(tf.errors, f'{kind}Error')) as error:
        tf.io.read_file(str(tmp_path / path))
    assert faults.reason(error.value).startswith(str(tmp_path / path))
