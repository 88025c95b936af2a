"""The arm's columns (joints, then gripper): values are matched to them by name, never by index."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vigil.joints import BadNames, ByName
from vigil.rig import JointLimits, RigConfig


class Refused(ValueError):
    """An input that must not move the arm; the text says what was passed and what is allowed."""


class Columns:
    """Names and limits of N columns, in the rig's order. SI units (rad, m).

    Attributes:
        names: N column names.
        is_gripper: [N] bool.
        lower, upper, velocity, acceleration, jerk: [N] limits.
    """

    def __init__(self, limits: Mapping[str, JointLimits], grippers: Collection[str]) -> None:
        self.names = tuple(limits)
        self.is_gripper = np.array([name in grippers for name in self.names])
        self.limits = tuple(limits.values())
        for field in JointLimits.model_fields:
            setattr(self, field, np.array([getattr(limit, field) for limit in self.limits]))
        self._by_name = ByName(self.names)

    @classmethod
    def of(cls, rig: RigConfig) -> Columns:
        """The columns of a rig."""
        return cls(rig.limits, rig.gripper_columns)

    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def order(self, names: Sequence[str]) -> np.ndarray:
        """Indices [N] that take values given under ``names`` into column order.

        Raises:
            Refused: a column is missing or repeated, or a name is unknown.
        """
        try:
            order = self._by_name.order(names)
        except BadNames as error:
            raise Refused(f"columns: {error}") from None
        if len(names) != len(self.names):
            unknown = [name for name in names if name not in self.names]
            raise Refused(f"names {unknown} are not columns of this arm: allowed are {list(self.names)}")
        return order

    def describe_non_finite(self, values: np.ndarray) -> str:
        """Which of ``values`` [..., N] are not finite, in words."""
        bad = ~np.isfinite(values).reshape(-1, len(self))
        names = [name for name, broken in zip(self.names, bad.any(axis=0), strict=True) if broken]
        return f"{int(bad.sum())} values are not finite (columns {names})"
