"""The robot's side of the hardware boundary: its controllers, and which of them moves the arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vigil.errors import VigilError
from vigil.sim import scene
from vigil.sim.controllers import NS, ForwardCommandController, JointTrajectoryController, Point
from vigil.sim.physics import CONTROL_PERIOD

SETTLING = NS // 20  # [ns] after a new scene in which commands are refused: they were made for the old one


class RobotHardware:
    """A joint trajectory, a forward position and a gripper controller over one robot.

    The arm's two controllers share one command interface; the one that was commanded last has it, as if the
    controller manager had switched. All times in ns.
    """

    def __init__(self, home: Sequence[float]) -> None:
        """``home``: [8] joints and gripper width at start."""
        home = np.asarray(home, dtype=float)
        self._trajectory = JointTrajectoryController(scene.ARM_JOINTS, home[:7])
        self._forward = ForwardCommandController(scene.ARM_JOINTS, home[:7])
        self._gripper = ForwardCommandController((scene.GRIPPER,), home[7:])
        self._last = home[:7].copy()
        self._uses_forward = False
        self._deaf_until = 0
        self.rejected = 0
        self.last_rejection = ""

    def hold(self, position: Sequence[float], now: int) -> None:
        """New scene at ``now``: drop every command and hold ``position`` [8]."""
        position = np.asarray(position, dtype=float)
        self._trajectory.hold(position[:7])
        self._forward.hold(position[:7])
        self._gripper.hold(position[7:])
        self._last = position[:7].copy()
        self._uses_forward = False
        self._deaf_until = now + SETTLING

    def on_trajectory(self, names: Sequence[str], points: Sequence[Point], stamp: int, now: int) -> bool:
        """A message of the joint trajectory controller; False if it was refused, see ``last_rejection``."""

        def accept() -> None:
            if self._uses_forward:
                self._trajectory.hold(self._last)
            self._trajectory.accept(names, points, stamp, now)
            self._uses_forward = False

        return self._try(accept, now)

    def on_positions(self, values: Sequence[float], now: int) -> bool:
        """A message of the forward position controller: [7] rad."""

        def accept() -> None:
            self._forward.accept(values)
            self._uses_forward = True

        return self._try(accept, now)

    def on_gripper(self, values: Sequence[float], now: int) -> bool:
        """A message of the gripper's controller: [1] width in m."""
        return self._try(lambda: self._gripper.accept(values), now)

    def sample(self, now: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Desired joint positions [7] and velocities [7] at ``now``, and the gripper's width [m]."""
        if self._uses_forward:
            position = self._forward.sample()
            velocity = (position - self._last) / CONTROL_PERIOD
        else:
            position, velocity = self._trajectory.sample(now)
        self._last = position
        return position, velocity, float(self._gripper.sample()[0])

    def _try(self, accept, now: int) -> bool:
        try:
            if now < self._deaf_until:
                raise VigilError("command refused: the scene is new, send one made after it")
            accept()
        except VigilError as error:
            self.rejected += 1
            self.last_rejection = str(error)
            return False
        return True
