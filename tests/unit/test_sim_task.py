"""The task's ground truth, and the physics under it."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from support.cell import Operator, stay
from vigil.errors import VigilError
from vigil.sim import scene
from vigil.sim.physics import CONTROL_PERIOD, Simulation


@pytest.fixture(scope="module")
def simulation():
    return Simulation()


def test_cubes_lie_in_their_region_and_repeat_with_the_seed(simulation):
    (x0, x1), (y0, y1) = scene.CUBE_REGION
    poses = []
    for seed in range(30):
        simulation.reset(seed)
        x, y, z = simulation.world.cube_position
        assert x0 <= x <= x1 and y0 <= y <= y1 and z == pytest.approx(scene.CUBE_HALF)
        assert abs(simulation.world.cube_yaw) <= scene.CUBE_YAW
        poses.append(simulation.qpos)
    simulation.reset(7)
    np.testing.assert_array_equal(simulation.qpos, poses[7])
    assert np.ptp([p[15] for p in poses]) > 0.15 and np.ptp([p[16] for p in poses]) > 0.18


def test_a_new_scene_counts_and_starts_at_home(simulation):
    before = simulation.scene_number
    simulation.reset(1)
    assert simulation.scene_number == before + 1
    np.testing.assert_allclose(simulation.positions, [*scene.HOME, scene.MAX_WIDTH], atol=1e-3)
    assert simulation.time == 0.0 and simulation.status.phase == "approach"


def test_bad_scenes_are_refused_and_the_running_one_goes_on(simulation):
    simulation.reset(3)
    number, qpos = simulation.scene_number, simulation.qpos
    with pytest.raises(VigilError, match=r"unknown perturbation.*object_moved"):
        simulation.reset(4, "earthquake")
    for disturbance in (-0.01, 0.2, float("nan")):
        with pytest.raises(VigilError, match="disturbance"):
            simulation.reset(4, "none", disturbance)
    assert simulation.scene_number == number
    np.testing.assert_array_equal(simulation.qpos, qpos)


def test_the_same_commands_give_the_same_states_bit_by_bit(simulation):
    states = []
    for _ in range(2):
        simulation.reset(11, "none", 0.01)
        Operator(simulation).drive(1.0)
        states.append(np.append(simulation.qpos, simulation.qvel))
    np.testing.assert_array_equal(states[0], states[1])


def test_tracking_lag_is_small_at_working_speed(simulation):
    simulation.reset(0)
    amplitude, omega, worst = np.array([0.4, 0.2, 0.3, 0.3, 0.4, 0.3, 0.5]), 2 * np.pi * 0.4, 0.0
    for k in range(1, 200):
        t = k * CONTROL_PERIOD
        target = scene.HOME + amplitude * (1 - np.cos(omega * t))
        simulation.step(target, amplitude * omega * np.sin(omega * t), 0.085)
        worst = max(worst, np.abs(simulation.positions[:7] - target).max())
        assert np.abs(simulation.velocities[:7]).max() < 1.5
    assert worst < 0.01


def test_commands_beyond_limits_and_speeds_are_bounded_by_the_hardware(simulation):
    simulation.reset(0)
    for _ in range(100):
        before = simulation.positions
        simulation.step(scene.HOME + 10.0, np.zeros(7), -1.0)
        moved = np.abs(simulation.positions - before)[:7]
        assert np.all(moved < 1.5 * scene.JOINT_VELOCITY * CONTROL_PERIOD)
    assert np.all(simulation.positions[:7] < scene.JOINT_UPPER + 0.02)


def test_the_gripper_follows_its_width_at_its_own_speed(simulation):
    simulation.reset(0)
    stay(simulation, 0.2, width=0.03)
    assert 0.045 < simulation.gripper_width < 0.07
    stay(simulation, 0.6, width=0.03)
    assert simulation.gripper_width == pytest.approx(0.03, abs=0.004)
    stay(simulation, 0.8)
    assert simulation.gripper_width == pytest.approx(scene.MAX_WIDTH, abs=0.003)


def test_success_needs_the_cube_on_the_tray_at_rest_and_the_gripper_clear(simulation):
    simulation.reset(0)
    x, y = scene.TRAY_CENTRE
    simulation.world.place_cube(x + 0.02, y, 0.2, z=scene.TRAY_FLOOR + scene.CUBE_HALF)
    stay(simulation, 0.1)
    assert not simulation.status.success
    stay(simulation, 0.3)
    assert simulation.status.success and simulation.status.phase == "done"
    simulation.world.place_cube(0.5, 0.0, 0.0)
    stay(simulation, 0.1)
    assert simulation.status.success, "success is latched"


def test_a_closed_gripper_or_a_cube_beside_the_tray_is_no_success(simulation):
    simulation.reset(0)
    x, y = scene.TRAY_CENTRE
    stay(simulation, 0.4, width=0.0)
    simulation.world.place_cube(x, y, 0.0, z=scene.TRAY_FLOOR + scene.CUBE_HALF)
    stay(simulation, 0.5, width=0.0)
    assert not simulation.status.success
    simulation.reset(0)
    simulation.world.place_cube(x, y + scene.TRAY_HALF + 0.05, 0.0)
    stay(simulation, 0.8)
    assert not simulation.status.success


def test_a_cube_off_the_table_is_a_failure(simulation):
    simulation.reset(0)
    simulation.world.place_cube(scene.TABLE_X[1] + 0.05, 0.0, 0.0)
    stay(simulation, 0.5)
    assert simulation.status.failure and simulation.status.failure_reason == "off_table"


def test_time_runs_out():
    simulation = Simulation(time_limit=0.5)
    stay(simulation, 0.6)
    status = simulation.status
    assert status.failure and status.failure_reason == "timeout" and not status.success


def test_phases_and_contacts_follow_the_episode(simulation):
    simulation.reset(5)
    operator, seen = Operator(simulation), []
    while not (simulation.status.success or simulation.status.failure):
        operator.drive(0.05)
        status = simulation.status
        if not seen or seen[-1] != status.phase:
            seen.append(status.phase)
        if status.phase == "carry":
            assert status.contact and status.grasped
    assert seen == ["approach", "grasp", "carry", "place", "done"]


def test_messages_take_the_status_as_it_is(simulation):
    simulation.reset(5)
    operator = Operator(simulation)
    operator.drive(3.0)
    status = simulation.status
    assert all(type(getattr(status, name)) is bool for name in ("contact", "grasped", "success", "failure"))
    assert type(status.elapsed) is float


def test_where_everything_will_be_is_told_a_period_ahead(simulation):
    """To less than a pixel: that of the wrist camera is 0.4 mm wide at the fingertips, the nearest that it sees."""
    simulation.reset(3)
    data, errors = mujoco.MjData(simulation.model), []
    for phase in np.arange(0.0, 2 * np.pi, np.pi * CONTROL_PERIOD):  # 0.3 rad and 0.94 rad/s at most
        target = scene.HOME + 0.3 * (1 - np.cos(phase)) / 2
        data.qpos[:] = simulation.qpos_in(CONTROL_PERIOD)
        np.testing.assert_array_equal(simulation.qpos_in(0.0), simulation.qpos)
        simulation.step(target, np.full(7, 0.15 * np.pi * np.sin(phase)), scene.MAX_WIDTH)
        mujoco.mj_kinematics(simulation.model, data)
        errors.append(np.abs(data.xpos - simulation.data.xpos).max())
    assert len(errors) == 200 and max(errors) < 4e-4, max(errors)
