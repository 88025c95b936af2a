"""Watchdogs, measured joint states, loop statistics, and what is written for the hardware."""

import numpy as np
import pytest

from vigil.arm.adapters.plan import Plan
from vigil.arm.adapters.ros2_control import ForwardGripper, ForwardPosition, JointTrajectory
from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND
from vigil.arm.feedback import Feedback
from vigil.arm.loop_statistics import LoopStatistics
from vigil.arm.watchdog import Inputs, Watchdog
from vigil.joints import joint_sources
from vigil.rig import RigConfig, load_rig

MS = SECOND // 1000
ALL = slice(0, 8)


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


@pytest.fixture
def columns(rig):
    return Columns.of(rig)


def test_watchdog_limits_silence():
    watch = Watchdog("chunk", 0.2)
    assert not watch.fresh(0) and "nothing heard yet" in str(watch.overdue(1))
    watch.feed(SECOND)
    assert watch.fresh(SECOND + 200 * MS) and watch.overdue(SECOND + 200 * MS) is None
    late = watch.overdue(SECOND + 201 * MS)
    assert late.age == pytest.approx(0.201) and str(late) == "chunk: nothing for 0.20 s (limit 0.2 s)"
    watch.excuse(2 * SECOND)
    assert watch.overdue(2 * SECOND) is None and not watch.fresh(2 * SECOND)
    assert watch.overdue(2 * SECOND + 1)
    watch.forget()
    assert not watch.fresh(SECOND)


def heard(inputs, now):
    for watch in (
        inputs.joint_states,
        inputs.chunk,
        inputs.operator,
        inputs.monitor,
        inputs.evidence,
        *inputs.cameras.values(),
    ):
        if watch is not None:
            watch.feed(now)


def test_every_missing_input_is_named(rig):
    inputs = Inputs(rig, lockstep=False)
    absent = "; ".join(inputs.absent(SECOND))
    for name in ("joint_states", "chunk", "monitor", "evidence", "operator", "camera wrist", "camera scene"):
        assert f"{name}: nothing heard yet" in absent
    heard(inputs, SECOND)
    assert inputs.absent(SECOND) == inputs.missing(SECOND) == []
    heard(inputs, 2 * SECOND)
    late = 2 * SECOND + 310 * MS
    assert inputs.missing(late) == [
        "camera wrist: nothing for 0.31 s (limit 0.3 s)",
        "camera scene: nothing for 0.31 s (limit 0.3 s)",
        "operator: nothing for 0.31 s (limit 0.25 s)",
    ]


def test_a_dead_node_is_missing_until_it_is_back_or_left_in_order(rig):
    inputs = Inputs(rig, lockstep=False)
    heard(inputs, SECOND)
    inputs.node("record", True, False)
    inputs.node("record", False, False)
    assert inputs.missing(SECOND) == inputs.absent(SECOND) == ["record: the node died"]
    inputs.node("record", True, False)
    assert inputs.missing(SECOND) == []
    inputs.node("record", False, True)
    assert inputs.missing(SECOND) == []


def test_in_lock_step_only_what_simulated_time_waits_for_is_watched(rig):
    inputs = Inputs(rig, lockstep=True)
    inputs.joint_states.feed(SECOND)
    inputs.chunk.feed(SECOND)
    inputs.monitor.feed(SECOND)
    inputs.evidence.feed(SECOND)
    assert inputs.absent(SECOND) == []


def test_without_a_monitor_none_is_missed(rig):
    bare = RigConfig.model_validate({**rig.model_dump(), "monitor": {"level": "none"}})
    inputs = Inputs(bare, lockstep=False)
    heard(inputs, SECOND)
    assert inputs.monitor is None and inputs.absent(SECOND) == []


def home_state(rig, columns, **changed):
    return [rig.arm.home[name] + changed.get(name, 0.0) for name in columns.names]


def test_joint_states_are_matched_by_name_and_may_hold_more(rig, columns):
    feedback = Feedback(columns, joint_sources(rig))
    names = [*reversed(columns.names), "another"]
    position = [*reversed(home_state(rig, columns)), 99.0]
    assert feedback.update(SECOND, names, position) == "" and feedback.heard
    assert feedback.position == pytest.approx(home_state(rig, columns))


