"""A 6-DoF SpaceMouse, read through pyspacemouse: the tool follows the cap."""

from __future__ import annotations

from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.teleop.device import DeviceOptions
from vigil.teleop.devices.cartesian import CartesianDevice, Controls

HOLD = 0.4  # [s] that the deadman outlasts the last motion of the cap: between two pushes it is let through its middle
MOST_REPORTS = 64  # read in one poll
LOOK_AGAIN = 1.0  # [s] between two looks for one that was unplugged
RULE = 'KERNEL=="hidraw*", ATTRS{idVendor}=="256f|046d", MODE="0660", TAG+="uaccess"'


def open_mouse(model: str) -> Any:
    """The SpaceMouse called ``model``, or the first.

    Raises:
        VigilError: the package or its library is missing, none is plugged in, or it may not be read.
    """
    try:
        import pyspacemouse
    except ImportError as error:
        raise VigilError(
            f"device spacemouse needs pyspacemouse ({error}): install it by `.venv/bin/pip install -e '.[spacemouse]'`"
        ) from None
    except (OSError, AttributeError, TypeError) as error:
        raise VigilError(f"device spacemouse: pyspacemouse cannot be loaded ({error}): {_LIBRARY}") from None
    try:
        found = pyspacemouse.get_connected_devices()
    except (RuntimeError, NameError) as error:
        raise VigilError(f"device spacemouse: pyspacemouse finds no hidapi ({error}): {_LIBRARY}") from None
    if not found:
        raise VigilError(
            "device spacemouse: none is plugged in: plug one in (`lsusb` shows it as 3Dconnexion or Logitech)"
        )
    if model and model not in found:
        raise VigilError(f"no SpaceMouse {model} is plugged in, but {found}: set teleop.model to one of them")
    try:
        return pyspacemouse.open(
            device=model or found[0], axis_convention=pyspacemouse.AxisConvention.ROS, nonblocking=True
        )
    except Exception as error:  # easyhid's and pyspacemouse's own kinds
        raise VigilError(
            f"SpaceMouse {model or found[0]} may not be read ({error}): run `echo '{RULE}' | "
            "sudo tee /etc/udev/rules.d/70-spacemouse.rules && sudo udevadm control --reload && sudo udevadm trigger`, "
            "then plug it in anew"
        ) from None


_LIBRARY = "install it by `sudo apt-get install -y libhidapi-hidraw0`"


class SpaceMouseDevice(CartesianDevice):
    """The deadman is a button where one is bound to it; else the cap's motion, and every other button that is bound."""

    name = "spacemouse"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        super().__init__(rig, options)
        self._model, self._bindings = rig.teleop.model, rig.teleop.bindings
        self._has_button = "deadman" in self._bindings.values()
        self._mouse: Any = None
        self._moved_at = -np.inf
        self._again_at = 0.0
        self._lost = ""

    def open(self) -> None:
        self.use(open_mouse(self._model))

    def use(self, mouse: Any) -> None:
        """Read ``mouse``, an open ``pyspacemouse.SpaceMouseDevice``."""
        self._mouse, self._lost = mouse, ""

    def close(self) -> None:
        if self._mouse is not None:
            self._mouse.close()
            self._mouse = None

    def read(self, now: float) -> Controls | None:
        if self._mouse is None and now >= self._again_at:
            self._again_at = now + LOOK_AGAIN
            try:
                self.open()
            except VigilError as error:
                self._lost = str(error)
        if self._mouse is None:
            return None
        try:
            state = self._newest()
        except Exception as error:  # of easyhid, which need not be there to name its kind
            self._lost = f"the SpaceMouse was lost ({error}): plug it in again"
            self.close()
            self._again_at = now + LOOK_AGAIN
            return None
        axes = np.clip([state.x, state.y, state.z, state.roll, state.pitch, state.yaw], -1.0, 1.0)
        if (np.abs(axes) > self._settings.deadzone).any():
            self._moved_at = now
        held = {
            action
            for number, action in self._bindings.items()
            if number < len(state.buttons) and state.buttons[number]
        }
        return Controls(axes, held)

    def _newest(self) -> Any:
        """The state after all reports that came; it sends some hundred a second while it is moved."""
        before = None
        for _ in range(MOST_REPORTS):
            state = self._mouse.read()
            if state.t == before:
                break
            before = state.t
        return state

    def deadman(self, controls: Controls, now: float) -> bool:
        if self._has_button:
            return super().deadman(controls, now)
        return now - self._moved_at < HOLD or bool({"open", "close"} & set(controls.held))

    @property
    def state(self) -> str:
        return f"{self._mouse.name if self._mouse is not None else 'SpaceMouse'}, {super().state}"

    @property
    def trouble(self) -> str:
        return self._lost if self._mouse is None else ""
