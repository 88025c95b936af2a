"""A person's own arm, seen by a body tracker or worn as an exoskeleton: the robot's arm is held as the person's is.

Poses arrive in the order shoulder, elbow, wrist, and where the rig file has ``pinch`` thumb tip and finger tip. Positions
matter as directions only (`vigil.teleop.retarget`), and of the orientations the wrist's alone.
"""

from __future__ import annotations

import numpy as np

from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.teleop.device import (
    BadInput,
    Deadman,
    Device,
    DeviceOptions,
    Fresh,
    Input,
    Mode,
    Reading,
    Sample,
    Surroundings,
)
from vigil.teleop.retarget import Retargeted, directions, retarget
from vigil.teleop.settings import BodySettings

SHOULDER, ELBOW, WRIST, THUMB, FINGER = range(5)
KEPT_BACK = 0.05  # [rad] by a limit, from which it is told


class BodyDevice(Device):
    """Drives one Franka. Its commands move no faster than the joints may, whatever the tracker sees."""

    name = "body"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        settings: BodySettings = rig.teleop
        joints, grip = rig.arm.joints.values(), rig.arm.gripper.limits
        self._settings, self._period = settings, options.period
        self._lower = np.array([joint.lower for joint in joints])
        self._upper = np.array([joint.upper for joint in joints])
        self._fastest = np.array([*(joint.velocity for joint in joints), grip.velocity])
        self._grip = grip
        self._frame, self._hand = rotation_of(settings.frame), rotation_of(settings.hand)
        self._newest = Fresh(settings.timeout)
        self._deadman = Deadman()
        self._command: np.ndarray | None = None  # [8] while it is driven
        self._goal: Retargeted | None = None
        self._silent = True

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input(self._settings.topic, "poses"),)

    def feed(self, topic: str, sample: Sample, now: float) -> None:
        needed = 3 if self._settings.pinch is None else 5
        if len(sample.positions) != needed:
            names = ("shoulder", "elbow", "wrist", "thumb tip", "finger tip")[:needed]
            raise BadInput(
                f"{topic} has {len(sample.positions)} poses, needed are {needed}: {', '.join(names)}"
            )
        turn = sample.quaternions[WRIST]
        if not (np.isfinite(sample.positions).all() and np.isfinite(turn).all()):
            raise BadInput(f"{topic}: a position or the wrist's orientation is not finite")
        if abs(np.linalg.norm(turn) - 1.0) > 0.01:
            raise BadInput(
                f"{topic}: the wrist's quaternion has length {np.linalg.norm(turn):.3g}, needed is 1"
            )
        points = sample.positions @ self._frame.T
        try:
            directions(*points[:3])
        except VigilError as error:
            raise BadInput(f"{topic}: {error}") from None
        self._newest.tell((points, self._frame @ rotation_of(turn) @ self._hand), now)

    def poll(self, now: float, around: Surroundings) -> Reading:
        heard = self._newest.get(now)
        self._silent = heard is None
        ready = heard is not None and around.measured is not None
        if not self._deadman.step(around.deadman if ready else None):
            self._command = self._goal = None
            return Reading(False, None, Mode.ABSOLUTE)
        points, rotation = heard
        # At first the solution closest to the arm, then the one that goes on from it.
        last = around.measured if self._command is None else self._command
        self._goal = retarget(
            *points[:3], rotation, last[:7], self._lower, self._upper, stay=self._command is not None
        )
        goal = np.append(self._goal.q, self._width(points, last[7]))
        if (
            self._command is not None
        ):  # an offset at takeover is bled off by the arm; a jump of the tracker is not
            reach = self._fastest * self._period
            goal = last + np.clip(goal - last, -reach, reach)
        self._command = goal
        return Reading(True, self._command, Mode.ABSOLUTE)

    def _width(self, points: np.ndarray, present: float) -> float:
        pinch = self._settings.pinch
        if pinch is None:
            return present
        apart = float(np.linalg.norm(points[FINGER] - points[THUMB]))
        share = np.clip((apart - pinch.closed) / (pinch.open - pinch.closed), 0.0, 1.0)
        return self._grip.lower + share * (self._grip.upper - self._grip.lower)

    @property
    def state(self) -> str:
        if self._goal is not None and self._goal.clipped > KEPT_BACK:
            return f"a joint is at its limit, {self._goal.clipped:.2f} rad short of the person's arm"
        return f"following {self._settings.topic}"

    @property
    def trouble(self) -> str:
        if not self._silent:
            return ""
        return f"no poses from {self._settings.topic} for more than {self._settings.timeout:g} s: start the tracker"


def rotation_of(quaternion: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Rotation matrix [3, 3] of a quaternion (x, y, z, w), whatever its length."""
    x, y, z, w = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
