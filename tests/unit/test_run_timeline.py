"""What is read out of a recording, from made-up messages."""

from types import SimpleNamespace as Message

import pytest

from vigil.errors import VigilError
from vigil.run.timeline import Recorded, Timeline

MS = 1_000_000
NAMES = ["fr3_joint1", "gripper"]


def stamp(ns):
    return Message(sec=ns // 10**9, nanosec=ns % 10**9)


def control(at_ms, transition, authority, event="", made_ms=0, first_ms=0, step=(0.0, 0.0), raised_ms=None):
    return Message(
        header=Message(stamp=stamp(at_ms * MS)),
        transition=transition,
        authority_name=authority,
        event=event,
        reason=event,
        event_stamp=stamp(round((made_ms if raised_ms is None else raised_ms) * MS)),
        transition_stamp=stamp(made_ms * MS),
        first_command_stamp=stamp(first_ms * MS),
        first_step=list(step),
        names=NAMES,
    )


def verdict(at_ms, name, windowed=1.0, threshold=2.0):
    return Message(
        header=Message(stamp=stamp(at_ms * MS)),
        verdict_name=name,
        score_names=["rnd", "ace"],
        score_kinds=[0, 1],
        windowed=[windowed, windowed],
        thresholds=[threshold, threshold],
    )


def task(at_ms, success=False, failure=False, active=False):
    return Message(
        header=Message(stamp=stamp(at_ms * MS)),
        success=success,
        failure=failure,
        failure_reason="timeout" if failure else "",
        perturbation="object_moved",
        perturbation_active=active,
    )


def recorded(messages, delay_ms=2):
    out = []
    for m in messages:
        at = m.header.stamp.sec * 10**9 + m.header.stamp.nanosec
        out.append(Recorded(at + delay_ms * MS, at + (delay_ms - 1) * MS, m))
    return out


@pytest.fixture
def intervened():
    arm = [control(t, 4, "HOLD", "hold") for t in range(0, 1000, 10)]
    arm += [control(t, 5, "POLICY", "engage", 1000, 1010) for t in range(1000, 3003, 10)]
    arm += [control(t, 6, "HOLD", "alarm", 3003, 0, raised_ms=3002) for t in range(3003, 3500, 10)]
    arm += [control(t, 7, "OPERATOR", "take_over", 3500, 3501, (0.004, 0.0)) for t in range(3500, 6000, 10)]
    arm += [control(t, 8, "HOLD", "release", 6000) for t in range(6000, 6100, 10)]
    arm += [control(t, 9, "POLICY", "hand_back", 6100, 6300) for t in range(6100, 6500, 10)]
    verdicts = [verdict(800, "ALARM"), verdict(1200, "NOMINAL"), verdict(1400, "BENIGN_OOD")]
    verdicts += [verdict(3000, "ALARM", 5.0), verdict(3200, "ALARM", 5.0)]
    tasks = [task(900), task(2000, active=True), task(5800, success=True, active=True)]
    return Timeline(recorded(arm), recorded(verdicts), recorded(tasks), ("ALARM", "OUT_OF_RANGE"))


def test_times_count_from_the_moment_control_is_given(intervened):
    assert intervened.duration == pytest.approx(4.8)
    assert intervened.length == pytest.approx(5.49)
    assert intervened.perturbed_s() == pytest.approx(1.0)
    assert [(s.authority, round(s.start, 3)) for s in intervened.spans()] == [
        ("POLICY", 0.0),
        ("HOLD", 2.003),
        ("OPERATOR", 2.5),
        ("HOLD", 5.0),
        ("POLICY", 5.1),
    ]


def test_alarms_count_only_while_the_policy_has_control(intervened):
    assert len(intervened.alarms()) == 1
    assert intervened.first_alarm_s() == pytest.approx(2.0)
    assert intervened.verdict_names() == ["NOMINAL", "BENIGN_OOD", "ALARM"]


def test_latency_is_from_sending_to_the_change(intervened):
    assert intervened.alarm_to_hold_ms() == pytest.approx(2.0)  # sent at 3001, held at 3003


def test_latency_under_simulated_time_uses_the_arms_receipt():
    arm = [control(0, 0, "HOLD")] + [control(t, 1, "POLICY", "engage", 10) for t in range(10, 50, 10)]
    arm += [control(60, 2, "HOLD", "alarm", 60, raised_ms=50)]
    verdicts = [Recorded(10**18, 10**18, verdict(40, "ALARM"))]  # wall clock, far from simulated time
    timeline = Timeline(recorded(arm), verdicts, recorded([task(20)]), ("ALARM",))
    assert timeline.alarm_to_hold_ms() == pytest.approx(10.0)


def test_takeover_and_hand_back(intervened):
    takeover = intervened.takeover()
    assert takeover.first_step == {"fr3_joint1": 0.004, "gripper": 0.0}
    assert takeover.first_command - takeover.made == MS
    assert intervened.handed_back()
    assert [h["event"] for h in intervened.holds()] == ["alarm"]


def test_scores_by_name(intervened):
    rnd, ace = intervened.scores()
    assert (rnd.name, rnd.kind, ace.name, ace.kind) == ("rnd", "observation", "ace", "action")
    assert rnd.ratio.tolist() == [0.5, 0.5, 2.5, 2.5]


def test_an_arm_that_nobody_moved_is_no_episode():
    arm = recorded([control(t, 0, "HOLD") for t in (0, 10)])
    with pytest.raises(VigilError, match="no change of authority"):
        Timeline(arm, [], [], ("ALARM",))


def test_without_alarm_takeover_or_scores():
    arm = [control(0, 0, "HOLD")] + [control(t, 1, "POLICY", "engage", 10) for t in range(10, 90, 10)]
    timeline = Timeline(recorded(arm), [], recorded([task(50, failure=True)]), ())
    assert (
        timeline.alarms() == [] and timeline.first_alarm_s() is None and timeline.alarm_to_hold_ms() is None
    )
    assert timeline.takeover() is None and not timeline.handed_back() and timeline.scores() == ()
    assert [e.label for e in timeline.events()] == ["timeout"]
