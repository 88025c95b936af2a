"""What robots tell of themselves, how late they are, and what their drivers are sent."""

import numpy as np
import pytest

from vigil.arm.adapters.faults import DiagnosticFaults, Report, franka_fault
from vigil.arm.adapters.gripper_goals import PAUSE, GripperGoals
from vigil.arm.adapters.interbotix import JointGroup, JointSingle
from vigil.arm.adapters.plan import Plan
from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND
from vigil.arm.feedback import Feedback
from vigil.arm.loop_statistics import EDGES, Histograms
from vigil.arm.robot import CommandLatency, RobotWatch
from vigil.arm.watchdog import Inputs
from vigil.joints import joint_sources, raw_width, width_of
from vigil.rig import load_rig

MS = SECOND // 1000


@pytest.fixture(scope="module")
def aloha():
    return load_rig("aloha")


@pytest.fixture(scope="module")
def franka():
    return load_rig("franka")


def plan_of(positions):
    positions = np.array(positions, float)
    return Plan(0, np.linspace(0.02, 0.1, len(positions)), positions, np.zeros_like(positions))


# Several sources of joint states ------------------------------------------------------------------------------------


def test_each_arm_tells_its_own_columns(aloha):
    columns, sources = Columns.of(aloha), joint_sources(aloha)
    feedback = Feedback(columns, sources)
    left = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    names = [*aloha.arms[0].joints, "gripper", "left_finger"]
    feedback.update(SECOND, names, [*left, 1.6214, 9.0], 0)
    assert not feedback.heard and np.isnan(feedback.position[7:]).all()
    feedback.update(SECOND, names, [*(-x for x in left), 0.6197, 9.0], 1)
    assert feedback.heard
    expected = [*left, 0.0278, *(-x for x in left), 0.0]
    assert feedback.position == pytest.approx(expected, abs=1e-9)
    jump = feedback.update(SECOND + 10 * MS, names, [2.0, *left[1:], 1.0, 9.0], 1)
    assert "right_waist jumped from -0.100 to 2.000" in jump
    with pytest.raises(Refused, match=r"follower_left/joint_states: \['elbow'\] are missing"):
        feedback.update(SECOND, [n for n in names if n != "elbow"], [0.0] * 7, 0)


def test_the_silence_of_one_source_is_named(aloha):
    inputs = Inputs(aloha, lockstep=False)
    inputs.joint_states.feed(SECOND, 0)
    assert "follower_right/joint_states: nothing heard yet" in str(inputs.joint_states.silence(SECOND))
    inputs.joint_states.feed(SECOND, 1)
    assert inputs.joint_states.fresh(SECOND) and inputs.joint_states.overdue(SECOND) is None
    inputs.joint_states.feed(2 * SECOND, 0)
    assert "follower_right/joint_states: nothing for 1.00 s" in str(inputs.joint_states.overdue(2 * SECOND))


def test_a_gripper_s_joint_and_its_width_are_each_other_s_inverse(aloha, franka):
    for rig in (aloha, franka):
        for gripper in (arm.gripper for arm in rig.arms):
            factor, offset = width_of(gripper)
            assert factor * gripper.closed + offset == pytest.approx(gripper.limits.lower)
            assert factor * gripper.open + offset == pytest.approx(gripper.limits.upper)
            for width in (gripper.limits.lower, 0.013, gripper.limits.upper):
                assert factor * raw_width(gripper, width) + offset == pytest.approx(width)


# What drivers are sent ----------------------------------------------------------------------------------------------


def test_interbotix_gets_the_group_and_the_gripper_of_its_own_arm(aloha):
    right = aloha.arms[1]
    columns = slice(7, 14)
    setpoint = np.arange(14.0)
    setpoint[13] = right.gripper.limits.upper
    group = JointGroup(right, columns).commands(plan_of([setpoint, setpoint]))
    assert (group.topic, group.name) == ("follower_right/commands/joint_group", "arm")
    assert list(group.values) == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    single = JointSingle(right, columns).commands(plan_of([setpoint, setpoint]))
    assert (single.topic, single.name) == ("follower_right/commands/joint_single", "gripper")
    assert single.value == pytest.approx(1.6214)


def widths(*values):
    return plan_of([[*(0.0,) * 7, value] for value in values])


