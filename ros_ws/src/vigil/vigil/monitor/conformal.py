"""Split-conformal thresholds with exact finite-sample ranks.

Of n exchangeable calibration values and one new one, the new one exceeds the ceil((n+1)(1-delta))-th smallest with
probability at most delta (Vovk et al., 2005). Where that rank is larger than n no threshold exists, and none is
invented: `InsufficientCalibration` says how many more roll-outs are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from vigil.errors import VigilError

Curves = Sequence[np.ndarray]
"""Windowed score of each calibration roll-out, [T_i]."""


class InsufficientCalibration(VigilError):
    """Too few calibration roll-outs for the bound that was asked for. ``missing``: how many more are needed."""

    def __init__(self, n: int, delta: float) -> None:
        self.n, self.delta, self.missing = n, delta, required(delta) - n
        can = f"{n} support delta >= {smallest_delta(n):g} at best" if n else "none support no bound"
        super().__init__(
            f"{n} calibration roll-outs cannot bound false alarms at delta = {delta:g}: {required(delta)} successful "
            f"ones are needed, {self.missing} more ({can}). Record more, or raise delta"
        )


def check_delta(delta: float) -> float:
    """``delta`` if it lies strictly between 0 and 1; VigilError otherwise."""
    if not 0 < delta < 1:
        raise VigilError(f"delta is {delta}, must lie between 0 and 1: it bounds the rate of false alarms")
    return delta


def required(delta: float) -> int:
    """Smallest number of calibration roll-outs that supports ``delta``."""
    return max(math.ceil(1 / _exact(check_delta(delta))) - 1, 1)


def smallest_delta(n: int) -> float:
    """Smallest delta, to four decimals, that ``n`` calibration roll-outs support."""
    return math.ceil(1e4 / (n + 1)) / 1e4


def conformal_rank(n: int, delta: float) -> int:
    """ceil((n + 1)(1 - delta)), exactly, for a ``delta`` meant in decimals.

    Raises:
        InsufficientCalibration: the rank is larger than n.
    """
    rank = max(math.ceil((n + 1) * (1 - _exact(check_delta(delta)))), 1)
    if rank > n:
        raise InsufficientCalibration(n, delta)
    return rank


def conformal_quantile(values: Sequence[float] | np.ndarray, delta: float) -> float:
    """The calibration value that a new exchangeable one exceeds with probability at most ``delta``."""
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[conformal_rank(len(ordered), delta) - 1])


def constant_threshold(curves: Curves, delta: float) -> np.ndarray:
    """One threshold [1] for all ticks: bounds the chance that a success exceeds it at any tick."""
    return np.array([conformal_quantile([curve.max() for curve in curves], delta)])


def per_step_threshold(curves: Curves, delta: float) -> np.ndarray:
    """A threshold [T] per tick: bounds the chance of excess at each single tick, not over a whole episode.

    Ends with the last tick that enough roll-outs reached; its last value holds from there on.
    """
    conformal_rank(len(curves), delta)
    values = []
    for tick in range(max(map(len, curves))):
        alive = [curve[tick] for curve in curves if tick < len(curve)]
        if len(alive) < required(delta):
            break
        values.append(conformal_quantile(alive, delta))
    return np.array(values)


def band_shape(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Mean and modulation [T] of a functional band: the mean curve, and the largest excess over it at each tick.

    The modulation is kept above a tenth of its mean, so that a tick at which these few roll-outs happened to agree
    does not decide the band's width.
    """
    mean, excess = [], []
    for tick in range(max(map(len, curves))):
        alive = np.array([curve[tick] for curve in curves if tick < len(curve)])
        mean.append(alive.mean())
        excess.append(alive.max() - alive.mean())
    modulation = np.array(excess)
    floor = 0.1 * modulation.mean()
    return np.array(mean), np.maximum(modulation, floor if floor > 0 else 1.0)


def functional_band(shape: Curves, width: Curves, delta: float) -> np.ndarray:
    """Upper edge [T] of a functional conformal band (Diquigiovanni et al., 2022, upper side only).

    Mean and modulation come from ``shape``, the width from other roll-outs, ``width``: a success crosses the edge at
    any tick with probability at most ``delta``. Its last value holds from its end on.
    """
    mean, modulation = band_shape(shape)
    excess = []
    for curve in width:
        at = np.minimum(np.arange(len(curve)), len(mean) - 1)
        excess.append(((curve - mean[at]) / modulation[at]).max())
    return mean + conformal_quantile(excess, delta) * modulation


def at(threshold: np.ndarray, ticks: int | np.ndarray) -> np.ndarray:
    """The threshold in force at given ticks since the segment's start: past its end, its last value."""
    return threshold[np.minimum(ticks, len(threshold) - 1)]


def _exact(delta: float) -> Fraction:
    return Fraction(str(float(delta)))
