"""Keypoints of an arm to the Franka's joints: on poses that the robot can take, at its limits, and along paths."""

from __future__ import annotations

import numpy as np
import pytest

from vigil.errors import VigilError
from vigil.kinematics import FRANKA, rotation_from_vector
from vigil.rig import load_rig
from vigil.teleop.retarget import FORE_TILT, UPPER_TILT, elbow_angle, keypoints, retarget

ARM = load_rig("franka").arm
LOWER = np.array([joint.lower for joint in ARM.joints.values()])
UPPER = np.array([joint.upper for joint in ARM.joints.values()])
HOME = np.array([ARM.home[name] for name in ARM.joints])
IN_LINE = -(UPPER_TILT + FORE_TILT)  # q4 where shoulder, elbow and wrist are on a line


def random_poses(count: int, seed: int, *, margin: float = 0.0) -> np.ndarray:
    """Angles [count, 7] all over the joints' ranges, the elbow bent as people's are."""
    rng = np.random.default_rng(seed)
    q = rng.uniform(LOWER + margin, UPPER - margin, (count, 7))
    q[:, 3] = rng.uniform(LOWER[3] + margin, IN_LINE - 0.1, count)
    return q


def solve(q: np.ndarray, near=HOME, **how):
    near = np.broadcast_to(near, q.shape)
    return retarget(*keypoints(q), FRANKA.forward(q)[1], near, LOWER, UPPER, **how)


