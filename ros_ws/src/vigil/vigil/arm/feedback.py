"""Measured joint states: matched by name, checked, and watched for jumps that no motion explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND
from vigil.joints import BadJointState, JointSource

JOINT_MARGIN, GRIPPER_MARGIN = 0.05, 0.03
"""Change between two samples that is never a jump [rad, m]."""
SPEED_MARGIN = 3.0
"""A jump is a change larger than this many times the velocity limit explains."""
LONGEST_GAP = 0.1
"""[s] Motion during a longer silence is not taken for granted: what lies beyond it counts as a jump."""


class Feedback:
    """The newest measured positions.

    Args:
        columns: the rig's columns.
        sources: where they are told; together they tell every column.

    Attributes:
        position: [N] rad, m in column order; NaN before the first sample.
        stamps: of the newest sample of each source [ns]; 0 before the first.
        rejected: samples refused since the start.
    """

    def __init__(self, columns: Columns, sources: Sequence[JointSource]) -> None:
        self._columns = columns
        self._sources = tuple(sources)
        self._parts = [np.array([columns.names.index(name) for name in s.columns]) for s in sources]
        self.position = np.full(len(columns), np.nan)
        self.stamps = [0] * len(self._sources)
        self.rejected = 0
        self._margin = np.where(columns.is_gripper, GRIPPER_MARGIN, JOINT_MARGIN)

    @property
    def heard(self) -> bool:
        """Whether every column is known."""
        return all(self.stamps)

    def update(self, stamp: int, names: Sequence[str], position: Sequence[float], source: int = 0) -> str:
        """Take a sample of one source over.

        Returns:
            Why it is a jump, in words; empty if it is none.

        Raises:
            Refused: a column is missing, sizes differ, or a value is not finite; the sample is not taken over.
        """
        try:
            values = self._sources[source].read(names, position)
        except BadJointState as error:
            self.rejected += 1
            raise Refused(str(error)) from None
        jump = self._jump(source, stamp, values) if self.stamps[source] else ""
        # A new array: who has taken the old one keeps what was measured then.
        measured = self.position.copy()
        measured[self._parts[source]] = values
        self.position, self.stamps[source] = measured, stamp
        return jump

    def _jump(self, source: int, stamp: int, values: np.ndarray) -> str:
        elapsed = (stamp - self.stamps[source]) / SECOND
        if elapsed < 0:
            return f"joint_states went back in time by {-elapsed:.3f} s"
        part = self._parts[source]
        change = np.abs(values - self.position[part])
        allowed = self._margin[part] + SPEED_MARGIN * self._columns.velocity[part] * min(elapsed, LONGEST_GAP)
        worst = int(np.argmax(change / allowed))
        if change[worst] <= allowed[worst]:
            return ""
        return (
            f"{self._columns.names[part[worst]]} jumped from {self.position[part[worst]]:.3f} to "
            f"{values[worst]:.3f} within {elapsed:.3f} s"
        )

    def outside(self, tolerance: float) -> str:
        """Which joint is further than ``tolerance`` [rad] outside its limits, in words; empty if none is."""
        columns = self._columns
        beyond = np.maximum(columns.lower - self.position, self.position - columns.upper)
        beyond[columns.is_gripper] = -np.inf
        worst = int(np.argmax(beyond))
        if not beyond[worst] > tolerance:
            return ""
        return (
            f"{columns.names[worst]} is at {self.position[worst]:.3f}, outside "
            f"[{columns.lower[worst]}, {columns.upper[worst]}]: move it back by hand"
        )
