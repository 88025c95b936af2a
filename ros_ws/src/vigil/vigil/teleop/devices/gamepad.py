"""A gamepad, read through SDL, which knows the layouts of some hundred of them.

Left stick: ahead and sideways. Triggers: right up, left down. Right stick: pitch and yaw; with the left shoulder button
roll in place of yaw.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.teleop.device import DeviceOptions
from vigil.teleop.devices.cartesian import CartesianDevice, Controls

INPUT_DEVICES = Path("/proc/bus/input/devices")
LOOK_AGAIN = 1.0  # [s] between two looks for a gamepad that was unplugged
FULL = 32767.0
ROLL_BUTTON = "leftshoulder"
HINTS = {
    b"SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS": b"1",  # we have no window that could be in front
    b"SDL_NO_SIGNAL_HANDLERS": b"1",  # the node ends in order by its own
}


def import_sdl() -> Any:
    """The module ``sdl2``; VigilError says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where its library is
            import sdl2
    except ImportError as error:
        raise VigilError(
            f"device gamepad needs SDL ({error}): install it by `.venv/bin/pip install -e '.[gamepad]'`"
        ) from None
    return sdl2


def forbidden(listing: str, readable: Any) -> list[str]:
    """Names of joysticks in the kernel's list of input devices whose event file may not be read."""
    found = []
    for block in listing.split("\n\n"):
        name = re.search(r'^N: Name="(.*)"$', block, re.MULTILINE)
        handlers = re.search(r"^H: Handlers=(.*)$", block, re.MULTILINE)
        words = handlers.group(1).split() if handlers else []
        events = [word for word in words if word.startswith("event")]
        if (
            any(word.startswith("js") for word in words)
            and events
            and not readable(f"/dev/input/{events[0]}")
        ):
            found.append(name.group(1) if name else events[0])
    return found


class GamepadDevice(CartesianDevice):
    """The first gamepad that is plugged in; if it is unplugged, the next one that is."""

    name = "gamepad"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        super().__init__(rig, options)
        self._bindings = rig.teleop.bindings
        self._sdl: Any = None
        self._pad: Any = None
        self._again_at = 0.0

    def open(self) -> None:
        self._sdl = sdl = import_sdl()
        for hint, value in HINTS.items():
            sdl.SDL_SetHint(hint, value)
        if sdl.SDL_InitSubSystem(sdl.SDL_INIT_GAMECONTROLLER) != 0:
            error = sdl.SDL_GetError().decode()
            self._sdl = None
            raise VigilError(f"SDL cannot look for gamepads: {error}")
        for states in (sdl.SDL_JoystickEventState, sdl.SDL_GameControllerEventState):
            states(sdl.SDL_IGNORE)  # we ask how things are: events would pile up
        if not self._find():
            self.close()
            raise VigilError(why_none())
        self._buttons = {
            name: sdl.SDL_GameControllerGetButtonFromString(name.encode())
            for name in (*self._bindings, ROLL_BUTTON)
        }

    def close(self) -> None:
        if self._sdl is None:
            return
        self._release()
        self._sdl.SDL_QuitSubSystem(self._sdl.SDL_INIT_GAMECONTROLLER)
        self._sdl = None

    def _find(self) -> bool:
        sdl = self._sdl
        sdl.SDL_GameControllerUpdate()
        for index in range(sdl.SDL_NumJoysticks()):
            if sdl.SDL_IsGameController(index) and (pad := sdl.SDL_GameControllerOpen(index)):
                self._pad = pad
                return True
        return False

    def _release(self) -> None:
        if self._pad is not None:
            self._sdl.SDL_GameControllerClose(self._pad)
            self._pad = None

    def read(self, now: float) -> Controls | None:
        sdl = self._sdl
        sdl.SDL_GameControllerUpdate()
        if self._pad is not None and not sdl.SDL_GameControllerGetAttached(self._pad):
            self._release()
        if self._pad is None:
            if now < self._again_at:
                return None
            self._again_at = now + LOOK_AGAIN
            if not self._find():
                return None
        held = {
            name
            for name, button in self._buttons.items()
            if sdl.SDL_GameControllerGetButton(self._pad, button)
        }
        left_x, left_y, right_x, right_y, down, up = (
            np.clip(sdl.SDL_GameControllerGetAxis(self._pad, axis) / FULL, -1.0, 1.0)
            for axis in range(6)  # SDL's order; y is positive towards the hand
        )
        roll, yaw = (right_x, 0.0) if ROLL_BUTTON in held else (0.0, -right_x)
        return Controls(
            np.array([-left_y, -left_x, up - down, roll, -right_y, yaw]),
            {self._bindings[name] for name in held if name in self._bindings},
        )

    @property
    def state(self) -> str:
        name = self._sdl.SDL_GameControllerName(self._pad) if self._pad is not None else None
        return f"{name.decode() if name else 'gamepad'}, {super().state}"

    @property
    def trouble(self) -> str:
        return "" if self._pad is not None else why_none()


def why_none() -> str:
    """Why there is no gamepad, and what to do."""
    listing = INPUT_DEVICES.read_text() if INPUT_DEVICES.exists() else ""
    if names := forbidden(listing, _readable):
        return f"{', '.join(names)} may not be read: `sudo usermod -aG input $USER`, then log in anew"
    return "no gamepad is plugged in: plug one in, or pair it (`bluetoothctl`)"


def _readable(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False
