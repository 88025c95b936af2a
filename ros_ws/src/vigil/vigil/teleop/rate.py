"""How fast something really comes, and how evenly."""

from __future__ import annotations

from collections import deque

import numpy as np

WINDOW = 2.0  # s


class Rate:
    """Rate and jitter of the instants of the last `WINDOW` seconds."""

    def __init__(self) -> None:
        self._instants: deque[float] = deque()

    def note(self, instant: float) -> None:
        """It came at ``instant`` [s]. One that is not later than the last one begins anew: the clock was set."""
        if self._instants and instant <= self._instants[-1]:
            self._instants.clear()
        self._instants.append(instant)
        while instant - self._instants[0] > WINDOW:
            self._instants.popleft()

    def measure(self, now: float) -> tuple[float, float]:
        """(rate [Hz], jitter [s]): the jitter is the standard deviation of the periods. (0, 0) if it does not come any more."""
        if len(self._instants) < 3 or now - self._instants[-1] > WINDOW:
            return 0.0, 0.0
        periods = np.diff(self._instants)
        return float(1.0 / periods.mean()), float(periods.std())
