"""Whether the robot does what it is told: joints that stay behind, and faults that the robot itself reports."""

from __future__ import annotations

import numpy as np

from vigil.arm.columns import Columns
from vigil.arm.curves import SECOND

FOLLOWING_TIME = SECOND // 5
"""[ns] for which a joint has to be away from its command before the robot counts as stopped."""
MEMORY = 2.0
"""[s] over which the command latency is measured."""
ENOUGH_MOTION = 0.02
"""[rad^2/s^2] Sum of squared velocities, averaged over `MEMORY`, from which on a latency is told."""


class RobotWatch:
    """Tells a robot that stopped by itself: a reflex, a stopped controller, a hand that holds it.

    Args:
        columns: the rig's columns.
        following_error: how far a joint may stay from its command [rad].

    Attributes:
        faults: what robots report of themselves, by arm; an arm without a fault is not in it.
    """

    def __init__(self, columns: Columns, following_error: float) -> None:
        self._columns = columns
        self._following_error = following_error
        self._follows_at = 0  # when the arm was last near its setpoint, or nothing was commanded
        self.faults: dict[str, str] = {}

    def report(self, arm: str, fault: str) -> bool:
        """What a robot says of itself; empty: it is well. True if it is not, and was before."""
        if not fault:
            self.faults.pop(arm, None)
            return False
        new = arm not in self.faults
        self.faults[arm] = fault
        return new

    @property
    def fault(self) -> str:
        """Reported faults in words, with the way out; empty if there is none."""
        if not self.faults:
            return ""
        told = "; ".join(f"{arm}: {fault}" for arm, fault in self.faults.items())
        return f"{told}: make the robot safe, then call arm/recover"

    def follows(self, now: int) -> None:
        """Nothing is commanded: nothing has to be followed."""
        self._follows_at = now

    def stopped(self, setpoint: np.ndarray, measured: np.ndarray, now: int) -> str:
        """Why the robot seems to have stopped without a command, in words; empty if it follows. [N] each."""
        gap = np.abs(setpoint - measured)
        gap[self._columns.is_gripper] = 0.0
        worst = int(np.argmax(gap))
        if gap[worst] <= self._following_error:
            self._follows_at = now
        if now - self._follows_at <= FOLLOWING_TIME:
            return ""
        return (
            f"{self._columns.names[worst]} is {gap[worst]:.2f} rad from its command: the robot has stopped by itself "
            "(a reflex, a stopped controller) or is held; clear that, then engage"
        )


class CommandLatency:
    """How far the measured pose is behind the command, in time.

    A pose that is L late lies L * v behind a command that moves at velocity v. L is the least-squares solution over the
    joints and the last seconds (exponentially weighted): sum of v * (command - measured) over sum of v^2. Where
    nothing moves nothing is learned.

    Args:
        columns: the rig's columns.
        period: control period [s].
    """

    def __init__(self, columns: Columns, period: float) -> None:
        self._joints = ~columns.is_gripper
        self._keep = 1.0 - period / MEMORY
        self._lag = self._motion = 0.0

    def add(self, command: np.ndarray, velocity: np.ndarray, measured: np.ndarray) -> None:
        """One period: setpoint [N], its velocity [N], and the measured pose [N] of the same instant."""
        velocity = velocity[self._joints]
        behind = (command - measured)[self._joints]
        self._lag = self._keep * self._lag + (1.0 - self._keep) * float(velocity @ behind)
        self._motion = self._keep * self._motion + (1.0 - self._keep) * float(velocity @ velocity)

    @property
    def seconds(self) -> float | None:
        """[s], 0 to 0.5; None before there was motion enough."""
        if self._motion < ENOUGH_MOTION:
            return None
        return min(max(self._lag / self._motion, 0.0), 0.5)
