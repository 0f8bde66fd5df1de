"""What is kept, by the rule; what a folder's name means."""

import itertools

import pytest
from etils import epath

from ssljax.train.shelf import Shelf, Slot, kept


def slots(*steps):
    return {Slot(step, 1) for step in steps}


@pytest.mark.parametrize(
    ('last', 'best', 'expected'),
    [
        (1, 0, slots(50)),
        (3, 0, slots(30, 40, 50)),
        (1, 1, slots(50, 40)),
        (1, 2, slots(50, 40, 10)),
        (0, 1, slots(40)),
        (9, 9, slots(10, 20, 30, 40, 50)),
    ],
)
def test_the_newest_and_the_best_are_kept(last, best, expected):
    """Of equal scores the newer is better; what has no score is not among the best."""
    scores = {10: 0.5, 20: -1.0, 30: None, 40: 0.5, 50: 0.1}
    assert kept({Slot(step, 1): score for step, score in scores.items()}, last, best) == expected


def test_the_newest_and_the_best_are_kept_whatever_the_scores():
    for scores in itertools.product([None, 0.1, 0.2], repeat=4):
        for last, best in itertools.product([1, 2], [0, 1, 2]):
            names = kept({Slot(i, 1): score for i, score in enumerate(scores)}, last, best)
            assert Slot(3, 1) in names
            given = [score for score in scores if score is not None]
            if best and given:
                assert max(given) in [scores[slot.step] for slot in names]
            assert len(names) <= last + best


def test_names_of_slots_are_read_back():
    for slot in (Slot(0, 1), Slot(120, 1), Slot(7, 2), Slot(7, 12)):
        assert Slot.of(slot.name) == slot
    for name in ('020', '20-1', '20-0', 'rejected', '20.partial', '20.orbax-checkpoint-tmp', '-1'):
        assert Slot.of(name) is None
    assert sorted([Slot(10, 1), Slot(9, 2), Slot(9, 1)])[-1] == Slot(10, 1)


def test_a_marked_slot_is_not_there_and_its_place_is_free(tmp_path):
    shelf = Shelf(epath.Path(tmp_path / 'shelf'), 1, 0)
    slot = shelf.begin(5)
    (shelf.path / slot.name).mkdir()
    assert shelf.slots() == []
    shelf.finish(slot, {'score': 0.5})
    assert shelf.scores() == {Slot(5, 1): 0.5}
    assert shelf.begin(5) == Slot(5, 2)


def test_old_slots_go_only_when_the_new_one_is_finished(tmp_path):
    shelf = Shelf(epath.Path(tmp_path / 'shelf'), 1, 0)
    for step in (1, 2):
        slot = shelf.begin(step)
        (shelf.path / slot.name).mkdir()
        assert shelf.slots() == ([Slot(1, 1)] if step == 2 else [])
        shelf.finish(slot, {'score': None})
        shelf.tidy(slot)
    assert shelf.slots() == [Slot(2, 1)]
    assert [path.name for path in shelf.path.iterdir()] == ['2']
