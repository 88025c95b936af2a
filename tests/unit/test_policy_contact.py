"""Contact by the gripper's width: what it was told against what it measures."""

import pytest

from vigil.arm.curves import SECOND
from vigil.policy.contact import Contact

NAMES = ("joint", "gripper")
NOW = 100 * SECOND


def at(contact, seconds, commanded, measured):
    contact.update(NOW + int(seconds * SECOND), NAMES, (9.0, commanded), (0.0, measured))
    return contact.ongoing(NOW + int(seconds * SECOND))


@pytest.fixture
def contact():
    return Contact(["gripper"], 0.004)


def test_before_anything_is_known_nothing_is_free(contact):
    assert contact.ongoing(NOW)


def test_an_open_gripper_is_free_once_it_has_been_for_a_moment(contact):
    assert at(contact, 0.0, 0.085, 0.084)
    assert at(contact, 0.1, 0.085, 0.085) and not at(contact, 0.2, 0.085, 0.085)


def test_a_gripper_that_holds_something_is_in_contact_until_it_lets_go(contact):
    for tick in range(5):
        held = at(contact, 0.1 * tick, 0.01, 0.04)
    assert "gripper is 40 mm wide, 30 mm more than commanded" in held
    assert "until 0.0 s ago" in at(contact, 0.5, 0.085, 0.045)
    assert at(contact, 0.69, 0.085, 0.06) and not at(contact, 0.7, 0.085, 0.085)


def test_one_that_closes_on_nothing_is_free_when_it_has_closed(contact):
    at(contact, 0.0, 0.085, 0.085)
    assert at(contact, 0.3, 0.0, 0.05)
    assert at(contact, 0.6, 0.0, 0.001) and not at(contact, 0.8, 0.0, 0.0)


@pytest.mark.parametrize("width", [float("nan"), None])
def test_what_is_not_told_may_hold_anything(contact, width):
    at(contact, 0.0, 0.085, 0.085)
    names, measured = (NAMES, (0.0, width)) if width is not None else (NAMES[:1], (0.0,))
    contact.update(NOW + SECOND, names, (9.0, 0.085), measured)
    assert "nothing is known of gripper" in contact.ongoing(NOW + SECOND)


def test_of_several_grippers_each_counts():
    contact = Contact(["left", "right"], 0.004)
    for tick in range(3):
        contact.update(NOW + tick * SECOND, ("left", "right"), (0.0, 0.0), (0.0, 0.02))
    assert "right is 20 mm wide" in contact.ongoing(NOW + 2 * SECOND) and "left" not in contact.ongoing(NOW)
