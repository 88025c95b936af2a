"""The simulated cameras' driver: draws one camera's view from the state that physics publishes.

It has its own copy of the model, so rendering never delays physics. Headless through EGL, in software where there is
no GPU.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable

# Read by the GL libraries at their first use; whoever set them already knows better.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")  # draw in the calling thread

import mujoco
import numpy as np

from vigil.errors import VigilError
from vigil.sim import scene
from vigil.sim.appearance import Appearance, Dresser, decode

_PLATFORMS = ("egl", "osmesa")  # headless ones


class SimulatedCamera:
    """One camera of the simulated rig. Use it from the thread that made it, and close it."""

    def __init__(self, name: str, width: int = 640, height: int = 480) -> None:
        """Raises VigilError for an unknown camera, or when no GL context can be made."""
        self._context = self._gl = None
        if name not in scene.CAMERAS:
            raise VigilError(f"the simulated scene has no camera {name!r}; it has {sorted(scene.CAMERAS)}")
        self.name = name
        self.intrinsics = scene.CAMERAS[name].intrinsics(width, height)
        self._model = scene.build_model()
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._data = mujoco.MjData(self._model)
        self._dresser = Dresser(self._model)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = self._model.camera(name).id
        self._option = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(self._model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._view = mujoco.MjrRect(0, 0, width, height)
        self._gl, self._context = _make_context(self._model, width, height)

    def render(self, qpos: np.ndarray, appearance: Appearance | Iterable[str] = ()) -> np.ndarray:
        """The view of a state, uint8 RGB [height, width, 3].

        Args:
            qpos: [nq] generalised positions (SimState.qpos).
            appearance: visual changes, as a mapping or as the strings of SimState.appearance.

        Raises:
            VigilError: wrong shape, not finite, or an unknown appearance.
        """
        self._draw(qpos, appearance)
        color = np.empty((self._view.height, self._view.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(color, None, self._view, self._context)
        return color[::-1].copy()

    def render_depth(self, qpos: np.ndarray, appearance: Appearance | Iterable[str] = ()) -> np.ndarray:
        """Distance along the optical axis, uint16 mm [height, width], 0 where nothing is seen; else as `render`."""
        self._draw(qpos, appearance)
        buffer = np.empty((self._view.height, self._view.width), dtype=np.float32)
        mujoco.mjr_readPixels(None, buffer, self._view, self._context)
        return self._millimetres(buffer[::-1])

    def _draw(self, qpos: np.ndarray, appearance: Appearance | Iterable[str]) -> None:
        if self._context is None:
            raise VigilError(f"camera {self.name} is closed")
        qpos = np.asarray(qpos, dtype=float)
        if qpos.shape != (self._model.nq,) or not np.isfinite(qpos).all():
            raise VigilError(
                f"camera {self.name} needs {self._model.nq} finite positions, got {qpos.shape}: "
                "the state is of another scene or broken"
            )
        self._dresser.apply(appearance if isinstance(appearance, dict) else decode(appearance))
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._view, self._scene, self._context)

    def _millimetres(self, buffer: np.ndarray) -> np.ndarray:
        extent = self._model.stat.extent
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        metres = near / (1.0 - buffer * (1.0 - near / far))
        metres[buffer >= 1.0] = 0.0
        return np.round(metres * 1000.0).astype(np.uint16)

    def close(self) -> None:
        """Free the GL context; may be called twice."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = self._gl = None

    def __enter__(self) -> SimulatedCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make_context(model: mujoco.MjModel, width: int, height: int):
    """An off-screen GL context and MuJoCo's renderer in it."""
    platform = os.environ["MUJOCO_GL"].lower()
    if platform not in _PLATFORMS:
        raise VigilError(f"MUJOCO_GL is {platform!r}; simulated cameras need one of {', '.join(_PLATFORMS)}")
    try:
        # Not mujoco.GLContext: that one was chosen when mujoco was first imported, maybe before our default was set.
        gl = importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
        gl.make_current()
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    except Exception as error:  # each GL library raises its own kinds
        raise VigilError(
            f"no off-screen GL context could be made ({error}): apt install libegl1 libgl1-mesa-dri, "
            "or set MUJOCO_GL=osmesa and apt install libosmesa6"
        ) from None
    return gl, context
