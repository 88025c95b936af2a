"""The tool's way in a camera's picture, against what MuJoCo itself draws there."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vigil.camera.calibration import Calibration, Extrinsics, Intrinsics, load_rig_calibrations
from vigil.errors import VigilError
from vigil.policy.foresight import Pose, View, project, tool_paths
from vigil.rig import load_rig
from vigil.sim import scene
from vigil.sim.physics import Simulation

HORIZON = 5


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


@pytest.fixture(scope="module")
def calibrations(rig):
    return load_rig_calibrations(rig)


@pytest.fixture(scope="module")
def simulation():
    return Simulation()


@pytest.fixture(scope="module")
def renderer(simulation):
    with mujoco.Renderer(simulation.model, 480, 640) as made:
        yield made


def ways(rig, count, seed, spread=0.15):
    """[count, HORIZON, 8] chunks around home, each joint within ``spread`` [rad] of it."""
    home = np.array([rig.home[name] for name in rig.columns])
    reach = np.append(np.full(7, spread), 0.0)
    return home + np.random.default_rng(seed).uniform(-1, 1, (count, HORIZON, 8)) * reach


def drawn(simulation, renderer, camera, joints_now, joints_then):
    """Pixel at which MuJoCo draws a ball at the tool of ``joints_then`` while the arm stands at ``joints_now``; None if
    the arm hides some of it."""
    model, data = simulation.model, mujoco.MjData(simulation.model)
    data.qpos[:] = simulation.data.qpos
    addresses = [model.joint(name).qposadr[0] for name in scene.ARM_JOINTS]
    data.qpos[addresses] = joints_then
    mujoco.mj_forward(model, data)
    tool = data.site_xpos[model.site("pinch").id].copy()
    data.qpos[addresses] = joints_now
    mujoco.mj_forward(model, data)
    pictures = []
    for ball in (False, True):
        renderer.update_scene(data, camera)
        if ball:
            size, colour = (
                np.array([0.01 if camera == "scene" else 0.004, 0.0, 0.0]),
                np.array([1.0, 0.0, 1.0, 1.0], np.float32),
            )
            geom = renderer.scene.geoms[renderer.scene.ngeom]
            mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_SPHERE, size, tool, np.eye(3).ravel(), colour)
            geom.emission = 1.0
            renderer.scene.ngeom += 1
        pictures.append(renderer.render().astype(int))
    rows, columns = np.nonzero(np.abs(pictures[1] - pictures[0]).sum(axis=2) > 200)
    if len(rows) < 12:
        return None
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    whole = abs(width - height) <= 2 and len(rows) > 0.9 * np.pi / 4 * width * height
    return np.array([columns.mean(), rows.mean()]) if whole else None


@pytest.mark.parametrize("camera", ["scene", "wrist"])
def test_the_way_is_where_mujoco_draws_it(rig, calibrations, simulation, renderer, camera):
    view = View(rig, calibrations[camera])
    spread = 0.15 if camera == "scene" else 0.03  # what the wrist camera sees lies between its fingers
    samples, now = ways(rig, 8, 3, spread), ways(rig, 1, 4, spread)[0, 0, :7]
    assert bool(view.moves_with) is (camera == "wrist")
    pixels = view.foresee(samples, rig.columns, now)["franka"]
    assert pixels.shape == (8, HORIZON, 2)
    compared = 0
    for chunk, path in zip(samples, pixels, strict=True):
        for joints, pixel in zip(chunk[:, :7], path, strict=True):
            inside = np.isfinite(pixel).all() and (pixel > 20).all() and (pixel < [620, 460]).all()
            if inside and (seen := drawn(simulation, renderer, camera, now, joints)) is not None:
                compared += 1
                assert np.abs(seen - pixel).max() < 1.5, f"drawn at {seen}, foreseen at {pixel}"
    assert compared >= 6, "enough of the way is in sight"


def test_columns_are_found_by_name(rig, calibrations):
    view, samples = View(rig, calibrations["scene"]), ways(rig, 2, seed=0)
    backwards = view.foresee(samples[..., ::-1], rig.columns[::-1], np.empty(0))["franka"]
    assert np.array_equal(backwards, view.foresee(samples, rig.columns, np.empty(0))["franka"])


def test_what_is_behind_the_camera_has_no_pixel():
    lens = Intrinsics(width=640, height=480, fx=400, fy=400, cx=319.5, cy=239.5)
    points = np.array([[0.0, 0.0, 1.0], [0.1, -0.05, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    pixels = project(points, Pose(np.zeros(3), np.eye(3)), lens)
    assert pixels[:2] == pytest.approx(np.array([[319.5, 239.5], [359.5, 219.5]]))
    assert np.isnan(pixels[2:]).all()


def test_lenses_bend_the_way():
    still = Pose(np.zeros(3), np.eye(3))
    straight = Intrinsics(width=640, height=480, fx=400, fy=400, cx=319.5, cy=239.5)
    bent = straight.model_copy(update={"distortion": (-0.1, 0.0, 0.0, 0.0, 0.0)})
    point = np.array([0.3, 0.0, 1.0])
    expected = 319.5 + 400 * 0.3 * (1 - 0.1 * 0.09)  # x (1 + k1 r^2)
    assert project(point, still, bent)[0] == pytest.approx(expected)
    assert project(point, still, straight)[0] == pytest.approx(439.5)


def test_an_arm_that_stands_elsewhere_is_seen_elsewhere(rig):
    arm = rig.arm
    moved = arm.model_copy(
        update={"base": arm.base.model_copy(update={"position": (1.0, 2.0, 0.5), "yaw": np.pi / 2})}
    )
    samples = ways(rig, 1, seed=0)
    here, there = tool_paths(samples, rig.columns, arm), tool_paths(samples, rig.columns, moved)
    turned = np.stack([-here[..., 1], here[..., 0], here[..., 2]], axis=-1)
    assert there == pytest.approx(turned + np.array([1.0, 2.0, 0.5]))


def test_a_frame_that_the_rig_does_not_have_is_named(rig, calibrations):
    known = calibrations["scene"]
    strange = Calibration(
        camera=known.camera,
        intrinsics=known.intrinsics,
        extrinsics=Extrinsics(parent="ceiling", translation=(0, 0, 0), rotation=(0, 0, 0, 1)),
    )
    with pytest.raises(
        VigilError, match=r"camera scene is calibrated in frame 'ceiling'; known are .*fr3_link0"
    ):
        View(rig, strange)
