"""When the policy ticks: on frames, but at its own mean rate."""

from __future__ import annotations


class Schedule:
    """A grid of due times in stamps. A tick that came a frame late shortens the next interval, so that the mean rate
    is kept; after a gap of more than a period the grid starts anew instead of catching up."""

    def __init__(self, period: int, tolerance: int) -> None:
        """``period`` [ns], 0 for every new stamp; ``tolerance`` [ns]: how early a stamp may be, half a frame."""
        self._period = period
        self._tolerance = min(tolerance, period // 2)
        self.restart()

    def restart(self) -> None:
        """The next stamp is due, whatever it is."""
        self._last: int | None = None
        self._next = 0

    def expects(self, stamp: int) -> bool:
        """Whether a tick may start at a stamp [ns]; changes nothing."""
        if self._last is None or stamp < self._last:  # the first, or the clock began anew
            return True
        return stamp != self._last and stamp >= self._next - self._tolerance

    def due(self, stamp: int) -> bool:
        """True, once, for a stamp [ns] that starts a tick."""
        if not self.expects(stamp):
            return False
        gap = self._last is None or stamp < self._last or stamp > self._next + self._period
        self._next = (stamp if gap else self._next) + self._period
        self._last = stamp
        return True


class Aligned:
    """Due times in lock step: each multiple of the period, once. Simulated time waits there for the policy, and nowhere else."""

    def __init__(self, period: int) -> None:
        """``period`` [ns]."""
        self._period = period
        self.restart()

    def restart(self) -> None:
        """The next multiple is due, whatever it is."""
        self._last: int | None = None

    def expects(self, stamp: int) -> bool:
        """Whether a tick may start at a stamp [ns]; changes nothing."""
        return stamp != self._last and stamp % self._period == 0

    def due(self, stamp: int) -> bool:
        """True, once, for a stamp [ns] that starts a tick."""
        if not self.expects(stamp):
            return False
        self._last = stamp
        return True
