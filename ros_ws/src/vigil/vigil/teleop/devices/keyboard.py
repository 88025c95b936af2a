"""A keyboard in a terminal: every key that moves the arm, and the space bar, is also the deadman.

A terminal tells presses and repeats but no releases, and repeats only the key pressed last. So the arm is held by
pressing: it moves one step per press or repeat, and the deadman counts as let go when no key comes any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import termios
import tty

import numpy as np

from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.teleop.device import Device, DeviceOptions, Mode, Reading, Surroundings
from vigil.teleop.jog import JogTargets

FIRST_HOLD = 0.8  # [s] after a single press: terminals repeat a held key only after up to 0.66 s
REPEAT_HOLD = 0.3  # [s] after a repeat
REPEAT_GAP = 0.15  # [s] between repeats of a held key, at most
HAND_BACK_PULSE = 0.2  # [s]
PRESS_TIME = 0.04  # [s] that a press counts as: terminals repeat at 25 Hz or so
TOOL_STEP, TURN_STEP, JOINT_STEP, GRIPPER_STEP = 0.004, 0.02, 0.015, 0.005  # m, rad, rad, m

DEADMAN, MODE, RELEASE, HAND_BACK, OPEN, CLOSE, SWITCH = " ", "m", "\x1b", "b", "x", "z", "\t"
EPISODE_KEYS = {"n": "start", "1": "success", "2": "failure", "3": "discard", "4": "mark"}
# Tool mode: translation along, then rotation about, the base's axes.
TOOL_KEYS: dict[str, tuple[int, int]] = {
    "w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1),
    "u": (3, 1), "o": (3, -1), "i": (4, 1), "k": (4, -1), "j": (5, 1), "l": (5, -1),
}  # fmt: skip
JOINT_PLUS, JOINT_MINUS = "qwertyu", "asdfghj"
ANY_MODE = (DEADMAN, OPEN, CLOSE)
_SEQUENCE = re.compile(r"\x1b(\[[0-9;]*[a-z~]|o[a-z])")  # arrows and the like, which end in letters

HELP = (
    "\r\nkeyboard teleoperation: hold a key to hold the deadman\r\n"
    "  space: take over, stay      Esc: let go at once      b: hand back to the policy\r\n"
    "  z, x: gripper close, open   m: tool or joints        Tab: next arm\r\n"
    "  episode: n begins one; 1 ends it as a success, 2 as a failure, 3 discards it; 4 marks a disturbance\r\n"
    "  tool:   w/s x  a/d y  r/f z   u/o roll  i/k pitch  j/l yaw\r\n"
    "  joints: q w e r t y u plus    a s d f g h j minus\r\n"
)


class KeyboardDevice(Device):
    """Reads a terminal in raw mode, which it restores when closed."""

    name = "keyboard"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        self._path = options.tty or os.environ.get("VIGIL_TTY", "") or "/dev/tty"
        self._target = JogTargets(rig)
        self._pressed: set[str] = set()  # episode keys, since the last poll
        self._tty: int | None = None
        self._restore: list | None = None
        self._tool_mode = True
        self._last_key: tuple[str, float] = ("", -np.inf)
        self._held_until = -np.inf
        self._hand_back_until = -np.inf
        self._was_held = self._gone = False

    def open(self) -> None:
        try:
            self._tty = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
            self._restore = termios.tcgetattr(self._tty)
            tty.setcbreak(self._tty, termios.TCSANOW)
        except (OSError, termios.error) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else error.args[-1]
            raise VigilError(
                f"keyboard teleoperation needs a terminal, and {self._path} is none that can be read ({reason}): "
                "set VIGIL_TTY, or the teleop node's parameter `tty`, to what the command `tty` prints in a free terminal"
            ) from None
        self._say(HELP)

    def close(self) -> None:
        if self._tty is None:
            return
        if self._restore is not None:
            with contextlib.suppress(termios.error, OSError):  # the terminal may be gone
                termios.tcsetattr(self._tty, termios.TCSANOW, self._restore)
        os.close(self._tty)
        self._tty = self._restore = None

    def poll(self, now: float, around: Surroundings) -> Reading:
        keys = self._keys()
        if now >= self._held_until:
            self._was_held = False
        self._pressed = set()
        for key in keys:
            self._press(key, now, around.measured)
        hand_back = now < self._hand_back_until
        if now >= self._held_until or around.measured is None:
            self._was_held = False
            return Reading(False, None, Mode.RELATIVE, hand_back, self._pressed)
        return Reading(True, self._target.positions, Mode.RELATIVE, hand_back, self._pressed)

    @property
    def state(self) -> str:
        if self._gone:
            return f"{self._path} was closed: start the node anew with another terminal"
        return f"{self._path}, {'tool' if self._tool_mode else 'joint'} mode of {self._target.arm.name}"

    @property
    def trouble(self) -> str:
        return self.state if self._gone else ""

    # Keys -----------------------------------------------------------------------------------------------------

    def _keys(self) -> str:
        try:
            data = os.read(self._tty, 4096)
        except BlockingIOError:
            return ""
        except OSError:
            data = b""
        if not data:  # the terminal was closed: nobody holds the deadman
            self._gone = True
            self._held_until = -np.inf
        return _SEQUENCE.sub("", data.decode("ascii", errors="ignore").lower())

    def _press(self, key: str, now: float, measured: np.ndarray | None) -> None:
        if key == RELEASE:
            self._held_until = -np.inf
        elif key == HAND_BACK:
            self._held_until = -np.inf
            self._hand_back_until = now + HAND_BACK_PULSE
        elif key in EPISODE_KEYS:
            self._pressed.add(EPISODE_KEYS[key])
        elif key in (MODE, SWITCH):
            if key == MODE:
                self._tool_mode = not self._tool_mode
            else:
                self._target.switch()
            self._say(f"\r\n{'tool' if self._tool_mode else 'joint'} mode of {self._target.arm.name}\r\n")
        elif measured is not None and self._bound(key):
            self._hold(key, now, measured)
            if not self._move(key):
                self._say("\a")

    def _hold(self, key: str, now: float, measured: np.ndarray) -> None:
        last, at = self._last_key
        repeated = key == last and now - at <= REPEAT_GAP
        self._last_key = (key, now)
        if not self._was_held:
            self._was_held = True
            self._target.restart(measured)
        # A first press must outlast the delay before repeats; those may then end early.
        self._held_until = now + REPEAT_HOLD if repeated else max(self._held_until, now + FIRST_HOLD)

    def _move(self, key: str) -> bool:
        """Whether the key could do what it is for."""
        if key == DEADMAN:
            return True
        if key in (OPEN, CLOSE):
            return self._target.active.step_gripper(GRIPPER_STEP if key == OPEN else -GRIPPER_STEP)
        if self._tool_mode:
            axis, sign = TOOL_KEYS[key]
            step = np.zeros(6)
            step[axis] = sign * (TOOL_STEP if axis < 3 else TURN_STEP)
            return self._target.active.step_tool(step[:3], step[3:], PRESS_TIME)
        plus = key in JOINT_PLUS
        index = (JOINT_PLUS if plus else JOINT_MINUS).index(key)
        return self._target.active.step_column(index, JOINT_STEP if plus else -JOINT_STEP)

    def _bound(self, key: str) -> bool:
        """Other keys do nothing; above all they are no deadman."""
        joints = len(self._target.arm.joints)
        keys = TOOL_KEYS if self._tool_mode else JOINT_PLUS[:joints] + JOINT_MINUS[:joints]
        return key in ANY_MODE or key in keys

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that cannot show it can still be read
            os.write(self._tty, text.encode())
