"""Pick and place: the cube is to lie on the tray, at rest, with the gripper open and clear of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vigil.sim import scene

if TYPE_CHECKING:
    from vigil.sim.physics import World

_OPEN = 0.055  # [m] width from which the gripper counts as open
_CLEAR = 0.05  # [m] pinch point above the object's centre
_REST_SPEED = 0.01  # [m/s]
_REST_TIME = 0.2  # [s] that all conditions of success hold
_OFF_TABLE = -0.03  # [m] height of the object's centre


@dataclass(frozen=True)
class TaskStatus:
    """Ground truth of the task; fields as in vigil_msgs/TaskState."""

    phase: str = "approach"  # approach, grasp, carry, place, done
    contact: bool = False
    grasped: bool = False
    success: bool = False
    failure: bool = False
    failure_reason: str = ""
    elapsed: float = 0.0


def on_tray(position: np.ndarray, half: np.ndarray) -> bool:
    """Whether an object with centre ``position`` [3] lies within the tray, on its floor."""
    inside = np.all(np.abs(position[:2] - scene.TRAY_CENTRE) < scene.TRAY_HALF - 0.5 * np.min(half))
    return bool(inside and position[2] - np.min(half) < scene.TRAY_FLOOR + 0.012)


class PickPlace:
    """Follows one episode. Success and failure are latched; whichever comes first stays."""

    name = "pick_place"

    def __init__(self, time_limit: float) -> None:
        self._time_limit = time_limit
        self._rest_since: float | None = None
        self.status = TaskStatus()

    def update(self, world: World, pads: tuple[bool, bool], width: float) -> None:
        """Look at the world after a control period; ``pads``: right and left finger touch the object."""
        cube, half, pinch = world.cube_position, world.cube_half, world.pinch
        contact, both = any(pads), all(pads)
        above_table = cube[2] - np.min(half) > 0.003
        resting_on_tray = on_tray(cube, half)
        grasped = (
            both
            and above_table
            and not (resting_on_tray and cube[2] - np.min(half) < scene.TRAY_FLOOR + 0.002)
        )
        cleared = width > _OPEN and not contact and pinch[2] - cube[2] > _CLEAR
        if resting_on_tray and cleared and world.cube_speed < _REST_SPEED:
            self._rest_since = world.time if self._rest_since is None else self._rest_since
        else:
            self._rest_since = None
        success, failure, reason = self.status.success, self.status.failure, self.status.failure_reason
        if not (success or failure):
            if self._rest_since is not None and world.time - self._rest_since >= _REST_TIME:
                success = True
            elif cube[2] < _OFF_TABLE:
                failure, reason = True, "off_table"
            elif world.time >= self._time_limit:
                failure, reason = True, "timeout"
        over_tray = bool(np.all(np.abs(cube[:2] - scene.TRAY_CENTRE) < scene.TRAY_HALF))
        if success:
            phase = "done"
        elif over_tray and (grasped or resting_on_tray):
            phase = "place"
        elif grasped:
            phase = "carry"
        elif contact or np.linalg.norm(pinch - cube) < 0.04:
            phase = "grasp"
        else:
            phase = "approach"
        self.status = TaskStatus(phase, bool(contact), bool(grasped), success, failure, reason, world.time)
