"""The operator's correction that is added to the policy's command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vigil.arm.clutch import Clutch, Mode, OperatorCommand
from vigil.arm.columns import Columns
from vigil.arm.curves import SECOND, ramp

FADE = SECOND // 2
"""[ns] in which a correction leaves after the deadman was released."""


class Correction:
    """Gain times how far the operator has moved the device since the deadman was pressed. Devices are always clutched.

    Args:
        columns: the rig's columns.
        gain: of the operator's motion.
        lookahead: how far beyond now targets are asked for [s].
    """

    def __init__(self, columns: Columns, gain: float, lookahead: float) -> None:
        self._gain = gain
        self._clutch = Clutch(columns, lookahead)
        self._still = np.zeros(len(columns))
        self._left: np.ndarray | None = None  # what a released correction was
        self._released_at = 0
        self._active = False
        self._origin = self._kept = self._still

    def begin(self, position: np.ndarray, instant: int) -> None:
        """The deadman was pressed with the arm at ``position`` [N]; what is left of a correction before it stays."""
        self._kept = self._released(instant)[0]
        self._origin = np.array(position, float)
        self._clutch.engage(self._origin)
        self._active, self._left = True, None

    def accept(self, command: OperatorCommand, now: int) -> None:
        """A command of the operator; Refused as the clutch does."""
        self._clutch.accept(replace(command, mode=int(Mode.RELATIVE)), now)

    def release(self, instant: int) -> None:
        """The deadman was released: the correction fades out."""
        if self._active:
            self._left, self._released_at = self.at(instant)[0], instant
        self._active = False

    def clear(self) -> None:
        """There is no correction, and none is left."""
        self._active, self._left, self._kept = False, None, self._still

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Correction [N] and its velocity [N] at ``instant`` [ns], `lookahead` beyond now."""
        if not self._active:
            return self._released(instant)
        position, velocity = self._clutch.target(instant)
        return self._kept + self._gain * (position - self._origin), self._gain * velocity

    def _released(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        if self._left is None:
            return self._still, self._still
        share = 1.0 - ramp(instant, self._released_at, FADE)
        if share == 0.0:
            self._left = None
            return self._still, self._still
        # As between two chunks, the fade's own velocity is left to the tracker.
        return share * self._left, self._still
