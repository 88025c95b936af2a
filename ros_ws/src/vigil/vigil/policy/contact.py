"""Whether a gripper holds something, from what it was told and what it measures: no force sensor is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isfinite, nan

from vigil.arm.curves import SECOND

FREE_FOR = 0.2
"""[s] for which no gripper may have held anything before motion counts as free: fingers that open still touch at first."""


class Contact:
    """Knows of every gripper whether its measured width stays above its commanded one.

    One that is closing looks the same as one that has closed on something, until it arrives: both count as contact, since what it
    closes on is what the policy is after.

    Args:
        grippers: their columns.
        margin: [m] by which the measured width of a gripper that holds something is above the commanded one.
    """

    def __init__(self, grippers: Collection[str], margin: float) -> None:
        self._grippers, self._margin = tuple(grippers), margin
        self._free_since: int | None = None
        self._held = "nothing is known of the grippers yet"

    def update(
        self, now: int, names: Sequence[str], commanded: Sequence[float], measured: Sequence[float]
    ) -> None:
        """Commanded and measured columns [N] at ``now`` [ns]; rad, m. A gripper that is not told may hold anything."""
        told = dict(zip(names, zip(commanded, measured, strict=False), strict=False))
        held = []
        for gripper in self._grippers:
            target, width = told.get(gripper, (nan, nan))
            if not width - target <= self._margin:
                held.append(
                    f"{gripper} is {width * 1e3:.0f} mm wide, {(width - target) * 1e3:.0f} mm more than commanded"
                    if isfinite(width - target)
                    else f"nothing is known of {gripper}"
                )
        if held:
            self._held, self._free_since = "; ".join(held), None
        elif self._free_since is None or now < self._free_since:
            self._free_since = now

    def ongoing(self, now: int) -> str:
        """What is in contact at ``now`` [ns], in words; empty in free motion."""
        if self._free_since is None:
            return self._held
        if now - self._free_since < FREE_FOR * SECOND:
            return f"{self._held}, until {(now - self._free_since) / SECOND:.1f} s ago"
        return ""
