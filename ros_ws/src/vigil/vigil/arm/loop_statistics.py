"""Periods of the control loop over the last second."""

from __future__ import annotations

import numpy as np

MISSED = 1.5
"""A period longer than this many nominal ones is a missed deadline."""
REFRESH = 10
"""Ticks between two evaluations of the percentile."""


class LoopStatistics:
    """Mean and 99th percentile of the period, and missed deadlines; seconds.

    Args:
        period: nominal control period [s].
    """

    def __init__(self, period: float) -> None:
        self._nominal = period
        self._periods = np.full(max(int(1.0 / period), 1), period)
        self.restart()

    def restart(self) -> None:
        """Begin anew (at activation)."""
        self._periods[:] = self._nominal
        self._count = 0
        self._last: int | None = None
        self.mean = self.p99 = self._nominal
        self.missed = 0

    def tick(self, instant: int) -> None:
        """A control tick began at ``instant`` [ns] of a monotonic clock."""
        last, self._last = self._last, instant
        if last is None:
            return
        period = (instant - last) * 1e-9
        self._periods[self._count % self._periods.size] = period
        self._count += 1
        self.missed += period > MISSED * self._nominal
        if self._count % REFRESH == 0:
            ordered = np.sort(self._periods)
            self.mean = float(ordered.mean())
            self.p99 = float(ordered[int(0.99 * (ordered.size - 1))])
