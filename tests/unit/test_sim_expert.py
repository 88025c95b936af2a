"""The scripted operator finishes from anywhere, without a jump."""

from __future__ import annotations

import numpy as np
import pytest

from support.cell import STEP_DT, Operator, stay
from vigil.sim import scene
from vigil.sim.physics import Simulation


@pytest.fixture(scope="module")
def simulation():
    return Simulation(time_limit=20.0)


@pytest.mark.parametrize(("seed", "disturbance"), [(100, 0.0), (101, 0.01), (102, 0.01)])
def test_picks_and_places(simulation, seed, disturbance):
    simulation.reset(seed, "none", disturbance)
    operator = Operator(simulation)
    operator.drive(20.0)
    assert simulation.status.success
    assert simulation.time < 8.0
    joints = np.array(operator.commands)[:, :7]
    speed = np.diff(joints, axis=0) / STEP_DT
    assert np.abs(speed).max() <= 1.5 + 1e-9
    assert np.abs(np.diff(speed, axis=0) / STEP_DT).max() < 6.0
    yaw = joints[:, 6] - scene.HOME[6] - joints[:, 0]
    assert np.abs(yaw).max() < np.deg2rad(50)


def test_takes_over_at_the_measured_pose_in_the_middle_of_an_episode(simulation):
    simulation.reset(104)
    operator = Operator(simulation)
    operator.drive(3.0)
    assert simulation.status.grasped
    operator.take_over()
    operator.drive(STEP_DT)
    np.testing.assert_allclose(operator.commands[0], simulation.positions, atol=0.01)
    operator.drive(20.0)
    assert simulation.status.success


def test_starts_from_an_odd_pose_with_a_closed_gripper(simulation):
    simulation.reset(105)
    odd = scene.HOME + np.array([0.3, -0.2, 0.3, 0.2, -0.3, 0.2, 0.4])
    for u in np.linspace(0, 1, 100):
        simulation.step(scene.HOME + u * (odd - scene.HOME), (odd - scene.HOME), 0.0)
    operator = Operator(simulation)
    operator.drive(20.0)
    assert simulation.status.success


@pytest.mark.parametrize("perturbation", ["object_moved", "camera_knocked", "actuator_lag"])
def test_finishes_where_a_policy_is_lost(simulation, perturbation):
    simulation.reset(106, perturbation)
    Operator(simulation).drive(20.0)
    assert simulation.perturbation.active and simulation.status.success


def test_grasps_again_when_the_object_is_lost(simulation):
    simulation.reset(107)
    operator = Operator(simulation)
    operator.drive(10.0, until=lambda status: status.phase == "carry")
    simulation.world.place_cube(0.5, 0.1, 0.3)
    operator.drive(20.0)
    assert simulation.status.success


def test_an_object_out_of_reach_is_not_chased(simulation):
    simulation.reset(108, "unreachable")
    operator = Operator(simulation)
    operator.drive(2.5)
    speed = np.diff(np.array(operator.commands)[:, :7], axis=0) / STEP_DT
    assert np.abs(np.diff(speed, axis=0) / STEP_DT).max() < 6.0
    assert np.linalg.norm(simulation.world.pinch[:2]) < 0.80


def test_stays_at_home_when_all_is_done(simulation):
    simulation.reset(109)
    x, y = scene.TRAY_CENTRE
    simulation.world.place_cube(x, y, 0.0, z=scene.TRAY_FLOOR + scene.CUBE_HALF)
    stay(simulation, 0.1)
    operator = Operator(simulation)
    operator.drive(1.0, until=lambda status: False)
    assert operator.expert.done
    np.testing.assert_allclose(simulation.positions[:7], scene.HOME, atol=0.01)
