"""Where the sampled chunks would take each arm's tool, as pixels of the rig's cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vigil.camera.calibration import Calibration, Intrinsics
from vigil.errors import VigilError
from vigil.kinematics import CHAINS, rotation_from_vector
from vigil.rig import ArmConfig, RigConfig

WORLD = "world"
FRAMES = {"franka": ("fr3_link0", "fr3_link8"), "viperx300s": ("base_link", "gripper_link")}
"""Base and flange of each kind of arm, as their robot descriptions call them; in a rig each after the arm's prefix."""
NEAREST = 0.01
"""[m] What is nearer to the camera's plane, or behind it, has no pixel."""


@dataclass(frozen=True)
class Pose:
    """A frame in the one that all arms of a rig share."""

    origin: np.ndarray  # [3] m
    rotation: np.ndarray  # [3, 3]

    def __matmul__(self, other: Pose) -> Pose:
        return Pose(self.origin + self.rotation @ other.origin, self.rotation @ other.rotation)


def project(points: np.ndarray, camera: Pose, intrinsics: Intrinsics) -> np.ndarray:
    """Pixels [..., 2] of points [..., 3] (m, shared frame) in a camera; nan where a point is not in front of it.

    Pixel (0, 0) is the centre of the upper left one; what lies outside the picture is not cut off. Lens distortion as
    ``plumb_bob`` (OpenCV's rational model with five coefficients).
    """
    flat = np.asarray(points, float).reshape(-1, 3)
    seen = (flat - camera.origin) @ camera.rotation
    behind = seen[:, 2] < NEAREST
    seen[behind] = (0.0, 0.0, 1.0)
    still = np.zeros(3)
    matrix, distortion = np.reshape(intrinsics.k, (3, 3)), np.array(intrinsics.distortion)
    pixels = cv2.projectPoints(seen, still, still, matrix, distortion)[0].reshape(-1, 2)
    pixels[behind] = np.nan
    return pixels.reshape(*np.shape(points)[:-1], 2)


def base_of(arm: ArmConfig) -> Pose:
    """Where an arm stands."""
    return Pose(np.array(arm.base.position), rotation_from_vector(np.array([0.0, 0.0, arm.base.yaw])))


def tool_paths(samples: np.ndarray, names: Sequence[str], arm: ArmConfig) -> np.ndarray:
    """Positions [K, H, 3] of an arm's tool (m, shared frame) along chunks [K, H, D] (rad, m) with columns ``names``."""
    columns = [list(names).index(name) for name in arm.joint_columns]
    base = base_of(arm)
    points = CHAINS[arm.kinematics].positions(samples[..., columns].astype(float), arm.tool_offset)
    return base.origin + points @ base.rotation.T


class View:
    """One calibrated camera of a rig, fixed in the world or to an arm.

    Raises:
        VigilError: its calibration's parent frame is none that the rig has.
    """

    def __init__(self, rig: RigConfig, calibration: Calibration) -> None:
        self._rig, self._calibration = rig, calibration
        extrinsics = calibration.extrinsics
        self._mount = Pose(np.array(extrinsics.translation), _rotation(extrinsics.rotation))
        self.carrier: ArmConfig | None = None
        self._on_flange = False
        known = [WORLD]
        for arm in rig.arms:
            names = [arm.prefix + frame for frame in FRAMES[arm.kinematics]]
            known += names
            if extrinsics.parent in names:
                self.carrier, self._on_flange = arm, extrinsics.parent == names[1]
        if self.carrier is None and extrinsics.parent != WORLD:
            raise VigilError(
                f"camera {calibration.camera} is calibrated in frame {extrinsics.parent!r}; known are {known}"
            )

    @property
    def moves_with(self) -> tuple[str, ...]:
        """Columns of the joints that move this camera."""
        return self.carrier.joint_columns if self._on_flange else ()

    def pose(self, joints: np.ndarray) -> Pose:
        """Of the optical frame, with the joints `moves_with` at ``joints`` (rad)."""
        if self.carrier is None:
            return self._mount
        carrier = base_of(self.carrier)
        if self._on_flange:
            carrier = carrier @ Pose(*CHAINS[self.carrier.kinematics].forward(joints))
        return carrier @ self._mount

    def foresee(self, samples: np.ndarray, names: Sequence[str], joints: np.ndarray) -> dict[str, np.ndarray]:
        """Pixels [K, H, 2] of each arm's tool along chunks [K, H, D], by arm; the camera stays where it is now.

        Args:
            samples, names: chunks and their columns; rad, m.
            joints: as `pose`.
        """
        pose, intrinsics = self.pose(joints), self._calibration.intrinsics
        return {
            arm.name: project(tool_paths(samples, names, arm), pose, intrinsics) for arm in self._rig.arms
        }


def _rotation(quaternion: Sequence[float]) -> np.ndarray:
    """[3, 3] of a unit quaternion x y z w."""
    *vector, w = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    vector = np.array(vector)
    sine = np.linalg.norm(vector)
    return rotation_from_vector(vector * (2 * np.arctan2(sine, w) / sine)) if sine > 1e-12 else np.eye(3)
