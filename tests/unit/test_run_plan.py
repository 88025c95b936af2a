"""Which episodes an evaluation consists of."""

import pytest

from vigil.errors import VigilError
from vigil.run.plan import plan

KINDS = {"lighting": "benign", "distractor": "benign", "object_moved": "failing"}


def names(*arguments):
    return [p.perturbation for p in plan(*arguments, KINDS)]


def test_seeds_count_up():
    assert [p.seed for p in plan(3, 100, "none", KINDS)] == [100, 101, 102]


def test_groups_take_turns():
    assert names(5, 0, "all") == ["none", "lighting", "distractor", "object_moved", "none"]
    assert names(3, 0, "benign") == ["lighting", "distractor", "lighting"]
    assert names(2, 0, "failing") == ["object_moved"] * 2
    assert names(2, 0, "lighting") == ["lighting"] * 2


@pytest.mark.parametrize("arguments", [(0, 0, "none"), (3, 0, "earthquake")])
def test_what_cannot_be_planned_is_named(arguments):
    with pytest.raises(VigilError, match=r"from 1 up|earthquake.*object_moved"):
        plan(*arguments, KINDS)
