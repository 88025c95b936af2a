"""The arm's kinematics against MuJoCo's."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vigil import kinematics
from vigil.kinematics import FRANKA
from vigil.sim import scene


@pytest.fixture(scope="module")
def model():
    return scene.build_model()


def random_angles(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(scene.JOINT_LOWER, scene.JOINT_UPPER, (count, 7))


def test_forward_kinematics_is_that_of_the_simulated_arm(model):
    data = mujoco.MjData(model)
    q = random_angles(50)
    positions, rotations = FRANKA.forward(q, scene.TOOL_OFFSET)
    for i in range(len(q)):
        data.qpos[:7] = q[i]
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(positions[i], data.site("pinch").xpos, atol=1e-6)
        link7 = data.body("link7").xmat.reshape(3, 3)
        np.testing.assert_allclose(rotations[i], link7, atol=1e-5)


def test_jacobian_is_that_of_the_simulated_arm(model):
    data = mujoco.MjData(model)
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    for q in random_angles(20, seed=1):
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, linear, angular, model.site("pinch").id)
        expected = np.concatenate([linear[:, :7], angular[:, :7]])
        np.testing.assert_allclose(FRANKA.jacobian(q, scene.TOOL_OFFSET), expected, atol=1e-5)


def test_leading_dimensions_are_kept():
    q = random_angles(6).reshape(2, 3, 7)
    assert FRANKA.positions(q).shape == (2, 3, 3)
    assert FRANKA.jacobian(q).shape == (2, 3, 6, 7)
    np.testing.assert_allclose(FRANKA.positions(q)[1, 2], FRANKA.positions(q[1, 2]))
    with pytest.raises(ValueError, match=r"\[\.\.\., 7\]"):
        FRANKA.positions(np.zeros(6))


def test_rotation_vector_and_matrix_are_inverse():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vector = rng.normal(size=3)
        vector *= rng.uniform(0, np.pi - 1e-3) / np.linalg.norm(vector)
        rotation = kinematics.rotation_from_vector(vector)
        np.testing.assert_allclose(kinematics.rotation_vector(rotation), vector, atol=1e-9)
    half_turn = kinematics.rotation_from_vector(np.array([0, np.pi, 0]))
    np.testing.assert_allclose(np.abs(kinematics.rotation_vector(half_turn)), [0, np.pi, 0], atol=1e-6)
    np.testing.assert_array_equal(kinematics.rotation_vector(np.eye(3)), np.zeros(3))


def solve(goal: np.ndarray, start: np.ndarray, **options) -> kinematics.InverseResult:
    position, rotation = FRANKA.forward(goal, scene.TOOL_OFFSET)
    limits = {"lower": scene.JOINT_LOWER, "upper": scene.JOINT_UPPER, "tool_offset": scene.TOOL_OFFSET}
    return FRANKA.inverse(position, rotation, start, **limits, **options)


def test_inverse_kinematics_finds_near_poses_within_limits():
    rng = np.random.default_rng(2)
    for _ in range(20):
        goal = scene.HOME + rng.uniform(-0.3, 0.3, 7)
        result = solve(goal, scene.HOME, iterations=60)
        assert result.reached(), result
        assert np.all((result.q >= scene.JOINT_LOWER) & (result.q <= scene.JOINT_UPPER))


def test_inverse_kinematics_says_when_a_pose_is_out_of_reach():
    _, rotation = FRANKA.forward(scene.HOME)
    result = FRANKA.inverse(
        np.array([1.5, 0.0, 0.3]), rotation, scene.HOME, lower=scene.JOINT_LOWER, upper=scene.JOINT_UPPER
    )
    assert not result.reached()
    assert np.isfinite(result.q).all()
    assert result.position_error > 0.3


def test_the_null_space_pulls_towards_the_posture_without_moving_the_tool():
    start = scene.HOME + np.array([0, 0, 0.4, 0, 0, 0, 0])
    weight = np.array([0, 0, 0.2, 0, 0, 0, 0])
    result = solve(start, start, posture=scene.HOME, posture_weight=weight, iterations=80)
    assert abs(result.q[2]) < 0.1
    assert result.position_error < 2e-3
