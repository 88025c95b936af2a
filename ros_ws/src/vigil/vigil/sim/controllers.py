"""The controllers that ros2_control would run on the robot, as plain objects without ROS.

Times are integers in ns on the controller's clock. Joints are matched by name. What cannot be executed is refused
with a reason and changes nothing: the running motion goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vigil.errors import VigilError

NS = 1_000_000_000


@dataclass(frozen=True)
class Point:
    """One way-point: offset from the trajectory's start [ns], values in the message's joint order."""

    time_from_start: int
    positions: Sequence[float]
    velocities: Sequence[float] = ()


class JointTrajectoryController:
    """joint_trajectory_controller with a position command interface, interpolating from the last desired state."""

    def __init__(self, joints: Sequence[str], position: Sequence[float]) -> None:
        self.joints = tuple(joints)
        self.hold(position)

    def hold(self, position: Sequence[float]) -> None:
        """Drop the trajectory and hold ``position`` [N]."""
        position = np.asarray(position, dtype=float)
        self._times = np.array([0], dtype=np.int64)
        self._positions = position[None].copy()
        self._velocities = np.zeros_like(self._positions)
        self._cubic = np.array([False])

    def accept(self, names: Sequence[str], points: Sequence[Point], stamp: int, now: int) -> None:
        """Replace the running trajectory.

        Args:
            names: the joints, in any order; every joint of the controller exactly once.
            points: way-points; times strictly increase.
            stamp: start of the trajectory [ns]; 0 means now. Way-points already in the past are dropped.
            now: the controller's time [ns].

        Raises:
            VigilError: the trajectory cannot be executed; the running one goes on.
        """
        order = self._order(names)
        if not points:
            raise VigilError("trajectory has no points: send at least one")
        times = np.array([point.time_from_start for point in points], dtype=np.int64)
        if times[0] < 0 or np.any(np.diff(times) <= 0):
            raise VigilError("times of the points must be at least 0 and increase from point to point")
        start = stamp if stamp else now
        times = times + start
        if times[-1] < now:
            raise VigilError(
                f"trajectory ends {(now - times[-1]) / 1e9:.3f} s in the past: use the stamp of the present or 0"
            )
        positions = self._values([p.positions for p in points], "positions", order)
        with_velocity = [len(p.velocities) > 0 for p in points]
        filled = [
            p.velocities if has else np.zeros(len(order))
            for p, has in zip(points, with_velocity, strict=True)
        ]
        velocities = self._values(filled, "velocities", order)
        due = times > now
        if not due.any():
            due[-1] = True
        position, velocity = self.sample(now)
        self._times = np.concatenate([[now], times[due]])
        self._positions = np.concatenate([position[None], positions[due]])
        self._velocities = np.concatenate([velocity[None], velocities[due]])
        self._cubic = np.concatenate([[True], np.array(with_velocity)[due]])

    def sample(self, now: int) -> tuple[np.ndarray, np.ndarray]:
        """Desired position and velocity, [N] each, at time ``now`` [ns]; after the end the last point is held."""
        after = int(np.searchsorted(self._times, now, side="right"))
        if after == len(self._times):
            return self._positions[-1].copy(), np.zeros(len(self.joints))
        if after == 0:
            return self._positions[0].copy(), np.zeros(len(self.joints))
        duration = (self._times[after] - self._times[after - 1]) / NS
        u = (now - self._times[after - 1]) / NS / duration
        p0, p1 = self._positions[after - 1], self._positions[after]
        if not (self._cubic[after] and self._cubic[after - 1]):
            return p0 + u * (p1 - p0), (p1 - p0) / duration
        m0, m1 = self._velocities[after - 1] * duration, self._velocities[after] * duration
        position = (
            (2 * u**3 - 3 * u**2 + 1) * p0
            + (u**3 - 2 * u**2 + u) * m0
            + (3 * u**2 - 2 * u**3) * p1
            + (u**3 - u**2) * m1
        )
        slope = (6 * u**2 - 6 * u) * (p0 - p1) + (3 * u**2 - 4 * u + 1) * m0 + (3 * u**2 - 2 * u) * m1
        return position, slope / duration

    def finished(self, now: int) -> bool:
        """True when the last way-point has been passed."""
        return now >= self._times[-1]

    def _order(self, names: Sequence[str]) -> list[int]:
        names = list(names)
        if sorted(names) != sorted(self.joints):
            raise VigilError(
                f"trajectory names joints {names}; name each of {list(self.joints)} exactly once"
            )
        return [names.index(joint) for joint in self.joints]

    def _values(self, rows: Sequence[Sequence[float]], what: str, order: list[int]) -> np.ndarray:
        for index, row in enumerate(rows):
            if len(row) != len(order):
                raise VigilError(f"point {index} has {len(row)} {what}, expected {len(order)}, one per joint")
        values = np.array([list(row) for row in rows], dtype=float)[:, order]
        if not np.isfinite(values).all():
            raise VigilError(f"{what} hold values that are not finite: nothing was executed")
        return values


class ForwardCommandController:
    """forward_command_controller: holds the newest command."""

    def __init__(self, joints: Sequence[str], position: Sequence[float]) -> None:
        self.joints = tuple(joints)
        self.hold(position)

    def hold(self, position: Sequence[float]) -> None:
        """Hold ``position`` [N]."""
        self._position = np.array(position, dtype=float)

    def accept(self, values: Sequence[float]) -> None:
        """Take a command of N values in the controller's joint order; VigilError if it cannot be executed."""
        if len(values) != len(self.joints):
            raise VigilError(
                f"command has {len(values)} values, expected {len(self.joints)}: {list(self.joints)}"
            )
        command = np.array(values, dtype=float)
        if not np.isfinite(command).all():
            raise VigilError("command holds values that are not finite: nothing was executed")
        self._position = command

    def sample(self) -> np.ndarray:
        """The newest command [N]."""
        return self._position.copy()
