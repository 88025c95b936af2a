"""Periods of the control loop over the last second, and histograms of its times since activation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

MISSED = 1.5
"""A period longer than this many nominal ones is a missed deadline."""
REFRESH = 10
"""Ticks between two evaluations of the percentile."""


EDGES = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.0095, 0.0105, 0.012, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""[s] Lower edges of a histogram's bins; the last one is open. 9.5 to 10.5 ms is a period of 100 Hz within 5 %."""


class Histograms:
    """Counts of times, since the last `restart`.

    Args:
        names: H histograms.

    Attributes:
        names: the same.
        counts: [H, B], B = len(EDGES).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._rows = {name: row for row, name in enumerate(self.names)}
        self.counts = np.zeros((len(self.names), len(EDGES)), np.uint32)

    def restart(self) -> None:
        """Begin anew."""
        self.counts[:] = 0

    def add(self, name: str, seconds: float) -> None:
        """One more time; what clocks that disagree make negative counts as 0."""
        self.counts[self._rows[name], max(bisect_right(EDGES, seconds) - 1, 0)] += 1


class LoopStatistics:
    """Mean, spread and 99th percentile of the period, and missed deadlines; seconds.

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
        self.jitter = 0.0
        self.missed = 0

    def tick(self, instant: int) -> float | None:
        """A control tick began at ``instant`` [ns] of a monotonic clock; the period [s] that it ended."""
        last, self._last = self._last, instant
        if last is None:
            return None
        period = (instant - last) * 1e-9
        self._periods[self._count % self._periods.size] = period
        self._count += 1
        self.missed += period > MISSED * self._nominal
        if self._count % REFRESH == 0:
            ordered = np.sort(self._periods)
            self.mean, self.jitter = float(ordered.mean()), float(ordered.std())
            self.p99 = float(ordered[int(0.99 * (ordered.size - 1))])
        return period
