"""Calibration files: checked, hashed, and true for the simulated cameras."""

import mujoco
import numpy as np
import pytest
import yaml

from vigil.camera.calibration import (
    Calibration,
    calibration_hash,
    load_calibration,
    load_rig_calibrations,
    write_calibration,
)
from vigil.camera.simulated_calibration import simulated_calibration
from vigil.errors import VigilError
from vigil.rig import load_rig
from vigil.sim import scene


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


@pytest.fixture(scope="module")
def model():
    return scene.build_model()


@pytest.fixture
def copy(rig, tmp_path):
    """A calibration file of the wrist camera to damage: (path, content)."""
    path = tmp_path / "wrist.yaml"
    text = rig.calibration_path(rig.camera("wrist")).read_text()
    path.write_text(text)
    return path, yaml.safe_load(text)


def test_shipped_files_are_the_simulators_truth(rig, model):
    for name, calibration in load_rig_calibrations(rig).items():
        camera = rig.camera(name)
        truth = simulated_calibration(model, name, camera.width, camera.height)
        assert calibration.intrinsics == truth.intrinsics, "run python -m vigil.camera.simulated_calibration"
        assert calibration.extrinsics.parent == truth.extrinsics.parent
        assert calibration.extrinsics.translation == pytest.approx(truth.extrinsics.translation, abs=1e-6)
        assert calibration.extrinsics.rotation == pytest.approx(truth.extrinsics.rotation, abs=1e-6)


@pytest.mark.parametrize("name", ["wrist", "scene"])
def test_a_point_projected_by_calibration_falls_where_the_renderer_draws_it(rig, name):
    """An independent check of every sign: colour the cube, find its middle in the picture, project its true place."""
    from vigil.camera.simulated import SimulatedCamera

    model = scene.build_model()
    data = mujoco.MjData(model)
    for joint, value in zip(scene.ARM_JOINTS, scene.HOME, strict=True):
        data.joint(joint).qpos[:] = value
    cube = np.array([0.52, 0.05, 0.02])
    data.joint("cube").qpos[:] = [*cube, 1, 0, 0, 0]
    mujoco.mj_kinematics(model, data)
    with SimulatedCamera(name) as camera:
        picture = camera.render(data.qpos, ["object_rgb=1,0,1"]).astype(int)
    magenta = (picture[..., 0] > 90) & (picture[..., 2] > 90) & (picture[..., 1] < 40)
    rows, columns = np.nonzero(magenta)
    assert len(rows) > 50, "the cube is in view"

    lens, pose = (calibration := load_rig_calibrations(rig)[name]).intrinsics, calibration.extrinsics
    body = {"fr3_link0": "link0", "fr3_link8": "link7"}[pose.parent]
    axes = data.body(body).xmat.reshape(3, 3)
    origin = data.body(body).xpos + (0.107 * axes[:, 2] if pose.parent == "fr3_link8" else 0)
    x, y, z, w = pose.rotation
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, np.array([w, x, y, z]))
    in_parent = axes.T @ (cube - origin)
    point = turn.reshape(3, 3).T @ (in_parent - pose.translation)
    column = lens.fx * point[0] / point[2] + lens.cx
    row = lens.fy * point[1] / point[2] + lens.cy
    assert abs(column - columns.mean()) < 12 and abs(row - rows.mean()) < 12


def test_the_hash_follows_the_numbers_and_not_the_layout(rig, copy):
    path, data = copy
    calibrations = load_rig_calibrations(rig)
    known = calibration_hash(calibrations)
    path.write_text(yaml.safe_dump(data, sort_keys=True))
    wrist = load_calibration(path, rig.camera("wrist"))
    assert calibration_hash({"wrist": wrist, "scene": calibrations["scene"]}) == known
    moved = wrist.model_copy(
        update={"extrinsics": wrist.extrinsics.model_copy(update={"translation": (0, 0, 0)})}
    )
    assert calibration_hash({**calibrations, "wrist": moved}) != known


def test_writing_and_reading_agree(rig, tmp_path):
    calibration = load_rig_calibrations(rig)["scene"]
    write_calibration(calibration, tmp_path / "scene.yaml", "a comment\nof two lines")
    assert load_calibration(tmp_path / "scene.yaml", rig.camera("scene")) == calibration


@pytest.mark.parametrize(
    ("section", "changes", "reason"),
    [
        ("intrinsics", {"fx": -1.0}, r"wrist\.yaml:\d+: intrinsics\.fx"),
        ("intrinsics", {"cx": 900.0}, "principal point .* lies outside 640x480"),
        ("intrinsics", {"model": "fisheye"}, "plumb_bob"),
        ("intrinsics", {"width": 320, "cx": 150.0}, "made at 320x480, the rig runs camera wrist at 640x480"),
        ("extrinsics", {"rotation": [0, 0, 0, 2]}, "norm 2.0000: a unit quaternion"),
        ("extrinsics", {"translation": [0, 0]}, "translation"),
        ("extrinsics", {"frame": "x"}, "extrinsics.frame is not a setting"),
    ],
)
def test_broken_files_name_line_and_fix(rig, copy, section, changes, reason):
    path, data = copy
    data[section].update(changes)
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(VigilError, match=reason):
        load_calibration(path, rig.camera("wrist"))


def test_a_calibration_of_another_camera_is_refused(rig, copy):
    path, _ = copy
    with pytest.raises(VigilError, match="made for camera wrist, the rig names it for scene"):
        load_calibration(path, rig.camera("scene"))


def test_a_missing_file_names_what_exists(rig, copy):
    path, _ = copy
    with pytest.raises(VigilError, match=r"gone\.yaml does not exist \(there are wrist\.yaml\)"):
        load_calibration(path.with_name("gone.yaml"), rig.camera("wrist"))


def test_camera_matrices():
    lens = Calibration(
        camera="a",
        intrinsics={"width": 64, "height": 48, "fx": 50, "fy": 51, "cx": 31.5, "cy": 23.5},
        extrinsics={"parent": "base", "translation": (0, 0, 0), "rotation": (0, 0, 0, 1)},
    ).intrinsics
    assert lens.k == [50, 0, 31.5, 0, 51, 23.5, 0, 0, 1]
    assert lens.p == [50, 0, 31.5, 0, 0, 51, 23.5, 0, 0, 0, 1, 0]
