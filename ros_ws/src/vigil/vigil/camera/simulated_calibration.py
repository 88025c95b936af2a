"""The true calibration of the simulated cameras, read from the MuJoCo model.

``python -m vigil.camera.simulated_calibration franka_sim`` writes ``calibration/<rig>/<camera>.yaml`` anew after the
scene was changed.
"""

from __future__ import annotations

import sys

import mujoco
import numpy as np

from vigil.camera.calibration import Calibration, Extrinsics, Intrinsics, write_calibration
from vigil.errors import VigilError
from vigil.rig import RigConfig, load_rig
from vigil.sim.scene import build_model

FLANGE_OFFSET = 0.107  # [m] fr3_link8 along z of fr3_link7, of Franka's robot description
# The frame that a camera is calibrated in, by the body of the model that carries it, and its offset along z.
PARENTS = {"world": ("fr3_link0", "link0", 0.0), "base_mount": ("fr3_link8", "link7", FLANGE_OFFSET)}


def simulated_calibration(model: mujoco.MjModel, camera: str, width: int, height: int) -> Calibration:
    """Calibration of one camera of a simulated scene as the model has it."""
    camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
    if camera_id < 0:
        known = [model.camera(i).name for i in range(model.ncam)]
        raise VigilError(f"the simulated scene has no camera {camera!r}; it has {known}")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    parent, body, offset = PARENTS[model.body(model.cam_bodyid[camera_id]).name]
    axes = data.body(body).xmat.reshape(3, 3)
    origin = data.body(body).xpos + offset * axes[:, 2]
    # MuJoCo's camera looks along -z with y up, the optical frame along z with y down.
    optical = data.cam_xmat[camera_id].reshape(3, 3) * np.array([1.0, -1.0, -1.0])
    w, x, y, z = _quaternion(axes.T @ optical)
    focal = 0.5 * height / np.tan(np.deg2rad(model.cam_fovy[camera_id]) / 2)
    return Calibration(
        camera=camera,
        intrinsics=Intrinsics(
            width=width,
            height=height,
            fx=_rounded(focal),
            fy=_rounded(focal),
            cx=(width - 1) / 2,
            cy=(height - 1) / 2,
        ),
        extrinsics=Extrinsics(
            parent=parent,
            translation=tuple(_rounded(v) for v in axes.T @ (data.cam_xpos[camera_id] - origin)),
            rotation=tuple(_rounded(v) for v in (x, y, z, w)),
        ),
    )


def write_simulated_calibrations(rig: RigConfig) -> None:
    """Write the file of every simulated camera of a rig."""
    model = build_model()
    for camera in rig.cameras:
        if camera.driver == "sim":
            calibration = simulated_calibration(model, camera.name, camera.width, camera.height)
            comment = (
                f"Simulated camera {camera.name} of rig {rig.name}; written by vigil.camera.simulated_calibration.\n"
                "Pixels; pose of the optical frame (z forward, x right, y down) in `parent`: m, quaternion x y z w."
            )
            write_calibration(calibration, rig.calibration_path(camera), comment)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    return quaternion


def _rounded(value: float) -> float:
    return round(float(value), 9) + 0.0  # no minus zero


if __name__ == "__main__":
    try:
        write_simulated_calibrations(load_rig(*sys.argv[1:2] or ["franka_sim"]))
    except VigilError as error:
        sys.exit(f"error: {error}")