def degrees_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[...] between rotations [..., 3, 3]; exact for small angles too."""
    return np.degrees(
        2.0 * np.arcsin(np.clip(np.linalg.norm(one - other, axis=(-2, -1)) / np.sqrt(8.0), 0, 1))
    )


def test_keypoints_are_those_of_the_chain():
    q = random_poses(200, 1)
    origins, _ = FRANKA._joint_frames(q)
    for own, chain in zip(keypoints(q), (origins[0], origins[3], origins[4]), strict=True):
        np.testing.assert_allclose(own, chain, atol=1e-12)


def test_reachable_poses_keep_elbow_angle_hand_and_wrist():
    q = random_poses(20_000, 2)
    found = solve(q)
    assert (found.clipped < 1e-9).all()
    assert (found.q >= LOWER - 1e-12).all() and (found.q <= UPPER + 1e-12).all()
    assert degrees_between(FRANKA.forward(found.q)[1], FRANKA.forward(q)[1]).max() < 0.5
    ours, theirs = keypoints(found.q), keypoints(q)
    np.testing.assert_allclose(elbow_angle(*ours), elbow_angle(*theirs), atol=1e-9)
    np.testing.assert_allclose(
        ours[2], theirs[2], atol=2e-4
    )  # the robot's own keypoints have its own lengths


def test_near_a_pose_that_pose_is_the_answer():
    q = random_poses(2000, 3)
    rng = np.random.default_rng(3)
    found = solve(q, near=np.clip(q + rng.normal(0.0, 0.02, q.shape), LOWER, UPPER))
    away = np.abs(found.q - q).max(axis=1)
    parallel = np.minimum(np.abs(np.sin(q[:, 1])), np.abs(np.sin(q[:, 5]))) < 0.02  # there are many answers
    assert np.median(away) < 1e-9
    assert away[~parallel].max() < 1e-6


def test_a_person_of_any_size_gives_the_same_angles():
    q = random_poses(100, 4)
    shoulder, elbow, wrist = keypoints(q)
    upper_arm, forearm = elbow - shoulder, wrist - elbow
    person = np.array([0.3, -1.0, 1.4])
    tracked = person, person + 0.9 * upper_arm, person + 0.9 * upper_arm + 0.6 * forearm
    near = np.broadcast_to(HOME, q.shape)
    found = retarget(*tracked, FRANKA.forward(q)[1], near, LOWER, UPPER)
    np.testing.assert_allclose(found.q, solve(q).q, atol=1e-9)


def test_one_pose_is_as_many():
    q = random_poses(50, 5).reshape(5, 10, 7)
    many = solve(q)
    assert many.q.shape == (5, 10, 7) and many.clipped.shape == (5, 10)
    for i, j in ((0, 0), (4, 9)):
        np.testing.assert_allclose(solve(q[i, j]).q, many.q[i, j], atol=1e-12)


def arm_at(bend: float) -> tuple[np.ndarray, ...]:
    """Keypoints of an arm that points forward and up, its elbow bent downwards by ``bend`` [rad]."""
    forward, side = np.array([0.8, 0.0, 0.6]), np.array([0.6, 0.0, -0.8])
    shoulder = np.array([0.0, 0.0, 1.4])
    elbow = shoulder + 0.3 * forward
    return shoulder, elbow, elbow + 0.25 * (np.cos(bend) * forward + np.sin(bend) * side)


def follow(path, rotation, near) -> np.ndarray:
    """Angles [n, 7] along a path of keypoints, each solution near the one before it."""
    found = []
    for points in path:
        near = retarget(*points, rotation, near, LOWER, UPPER, stay=True).q
        found.append(near)
    return np.array(found)


def test_an_arm_that_is_stretched_and_bent_again_moves_smoothly():
    q = HOME.copy()
    rotation = FRANKA.forward(q)[1]
    near = retarget(*arm_at(1.0), rotation, q, LOWER, UPPER).q
    bends = np.concatenate([np.linspace(1.0, 0.0, 200), np.linspace(0.0, 1.0, 200)])
    angles = follow([arm_at(bend) for bend in bends], rotation, near)
    assert np.abs(np.diff(angles, axis=0)).max() < 0.03  # 0.005 rad of bend per step
    np.testing.assert_allclose(angles[-1], angles[0], atol=1e-6)
    np.testing.assert_allclose(-angles[:, 3], bends + UPPER_TILT + FORE_TILT, atol=1e-9)


def test_an_overstretched_elbow_does_not_turn_the_arm_about_itself():
    """The plane's normal jumps by half a turn there; the robot's elbow just goes on."""
    rotation = FRANKA.forward(HOME)[1]
    near = retarget(*arm_at(0.3), rotation, HOME, LOWER, UPPER).q
    angles = follow([arm_at(bend) for bend in np.linspace(0.3, -0.2, 101)], rotation, near)
    assert np.abs(np.diff(angles, axis=0)).max() < 0.03


def test_a_tremor_of_a_straight_arm_is_not_made_larger():
    """Half a millimetre at the wrist is any plane at all for an arm that is straight."""
    rng = np.random.default_rng(6)
    rotation = FRANKA.forward(HOME)[1]
    near = retarget(*arm_at(0.0), rotation, HOME, LOWER, UPPER).q
    shoulder, elbow, wrist = arm_at(0.0)
    path = [(shoulder, elbow, wrist + rng.normal(0.0, 0.0005, 3)) for _ in range(200)]
    assert np.abs(np.diff(follow(path, rotation, near), axis=0)).max() < 0.1


def test_limits_are_kept_and_the_hand_is_given_up_last():
    q = random_poses(3000, 7)
    shoulder, elbow, wrist = keypoints(q)
    tight_lower, tight_upper = LOWER.copy(), UPPER.copy()
    tight_lower[:2], tight_upper[:2] = [-0.3, -0.3], [0.3, 0.3]  # the shoulder hardly moves
    wanted = FRANKA.forward(q)[1]
    found = retarget(shoulder, elbow, wrist, wanted, np.broadcast_to(HOME, q.shape), tight_lower, tight_upper)
    assert (found.q >= tight_lower - 1e-12).all() and (found.q <= tight_upper + 1e-12).all()
    kept_back = found.clipped > 0.01
    assert kept_back.mean() > 0.5
    right = degrees_between(FRANKA.forward(found.q)[1], wanted) < 0.5
    assert right[~kept_back].all()
    assert right[kept_back].mean() > 0.5


def test_at_a_limit_the_arm_stays_rather_than_swing_over():
    q = HOME.copy()
    q[6] = UPPER[6] - 0.05
    rotation = FRANKA.forward(q)[1]
    turned = rotation @ rotation_from_vector(
        np.array([0.0, 0.0, 0.15])
    )  # 0.1 rad beyond the limit of joint 7
    staying = retarget(*keypoints(q), turned, q, LOWER, UPPER, stay=True)
    assert np.abs(staying.q - q).max() < 0.06
    assert staying.clipped == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda p: (p[0], p[0], p[2]), "upper arm is 0 m long"),
        (lambda p: (p[0], p[1], p[1] + 0.01), "forearm is 0.0173 m long"),
        (lambda p: (p[0], p[1] * np.nan, p[2]), "upper arm is nan m long"),
    ],
)
def test_keypoints_that_are_no_arm_are_refused(change, told):
    with pytest.raises(VigilError, match=told):
        retarget(*change(keypoints(HOME)), np.eye(3), HOME, LOWER, UPPER)
    with pytest.raises(VigilError, match="orientation is not finite"):
        retarget(*keypoints(HOME), np.eye(3) * np.nan, HOME, LOWER, UPPER)


def test_a_smooth_path_is_followed_without_leaving_its_solution():
    """A minute of motion at 50 Hz all around home: every solution is the pose that the keypoints were taken from."""
    t = np.arange(0.0, 60.0, 0.02)[:, None]
    frequencies, phases = np.array([0.11, 0.07, 0.13, 0.17, 0.19, 0.23, 0.29]), np.arange(7.0)
    path = HOME + 0.5 * (np.sin(2 * np.pi * frequencies * t + phases) - np.sin(phases))
    path = np.clip(path, LOWER + 0.01, UPPER - 0.01)
    near, worst = HOME, 0.0
    for q in path:
        near = retarget(*keypoints(q), FRANKA.forward(q)[1], near, LOWER, UPPER, stay=True).q
        worst = max(worst, np.abs(near - q).max())
    assert worst < 1e-6
