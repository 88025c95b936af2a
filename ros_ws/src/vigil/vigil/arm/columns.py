"""The arm's columns (joints, then gripper): values are matched to them by name, never by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vigil.rig import JointLimits


class Refused(ValueError):
    """An input that must not move the arm; the text says what was passed and what is allowed."""


class Columns:
    """Names and limits of N columns, in the rig's order. SI units (rad, m).

    Attributes:
        names: N column names.
        lower, upper, velocity, acceleration, jerk: [N] limits.
    """

    def __init__(self, limits: Mapping[str, JointLimits]) -> None:
        self.names = tuple(limits)
        self.limits = tuple(limits.values())
        for field in JointLimits.model_fields:
            setattr(self, field, np.array([getattr(limit, field) for limit in self.limits]))
        self._orders: dict[tuple[str, ...], np.ndarray] = {}

    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def order(self, names: Sequence[str], *, extra_allowed: bool = False) -> np.ndarray:
        """Indices [N] that take values given under ``names`` into column order.

        Raises:
            Refused: a column is missing or repeated, or (unless ``extra_allowed``) a name is unknown.
        """
        key = tuple(names)
        known = self._orders.get(key)
        if known is None:
            known = self._find_order(key)
            if len(self._orders) < 64:  # a sender of ever new names must not fill the memory
                self._orders[key] = known
        if not extra_allowed and len(key) != len(self.names):
            unknown = [name for name in key if name not in self.names]
            raise Refused(f"names {unknown} are not columns of this arm: allowed are {list(self.names)}")
        return known

    def _find_order(self, names: tuple[str, ...]) -> np.ndarray:
        missing = [name for name in self.names if name not in names]
        if missing:
            raise Refused(
                f"columns {missing} are missing: got names {list(names)}, needed {list(self.names)}"
            )
        repeated = [name for name in self.names if names.count(name) > 1]
        if repeated:
            raise Refused(f"columns {repeated} are given more than once in {list(names)}")
        return np.array([names.index(name) for name in self.names])

    def describe_non_finite(self, values: np.ndarray) -> str:
        """Which of ``values`` [..., N] are not finite, in words."""
        bad = ~np.isfinite(values).reshape(-1, len(self))
        names = [name for name, broken in zip(self.names, bad.any(axis=0), strict=True) if broken]
        return f"{int(bad.sum())} values are not finite (columns {names})"