def test_a_hand_gets_a_goal_when_its_width_has_moved_on_and_it_is_ready(franka):
    hand, now = GripperGoals(franka.arm, slice(0, 8), interruptible=False), SECOND
    assert hand.due(widths(0.08, 0.079), 0.08, now) is None, "too little to be worth it"
    goal = hand.due(widths(0.08, 0.07), 0.08, now)
    assert goal.grasp and goal.width == pytest.approx(0.07) and goal.force == 30.0
    now += PAUSE
    assert hand.due(widths(0.07, 0.02), 0.075, now) is None, "it is busy"
    hand.done()
    assert hand.due(widths(0.07, 0.02), 0.07, now).width == pytest.approx(0.02)
    hand.done()
    assert hand.due(widths(0.02, 0.06), 0.02, now + PAUSE - 1) is None, "not in quick succession"
    opening = hand.due(widths(0.02, 9.0), 0.02, now + PAUSE)
    assert not opening.grasp and opening.width == 0.08, "inside its limits"
    hand.refused()
    assert hand.due(widths(0.02, 9.0), 0.02, now + PAUSE) == opening, "sent again"


def test_a_width_that_rests_is_reached_to_half_a_millimetre(franka):
    hand = GripperGoals(franka.arm, slice(0, 8), interruptible=True)
    assert hand.due(widths(0.05, 0.048), 0.05, SECOND) is None
    assert hand.due(widths(0.048, 0.048), 0.05, SECOND).width == pytest.approx(0.048)


# Faults -------------------------------------------------------------------------------------------------------------


def test_diagnostics_are_a_fault_as_long_as_one_of_the_arm_s_has_failed(franka):
    arm = franka.arm.model_copy(update={"diagnostics": ("controller_manager: fr3", "motors")})
    faults = DiagnosticFaults(arm)
    assert faults.update([Report("camera: stream", True, "gone")]) is None
    failed = [Report("motors: 3", True, "overheated"), Report("controller_manager: fr3_arm", True, "stopped")]
    assert faults.update(failed) == "motors: 3: overheated; controller_manager: fr3_arm: stopped"
    assert faults.update([Report("motors: 3", False, "ok")]) == "controller_manager: fr3_arm: stopped"
    assert faults.update([Report("controller_manager: fr3_arm", False, "ok")]) == ""


def test_a_franka_says_why_it_stopped():
    assert franka_fault(2, []) == franka_fault(1, ["joint_reflex"]) == ""
    assert franka_fault(4, ["joint_reflex"]) == "a reflex stopped it (joint_reflex)"
    assert franka_fault(5, []) == "the user stop is pressed"


def test_faults_are_told_once_and_stand_until_the_robot_is_well(franka):
    watch = RobotWatch(Columns.of(franka), 0.3)
    assert watch.report("franka", "a reflex") and not watch.report("franka", "a reflex")
    assert watch.fault == "franka: a reflex: make the robot safe, then call arm/recover"
    assert not watch.report("franka", "") and watch.fault == ""


# Latency and histograms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.0, 0.02, 0.08])
def test_the_latency_from_command_to_motion_is_measured(franka, late):
    columns, rng = Columns.of(franka), np.random.default_rng(0)
    latency = CommandLatency(columns, 0.01)
    amplitude, frequency = rng.uniform(0.1, 0.4, 8), rng.uniform(1.0, 4.0, 8)

    def command(t):
        return amplitude * np.sin(frequency * t)

    assert latency.seconds is None
    for tick in range(600):
        t = 0.01 * tick
        measured = command(t - late) + rng.normal(0, 1e-4, 8)
        measured[7] = 5.0  # a gripper that holds something says nothing of latency
        latency.add(command(t), amplitude * frequency * np.cos(frequency * t), measured)
    assert latency.seconds == pytest.approx(late, abs=0.004)
    for _ in range(2000):
        latency.add(np.zeros(8), np.zeros(8), np.zeros(8))
    assert latency.seconds is None, "a standing arm has none"


def test_histograms_count_every_time_once():
    times = Histograms(("period", "tick"))
    for seconds in (-0.001, 0.0, 0.01, 0.0104, 7.0):
        times.add("period", seconds)
    assert times.counts.shape == (2, len(EDGES)) and times.counts[1].sum() == 0
    counted = dict(zip(EDGES, times.counts[0].tolist(), strict=True))
    assert counted[0.0] == 2 and counted[0.0095] == 2 and counted[1.0] == 1
    times.restart()
    assert times.counts.sum() == 0
