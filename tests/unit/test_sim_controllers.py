"""The controllers behave as ros2_control's, and refuse what cannot be executed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.errors import VigilError
from vigil.sim import scene
from vigil.sim.controllers import NS, ForwardCommandController, JointTrajectoryController, Point
from vigil.sim.hardware import SETTLING, RobotHardware

NAMES = ("a", "b")
MS = NS // 1000


def controller() -> JointTrajectoryController:
    return JointTrajectoryController(NAMES, [0.0, 1.0])


def test_holds_its_position_without_a_trajectory():
    position, velocity = controller().sample(5 * NS)
    np.testing.assert_array_equal(position, [0, 1])
    np.testing.assert_array_equal(velocity, [0, 0])


def test_positions_alone_are_interpolated_linearly_then_held():
    jtc = controller()
    jtc.accept(NAMES, [Point(100 * MS, [1.0, 1.0]), Point(200 * MS, [1.0, 3.0])], 0, NS)
    position, velocity = jtc.sample(NS + 50 * MS)
    np.testing.assert_allclose(position, [0.5, 1.0])
    np.testing.assert_allclose(velocity, [10.0, 0.0])
    np.testing.assert_allclose(jtc.sample(NS + 150 * MS)[0], [1.0, 2.0])
    assert not jtc.finished(NS + 199 * MS)
    position, velocity = jtc.sample(NS + 900 * MS)
    np.testing.assert_array_equal(position, [1.0, 3.0])
    np.testing.assert_array_equal(velocity, [0.0, 0.0])
    assert jtc.finished(NS + 200 * MS)


def test_velocities_give_a_cubic_that_meets_both_ends():
    jtc = controller()
    jtc.accept(
        NAMES, [Point(100 * MS, [1.0, 1.0], [4.0, 0.0]), Point(200 * MS, [2.0, 1.0], [0.0, 0.0])], 0, NS
    )
    position, velocity = jtc.sample(NS + 100 * MS)
    np.testing.assert_allclose(position, [1.0, 1.0])
    np.testing.assert_allclose(velocity, [4.0, 0.0])
    before, after = jtc.sample(NS + 100 * MS - MS // 10), jtc.sample(NS + 100 * MS + MS // 10)
    np.testing.assert_allclose((after[0] - before[0]) / 0.0002, velocity, atol=0.05)


def test_a_new_trajectory_starts_where_the_old_one_is():
    jtc = controller()
    jtc.accept(NAMES, [Point(100 * MS, [1.0, 1.0], [10.0, 0.0])], 0, NS)
    now = NS + 50 * MS
    before = jtc.sample(now)
    jtc.accept(NAMES, [Point(100 * MS, [0.0, 1.0], [0.0, 0.0])], 0, now)
    after = jtc.sample(now)
    np.testing.assert_allclose(after[0], before[0])
    np.testing.assert_allclose(after[1], before[1])
    np.testing.assert_allclose(jtc.sample(now + 100 * MS)[0], [0.0, 1.0])


def test_joints_are_matched_by_name():
    jtc = controller()
    jtc.accept(["b", "a"], [Point(100 * MS, [7.0, 3.0])], 0, NS)
    np.testing.assert_array_equal(jtc.sample(2 * NS)[0], [3.0, 7.0])


def test_way_points_in_the_past_are_dropped():
    jtc = controller()
    points = [Point(100 * MS, [50.0, 50.0]), Point(300 * MS, [1.0, 1.0])]
    jtc.accept(NAMES, points, NS, NS + 200 * MS)
    assert jtc.sample(NS + 250 * MS)[0][0] == pytest.approx(0.5)


def test_a_stamp_in_the_future_delays_the_start():
    jtc = controller()
    jtc.accept(NAMES, [Point(0, [0.0, 1.0]), Point(100 * MS, [1.0, 1.0])], 2 * NS, NS)
    np.testing.assert_allclose(jtc.sample(NS + 500 * MS)[0], [0.0, 1.0])
    assert jtc.sample(2 * NS + 50 * MS)[0][0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("names", "points", "stamp", "reason"),
    [
        (NAMES, [], 0, "no points"),
        (("a", "c"), [Point(MS, [0.0, 0.0])], 0, "exactly once"),
        (("a",), [Point(MS, [0.0])], 0, "exactly once"),
        (("a", "a"), [Point(MS, [0.0, 0.0])], 0, "exactly once"),
        (NAMES, [Point(MS, [0.0])], 0, "expected 2"),
        (NAMES, [Point(MS, [0.0, float("nan")])], 0, "not finite"),
        (NAMES, [Point(MS, [0.0, 0.0], [float("inf"), 0.0])], 0, "not finite"),
        (NAMES, [Point(MS, [0.0, 0.0], [0.0])], 0, "expected 2"),
        (NAMES, [Point(2 * MS, [0.0, 0.0]), Point(2 * MS, [0.0, 0.0])], 0, "increase"),
        (NAMES, [Point(-MS, [0.0, 0.0])], 0, "increase"),
        (NAMES, [Point(MS, [0.0, 0.0])], NS // 2, "in the past"),
    ],
)
def test_what_cannot_be_executed_changes_nothing(names, points, stamp, reason):
    jtc = controller()
    jtc.accept(NAMES, [Point(400 * MS, [4.0, 5.0])], 0, NS)
    expected = jtc.sample(NS + 100 * MS)
    with pytest.raises(VigilError, match=reason):
        jtc.accept(names, points, stamp, NS + 50 * MS)
    np.testing.assert_array_equal(jtc.sample(NS + 100 * MS), expected)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=6),
    st.booleans(),
)
def test_every_way_point_is_passed_at_its_time(steps, with_velocity):
    jtc = controller()
    time, points = 0, []
    for duration, position, velocity in steps:
        time += duration * MS
        points.append(Point(time, [position, -position], [velocity, 0.0] if with_velocity else ()))
    jtc.accept(NAMES, points, 0, NS)
    for point in points:
        np.testing.assert_allclose(jtc.sample(NS + point.time_from_start)[0], point.positions, atol=1e-9)


def test_forward_controller_refuses_wrong_shapes_and_values():
    forward = ForwardCommandController(NAMES, [1.0, 2.0])
    forward.accept([3.0, 4.0])
    for bad in ([1.0], [1.0, 2.0, 3.0], [float("nan"), 0.0]):
        with pytest.raises(VigilError):
            forward.accept(bad)
    np.testing.assert_array_equal(forward.sample(), [3.0, 4.0])


HOME = np.append(scene.HOME, scene.MAX_WIDTH)


def test_the_last_commanded_controller_moves_the_arm():
    robot = RobotHardware(HOME)
    assert robot.on_positions(scene.HOME + 0.1, NS)
    position, velocity, width = robot.sample(NS)
    np.testing.assert_allclose(position, scene.HOME + 0.1)
    np.testing.assert_allclose(velocity, 10.0)
    assert width == pytest.approx(scene.MAX_WIDTH)
    assert robot.on_trajectory(scene.ARM_JOINTS, [Point(100 * MS, scene.HOME)], 0, NS)
    np.testing.assert_allclose(robot.sample(NS)[0], scene.HOME + 0.1)
    np.testing.assert_allclose(robot.sample(NS + 100 * MS)[0], scene.HOME)


def test_a_new_scene_drops_commands_and_ignores_late_ones():
    robot = RobotHardware(HOME)
    assert robot.on_gripper([0.02], NS)
    assert robot.on_trajectory(scene.ARM_JOINTS, [Point(NS, scene.HOME + 1)], 0, NS)
    robot.hold(HOME, NS + 10 * MS)
    assert not robot.on_trajectory(scene.ARM_JOINTS, [Point(NS, scene.HOME + 1)], 0, NS + 20 * MS)
    assert "new" in robot.last_rejection and robot.rejected == 1
    position, velocity, width = robot.sample(2 * NS)
    np.testing.assert_array_equal(position, scene.HOME)
    np.testing.assert_array_equal(velocity, np.zeros(7))
    assert width == pytest.approx(scene.MAX_WIDTH)
    assert robot.on_trajectory(scene.ARM_JOINTS, [Point(NS, scene.HOME)], 0, NS + 10 * MS + SETTLING)
