"""A tracked person drives a Franka: poses of shoulder, elbow and wrist as they arrive."""

from __future__ import annotations

import numpy as np
import pytest

from support.rigs import real_rig
from vigil.errors import VigilError
from vigil.kinematics import FRANKA
from vigil.teleop.device import BadInput, DeviceOptions, Mode, Poses, Reading, Surroundings
from vigil.teleop.devices.body import rotation_of
from vigil.teleop.devices.factory import make_device
from vigil.teleop.retarget import elbow_angle, keypoints

PERIOD = 0.02
TOPIC = "tracker/right_arm"
POSE = np.array([0.3, -0.2, 0.1, -1.8, 0.3, 1.9, 0.6])
UNIT = (0.0, 0.0, 0.0, 1.0)


def teleop(**changes) -> dict:
    return {
        "device": "body",
        "rate": 50,
        "topic": TOPIC,
        "buttons": {"deadman": {"topic": "pedal"}},
        **changes,
    }


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(x, y, z, w) of a rotation of less than half a turn."""
    w = 0.5 * np.sqrt(1.0 + np.trace(rotation))
    skew = rotation - rotation.T
    return np.array([skew[2, 1], skew[0, 2], skew[1, 0], 4 * w * w]) / (4 * w)


class Person:
    """Holds the arm like the robot's with angles ``q``, and steps on the pedal."""

    def __init__(self, folder, **settings) -> None:
        self.rig = real_rig(folder, teleop(**settings))
        self.device = make_device(self.rig, DeviceOptions(period=PERIOD))
        self.now, self.measured = 5.0, np.append(POSE, 0.05)
        self.seen = np.eye(3)  # turns the base's axes into the tracker's
        self.tips: list[tuple[float, float, float]] = []

    def poses(self, q: np.ndarray, turn: np.ndarray) -> Poses:
        points = np.array([*keypoints(q), *self.tips]) @ self.seen.T
        return Poses(points, np.array([UNIT, UNIT, quaternion(turn), *[UNIT] * len(self.tips)]))

    def hold(self, q: np.ndarray, turn: np.ndarray | None = None) -> None:
        turn = self.seen @ FRANKA.forward(q)[1] if turn is None else turn
        self.device.feed(TOPIC, self.poses(q, turn), self.now)

    def poll(self, deadman: bool | None = True, after: float = PERIOD) -> Reading:
        self.now += after
        return self.device.poll(self.now, Surroundings(measured=self.measured, deadman=deadman))

    def follow(self, q: np.ndarray, deadman: bool | None = True) -> Reading:
        self.hold(q)
        return self.poll(deadman)


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path)


def test_the_robots_arm_is_held_as_the_persons(person):
    assert person.follow(POSE, deadman=False) == Reading(False, None, Mode.ABSOLUTE)
    reading = person.follow(POSE)
    assert (reading.deadman, reading.mode) == (True, Mode.ABSOLUTE)
    np.testing.assert_allclose(
        reading.positions, [*POSE, 0.05], atol=1e-9
    )  # nobody pinches: the gripper stays
    moved = POSE + 0.01
    np.testing.assert_allclose(person.follow(moved).positions[:7], moved, atol=1e-9)
    assert not person.follow(moved, deadman=False).deadman


def test_a_tracker_with_axes_of_its_own_and_a_wrist_frame_of_its_own(tmp_path):
    frame, hand = np.array([0.5, 0.5, 0.5, 0.5]), np.array([np.sin(0.4), 0.0, 0.0, np.cos(0.4)])
    person = Person(tmp_path, frame=frame.tolist(), hand=hand.tolist())
    person.seen = rotation_of(frame).T
    wrist = person.seen @ FRANKA.forward(POSE)[1] @ rotation_of(hand).T

    def follow(deadman):
        person.hold(POSE, wrist)
        return person.poll(deadman)

    follow(False)
    np.testing.assert_allclose(follow(True).positions[:7], POSE, atol=1e-6)


def test_a_jump_of_the_tracker_is_no_jump_of_the_command(person):
    person.follow(POSE, deadman=False)
    before = person.follow(POSE).positions
    limits = np.array([joint.velocity for joint in person.rig.arm.joints.values()])
    far = POSE + np.array([0.8, 0.3, -0.5, 0.3, 0.4, -0.3, 0.5])
    for _ in range(100):
        after = person.follow(far).positions
        assert (np.abs(after - before)[:7] <= limits * PERIOD + 1e-12).all()
        before = after
    np.testing.assert_allclose(elbow_angle(*keypoints(before[:7])), elbow_angle(*keypoints(far)), atol=1e-6)
    turned = FRANKA.forward(before[:7])[1].T @ FRANKA.forward(far)[1]
    np.testing.assert_allclose(turned, np.eye(3), atol=1e-6)


def test_silence_lets_go_until_the_pedal_was_released(person):
    person.follow(POSE, deadman=False)
    assert person.follow(POSE).deadman
    assert not person.poll(after=0.11).deadman
    assert TOPIC in person.device.trouble
    assert not person.follow(POSE).deadman
    person.follow(POSE, deadman=False)
    assert person.follow(POSE).deadman
    assert not person.follow(POSE, deadman=None).deadman  # the pedal is silent


def test_thumb_and_finger_are_the_gripper(tmp_path):
    person = Person(tmp_path, pinch={"closed": 0.02, "open": 0.10})
    for apart, width in ((0.10, 0.08), (0.06, 0.04), (0.01, 0.0)):
        person.tips = [(0.0, 0.0, 0.0), (0.0, apart, 0.0)]
        person.follow(POSE, deadman=False)
        assert person.follow(POSE).positions[7] == pytest.approx(width)
    person.tips = []
    with pytest.raises(
        BadInput, match="has 3 poses, needed are 5: shoulder, elbow, wrist, thumb tip, finger tip"
    ):
        person.hold(POSE)


@pytest.mark.parametrize(
    "break_it, told",
    [
        (lambda p: p.positions.__setitem__((2, 0), np.nan), "not finite"),
        (lambda p: p.quaternions.__setitem__(2, 0.0), "quaternion has length 0"),
        (lambda p: p.positions.__setitem__(1, p.positions[0]), "upper arm is 0 m long"),
    ],
)
def test_what_is_not_tracked_is_refused(person, break_it, told):
    poses = person.poses(POSE, np.eye(3))
    break_it(poses)
    with pytest.raises(BadInput, match=told):
        person.device.feed(TOPIC, poses, person.now)


@pytest.mark.parametrize(
    "changes, arms, told",
    [
        ({"buttons": {}}, ("franka",), "needs a deadman"),
        ({"hand": [0, 0, 0, 2]}, ("franka",), "hand has length 2"),
        ({"pinch": {"closed": 0.1, "open": 0.05}}, ("franka",), r"teleop.pinch: closed \(0.1\)"),
        ({}, ("left", "right"), "drives one franka arm"),
    ],
)
def test_what_a_rig_file_may_not_say(tmp_path, changes, arms, told):
    with pytest.raises(VigilError, match=told):
        real_rig(tmp_path, teleop(**changes), arms)