@pytest.mark.parametrize(
    ("names", "values", "said"),
    [
        (slice(1, None), slice(1, None), "fr3_joint1.*missing"),
        (slice(None), slice(1, None), "8 names and 7 positions"),
        (slice(None), None, "fr3_joint2.*not finite"),
    ],
)
def test_broken_joint_states_are_refused_and_counted(rig, columns, names, values, said):
    feedback = Feedback(columns, joint_sources(rig))
    state = home_state(rig, columns)
    feedback.update(SECOND, columns.names, state)
    given = [*state[:1], np.nan, *state[2:]] if values is None else state[values]
    with pytest.raises(Refused, match=said):
        feedback.update(2 * SECOND, columns.names[names], given)
    assert feedback.rejected == 1 and feedback.stamps == [SECOND]


def test_jumps_are_told_from_motion(rig, columns):
    feedback = Feedback(columns, joint_sources(rig))
    feedback.update(SECOND, columns.names, home_state(rig, columns))
    fastest = home_state(rig, columns, fr3_joint1=0.02, fr3_joint7=-0.025, gripper=-0.003)
    assert feedback.update(SECOND + 10 * MS, columns.names, fastest) == ""
    jump = feedback.update(SECOND + 20 * MS, columns.names, home_state(rig, columns, fr3_joint3=0.3))
    assert "fr3_joint3 jumped from 0.000 to 0.300 within 0.010 s" in jump
    assert feedback.position[2] == pytest.approx(0.3), "the newest sample is the truth all the same"
    assert "went back in time" in feedback.update(SECOND, columns.names, home_state(rig, columns))
    after_a_gap = home_state(rig, columns, fr3_joint2=1.2)
    assert "fr3_joint2 jumped" in feedback.update(5 * SECOND, columns.names, after_a_gap)


def test_a_joint_outside_its_limits_is_named(rig, columns):
    feedback = Feedback(columns, joint_sources(rig))
    feedback.update(SECOND, columns.names, home_state(rig, columns, fr3_joint4=2.2))
    assert "fr3_joint4 is at 0.000, outside" in feedback.outside(0.01)
    assert feedback.outside(1.0) == ""


def test_loop_statistics():
    loop = LoopStatistics(0.01)
    instant = 0
    for i in range(1, 301):
        instant += (30 if i == 250 else 10) * MS
        loop.tick(instant)
    assert loop.mean == pytest.approx(0.0102, abs=1e-4)
    assert loop.missed == 1 and loop.p99 == pytest.approx(0.01, abs=1e-3)
    loop.restart()
    assert loop.missed == 0


@pytest.fixture
def plan():
    positions = np.arange(24.0).reshape(3, 8)
    velocities = positions[::-1].copy()
    velocities[-1] = 0.0
    return Plan(5 * SECOND, np.array([0.01, 0.05, 0.1]), positions, velocities)


def test_trajectory_controller_gets_stamped_points_that_end_at_rest(rig, plan):
    adapter = JointTrajectory(rig.arm, ALL)
    command = adapter.commands(plan)
    assert adapter.topic == command.topic == "franka/fr3_arm_controller/joint_trajectory"
    assert command.stamp == 5 * SECOND and list(command.joint_names) == list(rig.arm.joints)
    assert [p.ahead for p in command.points] == [10 * MS, 50 * MS, 100 * MS]
    assert list(command.points[1].positions) == [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0]
    assert list(command.points[-1].velocities) == [0.0] * 7


def test_forward_controller_gets_the_next_setpoint(rig, plan):
    arm = rig.arm.model_copy(
        update={"controller_type": "forward_position", "controller": "forward_position_controller"}
    )
    joints, gripper = ForwardPosition(arm, ALL), ForwardGripper(arm, ALL)
    assert joints.topic == "franka/forward_position_controller/commands"
    assert list(joints.commands(plan).data) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert gripper.topic == "franka/gripper_controller/commands" and list(gripper.commands(plan).data) == [
        7.0
    ]
