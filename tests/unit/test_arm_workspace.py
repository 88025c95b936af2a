"""The tool stays in its workspace and below its speed, whatever is asked for."""

import numpy as np
import pytest

from support.hostile import PERIOD, assert_inside, hostile_targets
from vigil.arm.columns import Columns, Refused
from vigil.arm.envelope import Envelope
from vigil.arm.workspace import Workspace
from vigil.kinematics import FRANKA
from vigil.rig import Box, WorkspaceConfig, load_rig

AHEAD = 0.1
WALL = Box(lower=(0.35, -0.02, 0.0), upper=(0.75, 0.02, 0.25))


def rig_arm(**changes):
    arm = load_rig("franka_sim").arm
    return arm.model_copy(update={"workspace": arm.workspace.model_copy(update=changes)})


def rig_of(*arms):
    return load_rig("franka_sim").model_copy(update={"arms": arms})


def envelope_of(*arms):
    rig = rig_of(*arms)
    made = Envelope(Columns.of(rig), PERIOD, Workspace(rig))
    made.anchor(np.array(list(rig.home.values())))
    return made


def tools(arm, positions):
    return FRANKA.positions(np.asarray(positions)[:, :7], arm.tool_offset)


def joints_at(arm, point):
    """Columns [8] with the tool at ``point`` [3], pointing down."""
    home = np.array([arm.home[name] for name in arm.columns])
    found = FRANKA.inverse(
        np.array(point),
        np.diag([1.0, -1.0, -1.0]),
        home[:7],
        lower=np.array([arm.limits[n].lower for n in arm.joints]),
        upper=np.array([arm.limits[n].upper for n in arm.joints]),
        tool_offset=arm.tool_offset,
    )
    assert found.reached()
    return np.append(found.q, home[7])


def go(envelope, target, steps):
    return [envelope.track(target, np.zeros(8), AHEAD).position for _ in range(steps)]


def inside(point, box, margin=0.0):
    return ((point > np.add(box.lower, margin)) & (point < np.subtract(box.upper, margin))).all(axis=-1)


@pytest.mark.parametrize("seed", range(3))
def test_hostile_targets_never_leave_the_workspace(seed):
    arm = rig_arm(keep_out={"wall": WALL}, tool_speed=0.6)
    envelope, columns = envelope_of(arm), Columns.of(rig_of(arm))
    positions = [envelope.setpoint.position]
    for target, velocity in hostile_targets(columns, np.random.default_rng(seed), 8_000):
        try:
            positions.append(envelope.track(target, velocity, AHEAD).position)
        except Refused:
            positions.append(envelope.brake().position)
    assert_inside(columns, positions)
    points, box = tools(arm, positions), arm.workspace.inside
    assert (points >= np.array(box.lower) - 1e-4).all() and (points <= np.array(box.upper) + 1e-4).all()
    assert not inside(points, WALL, 1e-4).any()
    assert np.linalg.norm(np.diff(points, axis=0), axis=1).max() / PERIOD <= 0.6 * (1 + 1e-6)
    assert np.ptp(points, axis=0).min() > 0.3, "the fuzz moved the tool about"


def test_a_target_below_the_table_is_followed_along_the_table():
    arm = rig_arm()
    envelope = envelope_of(arm)
    start, end = joints_at(arm, (0.45, -0.15, 0.05)), joints_at(arm, (0.6, 0.15, 0.05))
    envelope.anchor(start)
    path = [
        *go(envelope, joints_at(arm, (0.45, -0.15, -0.03)), 200),
        *go(envelope, joints_at(arm, (0.6, 0.15, -0.03)), 500),
    ]
    points = tools(arm, path)
    assert points[:, 2].min() >= 0.0
    assert points[-1] == pytest.approx(tools(arm, end[None])[0] * (1, 1, 0), abs=0.01)


def test_a_long_way_is_gone_at_the_speed_limit_and_to_its_end():
    arm = rig_arm(tool_speed=0.25)
    envelope = envelope_of(arm)
    envelope.anchor(joints_at(arm, (0.4, -0.3, 0.3)))
    goal = joints_at(arm, (0.6, 0.3, 0.3))
    points = tools(arm, path := go(envelope, goal, 500))
    speeds = np.linalg.norm(np.diff(points, axis=0), axis=1) / PERIOD
    assert speeds.max() <= 0.25 and np.median(speeds[50:200]) > 0.8 * 0.25
    assert path[-1] == pytest.approx(goal, abs=1e-3)


def test_a_thin_wall_is_not_jumped_over():
    arm = rig_arm(keep_out={"wall": Box(lower=(0.4, -0.002, 0.0), upper=(0.9, 0.002, 0.9))}, tool_speed=1.5)
    envelope = envelope_of(arm)
    envelope.anchor(joints_at(arm, (0.5, -0.3, 0.3)))
    points = tools(arm, go(envelope, joints_at(arm, (0.5, 0.3, 0.3)), 300))
    assert -0.15 < points[-1, 1] < -0.06 and points[:, 1].max() <= -0.002
    assert "franka would enter wall" in envelope.held_back


def test_who_is_outside_may_come_in_but_not_go_farther_out():
    arm = rig_arm()
    envelope = envelope_of(arm)
    outside = joints_at(arm, (0.5, 0.0, -0.02))
    assert "20 mm outside its workspace, at (0.500, 0.000, -0.020) m" in Workspace(rig_of(arm)).outside(
        outside
    )
    envelope.anchor(outside)
    assert tools(arm, go(envelope, joints_at(arm, (0.5, 0.0, -0.1)), 200))[:, 2].min() >= -0.02 - 1e-6
    points = tools(arm, go(envelope, joints_at(arm, (0.5, 0.0, 0.1)), 300))
    assert points[-1, 2] == pytest.approx(0.1, abs=1e-3)
    assert Workspace(rig_of(arm)).outside(envelope.setpoint.position) == ""


def test_a_box_with_its_corners_exchanged_is_refused():
    with pytest.raises(
        ValueError, match=r"lower \(0.1, 0.0, 0.0\) must be less than upper \(0.0, 1.0, 1.0\)"
    ):
        WorkspaceConfig(tool_speed=1.0, inside={"lower": (0.1, 0.0, 0.0), "upper": (0.0, 1.0, 1.0)})


def test_one_position_at_a_time_is_the_same_position():
    rng, offset = np.random.default_rng(0), (0.01, -0.02, 0.15)
    joints = rng.uniform(-3, 3, (50, 7))
    found = [FRANKA.position(q, offset) for q in joints.tolist()]
    np.testing.assert_allclose(found, FRANKA.positions(joints, offset), atol=1e-12)
