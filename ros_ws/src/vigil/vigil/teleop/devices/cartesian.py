"""What devices that move the tool have in common: deflections become speeds, speeds become steps of one arm's tool."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from vigil.kinematics import rotation_from_vector
from vigil.rig import RigConfig
from vigil.teleop.device import Deadman, Device, DeviceOptions, Mode, Reading, Surroundings
from vigil.teleop.jog import JogTargets
from vigil.teleop.settings import REQUEST_ROLES, Action, CartesianSettings

GRIPPER_SPEED = 0.1  # [m/s] while its button is held
LONGEST = 2.0  # periods that a step stands for, at most: after a pause the arm does not catch up


@dataclass(frozen=True)
class Controls:
    """What the hand does at one instant.

    Attributes:
        axes: [6] deflections from -1 to 1: translation along, then rotation about, x (ahead), y (left) and z (up).
        held: what the buttons that are held are bound to.
        speed: share of the rig file's speeds that full deflection stands for.
    """

    axes: np.ndarray
    held: Collection[Action] = ()
    speed: float = 1.0


class CartesianDevice(Device):
    """Moves the tool of one arm of the rig; a button switches to the next. Commands are relative.

    A device reads its hardware in `read`, and says in `deadman` what holds the deadman if no button beside it does.
    """

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        settings: CartesianSettings = rig.teleop
        self._settings = settings
        self._beside = "deadman" in settings.buttons
        self._heading = rotation_from_vector(np.array([0.0, 0.0, settings.heading]))
        self._speeds = np.repeat([settings.speed, settings.turn], 3)
        self._longest = LONGEST * options.period
        self._target = JogTargets(rig)
        self._deadman = Deadman()
        self._driving = self._switching = self._stuck = False
        self._last = -np.inf

    def read(self, now: float) -> Controls | None:
        """What the hand does at ``now`` [s]; None if the hardware is not there."""
        raise NotImplementedError

    def deadman(self, controls: Controls, now: float) -> bool:
        """Whether it is held, by the device itself."""
        return "deadman" in controls.held

    def poll(self, now: float, around: Surroundings) -> Reading:
        duration, self._last = min(now - self._last, self._longest), now
        controls = self.read(now)
        if controls is None:
            self._deadman.step(None)
            self._driving = False
            return Reading(False)
        switching, before = "switch" in controls.held, self._switching
        self._switching = switching
        if switching and not before:
            self._target.switch()
        pressed = frozenset(REQUEST_ROLES) & frozenset(controls.held)
        hand_back = "hand_back" in controls.held
        held = around.deadman if self._beside else self.deadman(controls, now)
        if not self._deadman.step(None if around.measured is None else held):
            self._driving = self._stuck = False
            return Reading(False, None, Mode.RELATIVE, hand_back, pressed)
        if not self._driving:
            self._driving = True
            self._target.restart(around.measured)
        else:
            self._move(controls, duration)
        return Reading(True, self._target.positions, Mode.RELATIVE, hand_back, pressed)

    def _move(self, controls: Controls, duration: float) -> None:
        turned = np.concatenate([self._heading @ part for part in np.split(self._shaped(controls.axes), 2)])
        step = turned * self._speeds * controls.speed * duration
        still = np.zeros(3)
        # What cannot be done in full may be done in part: along a wall, or turning at the end of reach.
        tries = ((step[:3], step[3:]), (step[:3], still), (still, step[3:]))
        self._stuck = bool(step.any()) and not any(
            (translation.any() or rotation.any())
            and self._target.active.step_tool(translation, rotation, duration)
            for translation, rotation in tries
        )
        opening = ("open" in controls.held) - ("close" in controls.held)
        if opening:
            self._target.active.step_gripper(opening * GRIPPER_SPEED * duration)

    def _shaped(self, axes: np.ndarray) -> np.ndarray:
        """[6] without the dead zone, and finer around it: the square of what is left."""
        dead = self._settings.deadzone
        left = np.clip((np.abs(axes) - dead) / (1.0 - dead), 0.0, 1.0)
        return np.sign(axes) * left**2

    @property
    def state(self) -> str:
        return f"moving {self._target.arm.name}" + (", at the end of its reach" if self._stuck else "")
