"""Measured joint states: matched by name, checked, and watched for jumps that no motion explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND

JOINT_MARGIN, GRIPPER_MARGIN = 0.05, 0.03
"""Change between two samples that is never a jump [rad, m]."""
SPEED_MARGIN = 3.0
"""A jump is a change larger than this many times the velocity limit explains."""
LONGEST_GAP = 0.1
"""[s] Motion during a longer silence is not taken for granted: what lies beyond it counts as a jump."""


class Feedback:
    """The newest measured positions.

    Attributes:
        position: [N] rad, m in column order; NaN before the first sample.
        stamp: of the newest sample [ns]; 0 before the first.
        rejected: samples refused since the start.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.position = np.full(len(columns), np.nan)
        self.stamp = 0
        self.rejected = 0
        self._margin = np.full(len(columns), JOINT_MARGIN)
        self._margin[-1] = GRIPPER_MARGIN

    @property
    def heard(self) -> bool:
        """Whether there was a sample."""
        return self.stamp > 0

    def update(self, stamp: int, names: Sequence[str], position: Sequence[float]) -> str:
        """Take a sample over.

        Returns:
            Why it is a jump, in words; empty if it is none.

        Raises:
            Refused: a column is missing, sizes differ, or a value is not finite; the sample is not taken over.
        """
        try:
            order = self._columns.order(names, extra_allowed=True)
            values = np.asarray(position, float)
            if values.shape != (len(names),):
                raise Refused(f"joint_states has {len(names)} names and {values.size} positions")
            values = values[order]
            if not np.isfinite(values).all():
                raise Refused(f"joint_states: {self._columns.describe_non_finite(values)}")
        except Refused:
            self.rejected += 1
            raise
        jump = self._jump(stamp, values) if self.heard else ""
        self.position, self.stamp = values, stamp
        return jump

    def _jump(self, stamp: int, values: np.ndarray) -> str:
        elapsed = (stamp - self.stamp) / SECOND
        if elapsed < 0:
            return f"joint_states went back in time by {-elapsed:.3f} s"
        change = np.abs(values - self.position)
        allowed = self._margin + SPEED_MARGIN * self._columns.velocity * min(elapsed, LONGEST_GAP)
        worst = int(np.argmax(change / allowed))
        if change[worst] <= allowed[worst]:
            return ""
        return (
            f"{self._columns.names[worst]} jumped from {self.position[worst]:.3f} to {values[worst]:.3f} "
            f"within {elapsed:.3f} s"
        )

    def outside(self, tolerance: float) -> str:
        """Which joint is further than ``tolerance`` [rad] outside its limits, in words; empty if none is."""
        columns = self._columns
        beyond = np.maximum(columns.lower - self.position, self.position - columns.upper)[:-1]
        if not beyond.size or beyond.max() <= tolerance:
            return ""
        worst = int(np.argmax(beyond))
        return (
            f"{columns.names[worst]} is at {self.position[worst]:.3f}, outside "
            f"[{columns.lower[worst]}, {columns.upper[worst]}]: move it back by hand"
        )
