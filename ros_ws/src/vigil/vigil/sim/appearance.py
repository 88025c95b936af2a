"""What the world looks like beside its generalised positions, as strings ``name=value`` that travel in SimState.

Physics applies the parts that matter to contacts (object size, distractor), every camera applies all of them to its
own copy of the model, so both show the same world.
"""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np

from vigil.errors import VigilError
from vigil.kinematics import rotation_from_vector
from vigil.sim import scene

# name -> number of values. Colours are 0 to 1; sizes and positions in m, rotations in rad.
SIZES = {
    "light": 1,  # brightness of all lights, 1 as built
    "light_tint": 3,  # colour of the lamp, 1 1 1 as built
    "table_rgb": 3,
    "object_rgb": 3,
    "object_half": 3,  # half edges of the box
    "distractor": 3,  # x, y on the table, yaw
    "distractor_rgb": 3,
    **{
        f"camera_{name}": 6 for name in scene.CAMERAS
    },  # shift of position and rotation vector, in its own axes
}

Appearance = dict[str, tuple[float, ...]]


def encode(appearance: Appearance) -> list[str]:
    """The strings of SimState.appearance, sorted by name."""
    return [f"{name}={','.join(f'{v:.6g}' for v in values)}" for name, values in sorted(appearance.items())]


def decode(strings: Iterable[str]) -> Appearance:
    """Inverse of `encode`; VigilError on anything unknown or malformed."""
    appearance: Appearance = {}
    for text in strings:
        name, _, values = text.partition("=")
        if name not in SIZES:
            raise VigilError(f"unknown appearance {text!r}: known are {sorted(SIZES)}")
        try:
            numbers = tuple(float(v) for v in values.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != SIZES[name] or not np.isfinite(numbers).all():
            raise VigilError(f"appearance {text!r} needs {SIZES[name]} finite numbers separated by commas")
        appearance[name] = numbers
    return appearance


class Dresser:
    """Applies appearances to one MuJoCo model; what an appearance leaves out returns to its built value."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._current: Appearance | None = None
        self._built = {
            field: getattr(model, field).copy()
            for field in ("light_diffuse", "geom_rgba", "geom_size", "geom_rbound", "geom_aabb", "cam_pos", "cam_quat",
                          "body_pos", "body_quat")
        }  # fmt: skip
        self._headlight = {
            name: np.array(getattr(model.vis.headlight, name)) for name in ("ambient", "diffuse", "specular")
        }

    def apply(self, appearance: Appearance) -> bool:
        """Make the model look so; returns whether anything changed."""
        if appearance == self._current:
            return False
        model = self._model
        for field, value in self._built.items():
            getattr(model, field)[:] = value
        brightness = appearance.get("light", (1.0,))[0]
        for name, value in self._headlight.items():
            getattr(model.vis.headlight, name)[:] = value * brightness
        model.light_diffuse *= brightness * np.array(appearance.get("light_tint", (1.0, 1.0, 1.0)))
        for name, geom in (("table_rgb", "table"), ("object_rgb", "cube"), ("distractor_rgb", "distractor")):
            if name in appearance:
                model.geom(geom).rgba[:3] = appearance[name]
        if "object_half" in appearance:
            geom = model.geom("cube")
            geom.size[:] = appearance["object_half"]
            geom.rbound[:] = np.linalg.norm(geom.size)
            model.geom_aabb[geom.id, 3:] = geom.size
        if "distractor" in appearance:
            x, y, yaw = appearance["distractor"]
            body = model.body("distractor")
            body.pos[:] = (x, y, 0.0)
            body.quat[:] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        for camera in scene.CAMERAS:
            if f"camera_{camera}" in appearance:
                self._shift_camera(camera, np.array(appearance[f"camera_{camera}"]))
        self._current = dict(appearance)
        return True

    def _shift_camera(self, name: str, shift: np.ndarray) -> None:
        camera = self._model.camera(name)
        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, camera.quat)
        axes = axes.reshape(3, 3)
        camera.pos[:] = camera.pos + axes @ shift[:3]
        mujoco.mju_mat2Quat(camera.quat, np.ascontiguousarray(axes @ rotation_from_vector(shift[3:])).ravel())
