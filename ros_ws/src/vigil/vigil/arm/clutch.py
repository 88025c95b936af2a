"""The operator's commands as targets: a clutch that takes over without a jump."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND, Constant, Curve

JOINT_BLEED, GRIPPER_BLEED = 0.1, 0.5
"""Share of the velocity limit at which an absolute device's offset is bled off."""
SHORTEST_PERIOD, LONGEST_PERIOD = SECOND // 200, SECOND // 8
"""[ns] Time between two commands from which a velocity is taken."""
FIRST_PERIOD = SECOND // 20
"""[ns] Taken for the time between commands until it is known."""


class Mode(IntEnum):
    """How a device's positions are meant. Values equal the constants of ``TeleopCommand``."""

    RELATIVE = 0
    ABSOLUTE = 1


@dataclass(frozen=True)
class OperatorCommand:
    """What ``TeleopCommand`` carries. ``positions``: N values, or none (deadman and buttons only)."""

    stamp: int
    deadman: bool
    mode: int
    names: Sequence[str]
    positions: np.ndarray
    request_hand_back: bool = False


class _Approach:
    """From a state to a command: a cubic that ends at the command with its velocity, and goes on for a while.

    Args:
        start, end: instants [ns].
        position, velocity: [N] at the start.
        command, rate: [N] position and velocity at the end.
        valid: how long beyond the end the next command may be awaited in motion [ns].
    """

    def __init__(
        self,
        start: int,
        position: np.ndarray,
        velocity: np.ndarray,
        end: int,
        command: np.ndarray,
        rate: np.ndarray,
        valid: int,
    ) -> None:
        self._start, self._duration = start, end - start
        self._end, self._valid = end, valid
        self._position, self._command, self._rate = position, command, rate
        self._rest = np.zeros_like(rate)
        scale = self._duration / SECOND
        rise, m0, m1 = command - position, velocity * scale, rate * scale
        self._coefficients = m0, 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Position [N] and velocity [N]."""
        if instant >= self._end:
            beyond = min(instant - self._end, self._valid)
            velocity = self._rate if instant < self._end + self._valid else self._rest
            return self._command + self._rate * (beyond / SECOND), velocity
        s = max(instant - self._start, 0) / self._duration
        c1, c2, c3 = self._coefficients
        position = self._position + s * (c1 + s * (c2 + s * c3))
        return position, (c1 + s * (2 * c2 + 3 * s * c3)) * (SECOND / self._duration)


class Clutch:
    """Maps device positions to targets; the first target after `engage` is the arm's own pose.

    A command is reached one command period after its stamp, by a cubic from the present state: smooth in position and
    velocity whatever the device's rate and jitter.

    RELATIVE: the offset stays constant, and gives way where a limit is met (as a mouse does at the screen's edge), so
    that both ends of every range can be reached. ABSOLUTE: the offset is bled off at a limited rate.

    Args:
        columns: the arm's columns, the gripper last.
        lookahead: how far beyond now targets are asked for [s].
    """

    def __init__(self, columns: Columns, lookahead: float) -> None:
        self._columns = columns
        self._lookahead = lookahead
        self._bleed = np.where(columns.is_gripper, GRIPPER_BLEED, JOINT_BLEED) * columns.velocity
        self._still = np.zeros(len(columns))
        self.engage(self._still)

    def engage(self, position: np.ndarray) -> None:
        """Begin at ``position`` [N]: the next command is taken to mean it."""
        self._anchor = np.array(position, float)
        self._curve: Curve = Constant(self._anchor)
        self._mode: int | None = None
        self._offset, self._offset_since = self._still.copy(), 0
        self._last: tuple[int, np.ndarray] | None = None
        self._mean_rate = self._still

    def check(self, command: OperatorCommand) -> np.ndarray | None:
        """Positions [N] in column order, or None if the command carries none.

        Raises:
            Refused: wrong names, wrong number, not finite, unknown mode.
        """
        values = np.asarray(command.positions, float)
        if values.size == 0:
            return None
        if command.mode not in tuple(Mode):
            raise Refused(
                f"teleop command has mode {command.mode}: allowed are 0 (relative) and 1 (absolute)"
            )
        order = self._columns.order(command.names)
        if values.shape != (len(self._columns),):
            raise Refused(f"teleop command has {values.size} positions for {len(self._columns)} names")
        if not np.isfinite(values).all():
            raise Refused(f"teleop command: {self._columns.describe_non_finite(values)}")
        return values[order]

    def accept(self, command: OperatorCommand, now: int) -> None:
        """Take over a command that was received at ``now`` [ns].

        Raises:
            Refused: as `check`; nothing is changed.
        """
        device = self.check(command)
        if device is None or (self._last is not None and command.stamp <= self._last[0]):
            return
        if command.mode != self._mode:
            self._clutch_in(command, device, now)
        rate, period = self._rate(command.stamp, device)
        if command.mode == Mode.RELATIVE:
            wanted = device + self._offset
            self._offset -= wanted - np.clip(wanted, self._columns.lower, self._columns.upper)
            device = device + self._offset
        end = max(command.stamp + period, now + period // 2)
        self._curve = _Approach(now, *self._curve.at(now), end, device, rate, period)

    def _clutch_in(self, command: OperatorCommand, device: np.ndarray, now: int) -> None:
        if (
            self._mode is not None
        ):  # the device changed its mode on the way: start from the pose it has led to
            self._anchor = self.target(now + int(self._lookahead * SECOND))[0]
        self._mode = command.mode
        self._offset, self._offset_since = self._anchor - device, now
        self._last, self._mean_rate = None, self._still
        # An absolute offset is added to the curve, which then runs in the device's own positions.
        self._curve = Constant(device if command.mode == Mode.ABSOLUTE else self._anchor)

    def _rate(self, stamp: int, device: np.ndarray) -> tuple[np.ndarray, int]:
        last, self._last = self._last, (stamp, device)
        if last is None or not SHORTEST_PERIOD <= stamp - last[0] <= LONGEST_PERIOD:
            self._mean_rate = self._still
            return self._still, FIRST_PERIOD
        period = stamp - last[0]
        before, self._mean_rate = self._mean_rate, (device - last[1]) * (SECOND / period)
        # The mean over the last period is the rate half a period ago: carried on to now, else it ripples.
        rate = self._mean_rate + 0.5 * (self._mean_rate - before)
        return np.clip(rate, -self._columns.velocity, self._columns.velocity), period

    def _left(self, instant: int) -> np.ndarray:
        """[N] what is left of the offset of an absolute device."""
        elapsed = max(instant - self._offset_since, 0) / SECOND
        return np.maximum(np.abs(self._offset) - self._bleed * elapsed, 0.0) * np.sign(self._offset)

    def target(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Position [N] and velocity [N] at ``instant`` [ns], `lookahead` beyond now: the present motion continued."""
        position, velocity = self._curve.at(instant - int(self._lookahead * SECOND))
        position = position + velocity * self._lookahead
        if self._mode == Mode.ABSOLUTE:
            left = self._left(instant)
            position, velocity = position + left, velocity - np.sign(left) * self._bleed
        inside = np.clip(position, self._columns.lower, self._columns.upper)
        return inside, np.where(inside == position, velocity, 0.0)
