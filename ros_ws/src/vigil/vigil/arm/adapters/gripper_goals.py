"""Widths as the goals of a gripper that is driven by actions, and not by a stream of setpoints."""

from __future__ import annotations

from dataclasses import dataclass

from vigil.arm.adapters.plan import Plan
from vigil.arm.curves import SECOND
from vigil.rig import ArmConfig

DEADBAND, LAST = 0.003, 0.0005
"""[m] A width has to change by this much to be worth a goal: on its way, and where it comes to rest."""
PAUSE = SECOND // 10
"""[ns] between two goals."""


@dataclass(frozen=True)
class Goal:
    """What a gripper is to do.

    Attributes:
        width: [m], within the limits of the rig file.
        speed: [m/s]
        force: [N] most that it may press with.
        grasp: it closes, perhaps on something.
    """

    width: float
    speed: float
    force: float
    grasp: bool


class GripperGoals:
    """Says when a goal is due: the wanted width has moved on, and the gripper is ready for another goal.

    Args:
        arm: the arm.
        columns: where its columns are in a plan, the gripper last.
        interruptible: a new goal takes the place of the one under way; otherwise that one is waited for.
    """

    def __init__(self, arm: ArmConfig, columns: slice, interruptible: bool) -> None:
        self._column, self._interruptible = columns.stop - 1, interruptible
        limits = arm.gripper.limits
        self._lower, self._upper, self._speed = limits.lower, limits.upper, limits.velocity
        assert arm.gripper.force is not None, "the rig file's model asks for it"
        self._force = arm.gripper.force
        self._width: float | None = None  # of the last goal
        self._busy = False
        self._sent_at = 0

    def due(self, plan: Plan, measured: float, now: int) -> Goal | None:
        """The goal to send now, if one is due.

        Args:
            plan: where the gripper's column comes to rest is the wanted width.
            measured: width [m].
            now: [ns]
        """
        column = plan.positions[:, self._column]
        wanted = min(max(float(column[-1]), self._lower), self._upper)
        last = measured if self._width is None else self._width
        worth = LAST if abs(column[-1] - column[0]) < LAST else DEADBAND
        if abs(wanted - last) < worth or (self._busy and not self._interruptible):
            return None
        if self._width is not None and now - self._sent_at < PAUSE:
            return None
        self._width, self._busy, self._sent_at = wanted, True, now
        return Goal(wanted, self._speed, self._force, grasp=wanted < measured)

    def done(self) -> None:
        """The gripper is ready for another goal."""
        self._busy = False

    def refused(self) -> None:
        """The goal was not accepted: it will be sent again."""
        self._busy, self._width = False, None
