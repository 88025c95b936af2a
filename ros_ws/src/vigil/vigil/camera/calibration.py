"""Camera calibration: intrinsics, and the pose in the robot; one YAML file per camera in ``calibration/<rig>/``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from vigil.errors import VigilError
from vigil.rig import CameraConfig, Finite, Name, Positive, RigConfig, Strict, read_yaml, validate

Vector3 = tuple[Finite, Finite, Finite]
Pixels = Annotated[int, Field(ge=16, le=4096)]


def optical_frame(camera: str) -> str:
    """Frame id of a colour image: z forward, x right, y down (REP-103)."""
    return f"{camera}_color_optical_frame"


class Intrinsics(Strict):
    """Pinhole camera; pixel (0, 0) is the centre of the upper left pixel."""

    width: Pixels
    height: Pixels
    fx: Positive  # [px]
    fy: Positive  # [px]
    cx: Finite  # [px]
    cy: Finite  # [px]
    model: Literal["plumb_bob"] = "plumb_bob"
    distortion: tuple[Finite, Finite, Finite, Finite, Finite] = (0.0, 0.0, 0.0, 0.0, 0.0)  # k1 k2 p1 p2 k3

    @model_validator(mode="after")
    def _centre_lies_inside(self) -> Intrinsics:
        if not (0 < self.cx < self.width and 0 < self.cy < self.height):
            raise ValueError(
                f"the principal point ({self.cx}, {self.cy}) lies outside {self.width}x{self.height}"
            )
        return self

    @property
    def k(self) -> list[float]:
        """Camera matrix, row-major [9]."""
        return [self.fx, 0.0, self.cx, 0.0, self.fy, self.cy, 0.0, 0.0, 1.0]

    @property
    def p(self) -> list[float]:
        """Projection matrix of a monocular camera, row-major [12]."""
        return [self.fx, 0.0, self.cx, 0.0, 0.0, self.fy, self.cy, 0.0, 0.0, 0.0, 1.0, 0.0]


class Extrinsics(Strict):
    """Pose of the optical frame in ``parent``."""

    parent: Name
    translation: Vector3  # [m]
    rotation: tuple[Finite, Finite, Finite, Finite]  # unit quaternion x y z w

    @model_validator(mode="after")
    def _is_a_rotation(self) -> Extrinsics:
        norm = math.sqrt(sum(q * q for q in self.rotation))
        if abs(norm - 1) > 1e-3:
            raise ValueError(f"rotation has norm {norm:.4f}: a unit quaternion x, y, z, w is needed")
        return self


class Calibration(Strict):
    """Content of one calibration file."""

    camera: Name
    intrinsics: Intrinsics
    extrinsics: Extrinsics


def load_calibration(path: Path, camera: CameraConfig) -> Calibration:
    """Read the calibration of one camera of a rig.

    Raises:
        VigilError: missing, not YAML, a rule broken, or made for another camera or size; names file, line and fix.
    """
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise VigilError(
            f"camera {camera.name} has no calibration: {path} does not exist"
            + (f" (there are {', '.join(found)})" if found else "")
            + "; calibrate the camera, or correct `calibration` in the rig file"
        )
    data, lines = read_yaml(path)
    calibration = validate(Calibration, data, path, lines)
    if calibration.camera != camera.name:
        raise VigilError(f"{path}: made for camera {calibration.camera}, the rig names it for {camera.name}")
    size = (calibration.intrinsics.width, calibration.intrinsics.height)
    if size != (camera.width, camera.height):
        raise VigilError(
            f"{path}: made at {size[0]}x{size[1]}, the rig runs camera {camera.name} at {camera.width}x{camera.height}: "
            "use the same size or calibrate again"
        )
    return calibration


def load_rig_calibrations(rig: RigConfig) -> dict[str, Calibration]:
    """Calibrations of all cameras of a rig, by camera name."""
    return {camera.name: load_calibration(rig.calibration_path(camera), camera) for camera in rig.cameras}


def calibration_hash(calibrations: Mapping[str, Calibration]) -> str:
    """sha256 (hex) over the calibrations of a rig: the same numbers give the same hash, whatever the file's layout."""
    content = {name: calibrations[name].model_dump(mode="json") for name in sorted(calibrations)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_calibration(calibration: Calibration, path: Path, comment: str) -> None:
    """Write a calibration file headed by ``comment``."""
    data = calibration.model_dump(mode="json")
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"# {line}\n" for line in comment.splitlines()) + text, encoding="utf-8")
