"""Windows and thresholds as the published code computes them, faults included, for comparing with published numbers.

What differs from `vigil.monitor.conformal`, and why that is the default:

- quantiles are interpolated, where split conformal prediction calls for an exact rank;
- the band's width is the quantile of (mean - score), the tail on the wrong side of an upper bound;
- past the calibrated length a threshold goes on with the mean of its curve, where the last value was promised;
- thresholds come from the roll-outs that the score was fitted on.

The scores' own part is in the settings: ``published`` of `ace` and `rnd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Style = Literal["constant", "per_step", "band"]
SMALLEST = 1e-7  # modulation below which the band counts as of no width


def published_threshold(curves: Sequence[np.ndarray], quantile: float, style: Style) -> np.ndarray:
    """Threshold [L] from windowed success curves [T_i]; the last value, the mean of the others, holds from its end on."""
    if style == "constant":
        return np.array([np.quantile([curve.max() for curve in curves], quantile)])
    if style == "per_step":
        threshold = np.array([np.quantile(values, quantile) for values in _by_step(curves)])
    else:
        threshold = _band(list(curves), quantile)
    return np.append(threshold, threshold.mean())


def _by_step(curves: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.array([curve[t] for curve in curves if t < len(curve)]) for t in range(max(map(len, curves)))]


def _band(curves: list[np.ndarray], quantile: float) -> np.ndarray:
    longest = curves.pop(max(range(len(curves)), key=lambda i: len(curves[i])))
    half = len(curves) // 2
    first, second = [longest, *curves[:half]], curves[half:]
    mean = np.array([values.mean() for values in _by_step(first)])
    kept = first
    if (len(first) + 1) * quantile <= len(first):
        farthest = np.array([np.abs(curve - mean[: len(curve)]).max() for curve in first])
        kept = [c for c, d in zip(first, farthest, strict=True) if d <= np.quantile(farthest, quantile)]
    modulation = np.empty(len(mean))
    for t in range(len(mean)):
        values = np.array([curve[t] for curve in kept if t < len(curve)])
        modulation[t] = np.abs(values - mean[t]).max() if len(values) else 1 / t
    modulation[modulation < SMALLEST] = 1 / len(longest)
    deviations = []
    for curve in second:
        ticks = min(len(curve), len(mean))
        deviations.append(((mean[:ticks] - curve[:ticks]) / modulation[:ticks]).max())
    return mean + np.quantile(deviations, quantile) * modulation
