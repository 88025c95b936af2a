"""What a node tells about itself once a second. Both classes may be used from several threads."""

from __future__ import annotations

import threading
from collections import Counter, deque

import numpy as np


class Window:
    """The newest values of one duration, in s; summaries in ms."""

    def __init__(self, size: int = 300) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._values.append(seconds)

    def summary(self, name: str) -> dict[str, str]:
        """``{name_median_ms, name_p99_ms}``; empty without values."""
        with self._lock:
            values = np.fromiter(self._values, float)
        if not len(values):
            return {}
        median, p99 = np.percentile(values, [50, 99]) * 1e3
        return {f"{name}_median_ms": f"{median:.2f}", f"{name}_p99_ms": f"{p99:.2f}"}


class Troubles:
    """Counts inputs and results that were not used, and keeps the newest reason of each kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._fresh: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, reason: str) -> bool:
        """Count one; True if it is the first of its kind since the last `take_fresh`: worth a line in the log."""
        with self._lock:
            self._counts[kind] += 1
            first = kind not in self._fresh
            self._fresh[kind] = reason
        return first

    def counts(self) -> dict[str, int]:
        """How often each kind came since the start."""
        with self._lock:
            return dict(self._counts)

    def take_fresh(self) -> dict[str, str]:
        """Newest reason by kind since the last call."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        return fresh
