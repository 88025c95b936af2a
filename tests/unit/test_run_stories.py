"""Whether an episode of the demonstration went as told."""

import pytest

from vigil.run.stories import SCRIPTS, policy_alone, saved_by_operator, untold

GOOD = {
    "outcome": "success",
    "termination_reason": "task_success",
    "alarms": 0,
    "first_alarm_s": None,
    "alarm_to_hold_ms": None,
    "takeover_joint_step_rad": None,
    "handed_back": False,
}
SAVED = {
    **GOOD,
    "outcome": "intervened_success",
    "alarms": 1,
    "first_alarm_s": 2.5,
    "alarm_to_hold_ms": 1.5,
    "takeover_joint_step_rad": 0.004,
    "handed_back": True,
}


def test_stories_as_told_have_no_problems():
    assert policy_alone(GOOD) == []
    assert saved_by_operator(SAVED) == []


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"outcome": "failure", "termination_reason": "timeout"}, "finish by itself"),
        ({"alarms": 1, "first_alarm_s": 1.0}, "no alarm"),
        ({"outcome": "intervened_success"}, "finish by itself"),
    ],
)
def test_what_goes_wrong_with_the_policy_alone_is_said(change, problem):
    (said,) = policy_alone(GOOD | change)
    assert problem in said


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"alarms": 0}, "alarm was to come"),
        ({"alarm_to_hold_ms": None}, "hold the arm"),
        ({"takeover_joint_step_rad": None}, "take over"),
        ({"takeover_joint_step_rad": 0.02}, "without a jump"),
        ({"outcome": "failure", "termination_reason": "timeout"}, "finish the task"),
        ({"handed_back": False}, "hand control back"),
    ],
)
def test_what_goes_wrong_with_a_rescue_is_said(change, problem):
    (said,) = saved_by_operator(SAVED | change)
    assert problem in said


def test_the_demonstration_tells_the_four_kinds_of_story():
    assert [s.check for s in SCRIPTS] == [policy_alone, policy_alone, saved_by_operator, saved_by_operator]
    assert len({s.name for s in SCRIPTS}) == len({s.perturbation for s in SCRIPTS}) == 4


def test_an_episode_that_broke_off_is_not_as_told_and_says_why():
    story = untold(SCRIPTS[0], 1, "node policy hangs")
    assert not story.told and story.problems == ("node policy hangs",)
    assert story.facts["outcome"] == "failure" and story.facts["alarms"] == 0
