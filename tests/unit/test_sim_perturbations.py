"""Every perturbation changes the world, at its time, and repeats with its seed."""

from __future__ import annotations

import numpy as np
import pytest

from support.cell import Operator
from vigil.errors import VigilError
from vigil.sim import scene
from vigil.sim.appearance import SIZES, decode, encode
from vigil.sim.perturbations import BENIGN, FAILING, REGISTRY, make_perturbation
from vigil.sim.physics import Simulation


@pytest.fixture(scope="module")
def simulation():
    return Simulation()


BEGUN = {name: 2.2 if name in ("object_moved", "object_swapped", "slippery") else 1.3 for name in REGISTRY}
"""[s] until it has begun for certain: at the approach, or at its time."""


def episode(simulation: Simulation, name: str, seed: int = 21, seconds: float | None = None):
    simulation.reset(seed, name)
    Operator(simulation).drive(seconds or BEGUN[name])
    return simulation.world


def test_kinds_are_known():
    assert set(BENIGN) == {"lighting", "table_color", "distractor", "camera_shift"}
    assert set(FAILING) == {
        "object_moved",
        "object_swapped",
        "slippery",
        "camera_knocked",
        "gripper_weak",
        "actuator_lag",
        "unreachable",
    }
    assert set(REGISTRY) == {"none", *BENIGN, *FAILING}
    with pytest.raises(VigilError, match="camera_knocked"):
        make_perturbation("nonsense")


def test_the_nominal_episode_changes_nothing(simulation):
    world = episode(simulation, "none")
    assert not simulation.perturbation.active
    assert world.appearance == {} and world.faults.delay == 0 and world.faults.gripper_scale == 1


@pytest.mark.parametrize("name", [*BENIGN, *FAILING])
def test_repeats_with_its_seed(simulation, name):
    states = []
    for seed in (21, 21, 22):
        world = episode(simulation, name, seed)
        assert simulation.perturbation.active
        states.append((encode(world.appearance), repr(world.faults), simulation.qpos.tobytes()))
    assert states[0] == states[1]
    assert states[0] != states[2]


@pytest.mark.parametrize("name", [*BENIGN, "camera_knocked", "object_swapped"])
def test_what_is_visible_is_in_the_appearance(simulation, name):
    simulation.reset(23, name)
    assert simulation.appearance == {}, "it begins during the episode"
    Operator(simulation).drive(BEGUN[name])
    assert simulation.appearance
    strings = encode(simulation.appearance)
    assert encode(decode(strings)) == strings


def test_benign_ones_leave_physics_alone(simulation):
    episode(simulation, "none", seconds=2.0)
    expected = simulation.qpos
    for name in BENIGN:
        episode(simulation, name, seconds=2.0)
        np.testing.assert_array_equal(simulation.qpos, expected)


def test_object_moved_leaves_the_region_but_stays_in_reach(simulation):
    for seed in range(3):
        world = episode(simulation, "object_moved", seed, seconds=1.6)
        assert simulation.perturbation.active
        x, y, _ = world.cube_position
        (x0, x1), (y0, y1) = scene.CUBE_REGION
        assert not (x0 <= x <= x1 and y0 <= y <= y1)
        assert np.hypot(x, y) < 0.75 and y < scene.TABLE_Y[1]


def test_object_swapped_is_too_wide_for_the_gripper(simulation):
    world = episode(simulation, "object_swapped")
    assert 2 * world.cube_half[0] > scene.MAX_WIDTH
    assert simulation.appearance["object_half"] == pytest.approx(tuple(world.cube_half))
    simulation.reset(0)
    np.testing.assert_allclose(simulation.world.cube_half, scene.CUBE_HALF)


@pytest.mark.parametrize("name", ["slippery", "gripper_weak", "object_swapped", "unreachable"])
def test_what_nobody_can_do_fails_for_the_operator_too(name):
    simulation = Simulation(time_limit=3.2)
    simulation.reset(24, name)
    Operator(simulation).drive(3.5)
    assert simulation.status.failure and not simulation.status.grasped


def test_actuator_lag_delays_the_arm(simulation):
    simulation.reset(25, "actuator_lag")
    operator = Operator(simulation)
    operator.drive(1.6)
    target = operator.commands[-1][:7]
    assert np.abs(simulation.positions[:7] - target).max() > 0.05


def test_unreachable_from_the_start(simulation):
    simulation.reset(26, "unreachable")
    assert simulation.perturbation.active
    assert np.linalg.norm(simulation.world.cube_position[:2]) > 0.85


@pytest.mark.parametrize(
    "text", ["nonsense=1", "light", "light=", "light=a", "light=nan", "table_rgb=1,2", ""]
)
def test_malformed_appearances_are_refused(text):
    with pytest.raises(VigilError, match="appearance"):
        decode([text])


def test_every_appearance_has_a_size():
    assert {f"camera_{name}" for name in scene.CAMERAS} <= set(SIZES)
