"""Sum of a score over its last w ticks, online and for a whole segment.

Before w ticks have passed the sum runs over those there are.
"""

from __future__ import annotations

from collections import deque

import numpy as np

GRID = (1, 2, 3, 4, 5, 7, 9, 11, 13, 15, *range(20, 51, 5))
"""Window lengths to choose from [ticks]."""


class Window:
    """Running sum of the last ``width`` values."""

    def __init__(self, width: int) -> None:
        self.values: deque[float] = deque(maxlen=width)

    def push(self, value: float) -> float:
        """Add one value and return the sum. Summed anew every time, so no error can build up."""
        self.values.append(value)
        return float(sum(self.values))

    def clear(self) -> None:
        self.values.clear()


def windowed(scores: np.ndarray, width: int) -> np.ndarray:
    """Sums over the last ``width`` rows of scores [T, ...]; same shape, float64."""
    total = np.cumsum(np.asarray(scores, np.float64), axis=0)
    result = total.copy()
    result[width:] -= total[:-width]
    return result


def choose_window(curves: list[np.ndarray], grid: tuple[int, ...] = GRID, patience: int = 25) -> int:
    """Window that finds a sustained rise of the score soonest, judged on successful roll-outs alone.

    To success curves [T] a step of 2, 4 and 8 standard deviations is added from a quarter, half and three quarters of the
    episode on; the episode is thought to go on at its mean, as failing ones do. The threshold is what 95 % of the
    successes stay below. A short window has a high threshold relative to the step, a long one sums slowly: the width with
    the smallest mean delay wins, ``patience`` ticks being counted for a miss. Widths above half of the median length are
    no candidates: such a sum mostly tells how long the episode has lasted.
    """
    spread = float(np.std(np.concatenate(curves))) or 1.0
    widest = max(np.median([len(curve) for curve in curves]) / 2, grid[0])
    rising = np.arange(1, patience + 1)
    best, best_delay = grid[0], np.inf
    for width in (width for width in grid if width <= widest):
        threshold = np.quantile([windowed(curve, width).max() for curve in curves], 0.95, method="higher")
        delays = []
        for curve in curves:
            longer = windowed(np.concatenate([curve, np.full(patience, curve.mean())]), width)
            for onset in {len(curve) // 4, len(curve) // 2, 3 * len(curve) // 4}:
                after = longer[onset : onset + patience]
                for step in (2.0, 4.0, 8.0):
                    above = after + step * spread * np.minimum(rising, width) > threshold
                    delays.append(int(np.argmax(above)) if above.any() else patience)
        delay = float(np.mean(delays))
        if delay < best_delay - 1e-9:
            best, best_delay = width, delay
    return best
