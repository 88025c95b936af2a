"""The simulated cameras draw the state, and the changes that travel with it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from vigil.camera.simulated import SimulatedCamera
from vigil.errors import VigilError
from vigil.sim import scene
from vigil.sim.physics import Simulation


@pytest.fixture(scope="module")
def cameras():
    made = {name: SimulatedCamera(name) for name in scene.CAMERAS}
    yield made
    for camera in made.values():
        camera.close()


@pytest.fixture(scope="module")
def qpos():
    simulation = Simulation()
    simulation.reset(3)
    return simulation.qpos


def test_pictures_repeat_and_show_cube_and_tray(cameras, qpos):
    for camera in cameras.values():
        picture = camera.render(qpos)
        assert picture.shape == (480, 640, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, camera.render(qpos))
        red = (picture[..., 0] > 100) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
        blue = (picture[..., 2].astype(int) - picture[..., 0] > 60) & (picture[..., 2] > 90)
        assert red.sum() > 300, camera.name
        assert blue.sum() > 3000, camera.name
        assert (picture.sum(axis=2) == 0).mean() < 0.02, "nothing is left undrawn"


@pytest.mark.parametrize(
    ("appearance", "seen_by"),
    [
        ("light=0.7", ("wrist", "scene")),
        ("light_tint=1,0.8,0.6", ("wrist", "scene")),
        ("table_rgb=0.2,0.5,0.2", ("wrist", "scene")),
        ("object_rgb=0.1,0.2,0.9", ("wrist", "scene")),
        ("object_half=0.055,0.055,0.016", ("wrist", "scene")),
        ("distractor=0.5,0.36,0", ("wrist", "scene")),
        ("camera_scene=0.08,0,0,0,0.1,0", ("scene",)),
        ("camera_wrist=0,0,0,0.1,0.1,0.1", ("wrist",)),
    ],
)
def test_changes_are_drawn_and_undone(cameras, qpos, appearance, seen_by):
    for name, camera in cameras.items():
        before = camera.render(qpos).astype(int)
        after = camera.render(qpos, [appearance]).astype(int)
        changed = (np.abs(before - after).max(axis=2) > 8).sum()
        assert changed > 300 if name in seen_by else changed == 0
        np.testing.assert_array_equal(camera.render(qpos), before)


def test_depth_is_the_distance_along_the_optical_axis(cameras, qpos):
    camera = cameras["scene"]
    depth = camera.render_depth(qpos)
    view, pinhole = scene.CAMERAS["scene"], camera.intrinsics
    point = np.array([0.75, 0.2, 0.0])  # on the bare table
    x, y, z = view.rotation().T @ (point - view.position)
    u, v = round(pinhole.fx * x / z + pinhole.cx), round(pinhole.fy * y / z + pinhole.cy)
    assert depth.dtype == np.uint16
    assert depth[v, u] == pytest.approx(1000 * z, abs=4)


def test_the_cube_is_drawn_where_the_intrinsics_say(cameras, qpos):
    camera, view = cameras["scene"], scene.CAMERAS["scene"]
    picture = camera.render(qpos)
    rows, columns = np.nonzero((picture[..., 0] > 100) & (picture[..., 1] < 60) & (picture[..., 2] < 60))
    x, y, z = view.rotation().T @ (qpos[-7:-4] - view.position)
    pinhole = camera.intrinsics
    assert columns.mean() == pytest.approx(pinhole.fx * x / z + pinhole.cx, abs=3)
    assert rows.mean() == pytest.approx(pinhole.fy * y / z + pinhole.cy, abs=3)


def test_bad_states_and_cameras_are_refused(cameras, qpos):
    camera = cameras["wrist"]
    with pytest.raises(VigilError, match="22 finite positions"):
        camera.render(qpos[:-1])
    broken = qpos.copy()
    broken[3] = np.nan
    with pytest.raises(VigilError, match="finite"):
        camera.render(broken)
    with pytest.raises(VigilError, match="unknown appearance"):
        camera.render(qpos, ["fog=1"])
    with pytest.raises(VigilError, match=r"no camera 'ceiling'.*scene.*wrist"):
        SimulatedCamera("ceiling")


def test_a_closed_camera_says_so(qpos):
    with SimulatedCamera("scene", 64, 48) as camera:
        assert camera.render(qpos).shape == (48, 64, 3)
    camera.close()
    with pytest.raises(VigilError, match="closed"):
        camera.render(qpos)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL is 'glfw'"),
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}, "apt install libegl1"),
    ],
)
def test_without_a_gl_context_the_error_names_the_packages(changes, message):
    code = (
        "from vigil.errors import VigilError\n"
        "from vigil.camera.simulated import SimulatedCamera\n"
        "try:\n    SimulatedCamera('scene')\nexcept VigilError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert message in result.stdout, result.stderr
