"""Arms keep away from each other and out of boxes, whatever is asked for."""

import numpy as np
import pytest

from support.hostile import assert_inside, hostile_targets
from vigil.arm.columns import Columns, Refused
from vigil.arm.envelope import Envelope
from vigil.arm.workspace import Workspace
from vigil.kinematics import CHAINS, VIPERX_300S
from vigil.rig import Box, load_rig

AHEAD = 0.1
# Joint by joint as Interbotix describes the arm: where each is in the frame before it, and its axis.
VIPERX_URDF = (
    ((0, 0, 0.079), "z"),
    ((0, 0, 0.04805), "y"),
    ((0.05955, 0, 0.3), "y"),
    ((0.2, 0, 0), "x"),
    ((0.1, 0, 0), "y"),
    ((0.069744, 0, 0), "x"),
)
TOOL = (0.0, 0.0, 0.1072)


def turn(axis, angle):
    s, c = np.sin(angle), np.cos(angle)
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def viperx_points(q):
    """Origins of the joints and then the tool, from the description."""
    origin, rotation, points = np.zeros(3), np.eye(3), []
    for (offset, axis), angle in zip(VIPERX_URDF, q, strict=True):
        origin = origin + rotation @ offset
        rotation = rotation @ turn(axis, angle)
        points.append(origin)
    return [*points, origin + rotation @ (TOOL[2], 0, 0)]


def test_the_viperx_is_where_its_description_puts_it():
    for q in np.random.default_rng(0).uniform(-3, 3, (30, 6)):
        _, shoulder, elbow, _, wrist, last, tool = viperx_points(q)
        expected = [(0, 0, 0), shoulder, elbow, wrist, last, tool]
        np.testing.assert_allclose(VIPERX_300S.skeleton(q.tolist(), TOOL), expected, atol=1e-9)
        np.testing.assert_allclose(VIPERX_300S.forward(q, TOOL)[0], tool, atol=1e-9)


@pytest.mark.parametrize("name", CHAINS)
def test_the_skeleton_ends_at_the_tool(name):
    chain, rng = CHAINS[name], np.random.default_rng(1)
    for q in rng.uniform(-2, 2, (20, chain.joints)):
        np.testing.assert_allclose(chain.skeleton(q.tolist(), TOOL)[-1], chain.positions(q, TOOL), atol=1e-12)
        assert chain.position(q, TOOL) == pytest.approx(chain.skeleton(q.tolist(), TOOL)[-1])


def capsules(rig, arm, position):
    """Points along an arm's links in the shared frame, every 5 mm, and their radii."""
    number = rig.arms.index(arm)
    start = sum(len(other.columns) for other in rig.arms[:number])
    chain = CHAINS[arm.kinematics]
    ends = np.array(chain.skeleton(position[start : start + chain.joints].tolist(), arm.tool_offset))
    radii = [*(link.radius for link in chain.body[1:]), 0.0]
    points, around = [], []
    for a, b, radius in zip(ends[:-1], ends[1:], radii, strict=True):
        share = np.linspace(0, 1, max(int(np.linalg.norm(b - a) / 0.005), 1) + 1)[:, None]
        points.append(a + share * (b - a))
        around.append(np.full(len(share), radius))
    c, s = np.cos(arm.base.yaw), np.sin(arm.base.yaw)
    turned = np.concatenate(points) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
    return turned + arm.base.position, np.concatenate(around)


def distance(rig, position):
    """Between the two arms' capsules [m], by brute force."""
    (a, ra), (b, rb) = (capsules(rig, arm, position) for arm in rig.arms)
    return (np.linalg.norm(a[:, None] - b[None], axis=-1) - ra[:, None] - rb).min()


@pytest.fixture(scope="module")
def aloha():
    """Arms so close that they meet in the middle."""
    rig = load_rig("aloha")
    left, right = rig.arms
    nearer = [
        arm.model_copy(update={"base": arm.base.model_copy(update={"position": (x, 0.0, 0.0)})})
        for arm, x in ((left, -0.33), (right, 0.33))
    ]
    return rig.model_copy(update={"arms": tuple(nearer)})


def envelope_of(rig):
    made = Envelope(Columns.of(rig), 1.0 / rig.control_rate, Workspace(rig))
    made.anchor(np.array(list(rig.home.values())))
    return made


@pytest.mark.parametrize("seed", range(2))
def test_two_arms_never_come_closer_than_their_distance(aloha, seed):
    envelope, columns = envelope_of(aloha), Columns.of(aloha)
    positions, stopped = [envelope.setpoint.position], 0
    for target, velocity in hostile_targets(columns, np.random.default_rng(seed), 3_000):
        try:
            positions.append(envelope.track(target, velocity, AHEAD).position)
        except Refused:
            positions.append(envelope.brake().position)
        stopped += "come closer" in envelope.held_back
    assert_inside(columns, positions, 1.0 / aloha.control_rate)
    nearest = min(distance(aloha, position) for position in positions[::5])
    assert aloha.arm_distance <= nearest < aloha.arm_distance + 0.1, "they were driven towards each other"
    assert stopped > 10


def test_arms_that_are_too_close_may_part_but_not_approach(aloha):
    home = np.array(list(aloha.home.values()))
    reach = home.copy()
    for start in (0, 7):
        reach[start + 1 : start + 3] = (0.1, 0.3)  # shoulder and elbow: towards the middle
    ways = (home + share * (reach - home) for share in np.linspace(0, 1, 200))
    close = next(way for way in ways if distance(aloha, way) < 0.03)
    assert "follower_left and follower_right would come closer than 0.05 m" in Workspace(aloha).outside(close)
    envelope = envelope_of(aloha)
    envelope.anchor(close)
    before = distance(aloha, close)
    for _ in range(50):
        state = envelope.track(reach, np.zeros(14), AHEAD)
    assert distance(aloha, state.position) >= before - 1e-6
    for _ in range(300):
        state = envelope.track(home, np.zeros(14), AHEAD)
    assert state.position == pytest.approx(home, abs=1e-3)


def test_an_elbow_stays_out_of_a_box_that_the_tool_is_far_from():
    rig = load_rig("franka_sim")
    behind = Box(
        lower=(-0.5, -0.5, 0.5), upper=(-0.25, 0.5, 1.0)
    )  # behind the robot, where only its elbow can be
    arm = rig.arm.model_copy(
        update={"workspace": rig.arm.workspace.model_copy(update={"keep_out": {"cabinet": behind}})}
    )
    rig = rig.model_copy(update={"arms": (arm,)})
    back = np.array(list(rig.home.values()))
    back[[1, 3]] = (-1.4, -2.9)  # shoulder back, arm folded
    elbow = np.array(CHAINS["franka"].skeleton(back[:7].tolist(), arm.tool_offset))[2]
    assert elbow[0] < -0.25, "the elbow would be in the box"
    assert "franka would enter cabinet" in Workspace(rig).outside(back)
    envelope = envelope_of(rig)
    for _ in range(500):
        state = envelope.track(back, np.zeros(8), AHEAD)
    elbow = np.array(CHAINS["franka"].skeleton(state.position[:7].tolist(), arm.tool_offset))[2]
    radius = CHAINS["franka"].body[2].radius
    assert -0.25 + radius <= elbow[0] < -0.25 + radius + 0.08
    assert "franka would enter cabinet" in envelope.held_back
