"""Scores on the sampled chunks: how far the policy disagrees with itself.

`ActionChunkEntropy` is ACE of FIPER (Roemer et al., NeurIPS 2025): entropy instead of variance, because a spread over
two good modes is not uncertainty. `Spread` is that variance, for comparison. `Overlap` compares successive chunks.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from vigil.monitor.features import Features
from vigil.monitor.score import ACTION, Score
from vigil.rig import Positive, Strict

PADDING = 0.01  # of the points' range, on each side of the grid
PUBLISHED_OFFSET = 1e-6  # what the published code adds to every score, so that no threshold is zero


def histogram_entropy(points: np.ndarray, cell: np.ndarray, *, published: bool = False) -> np.ndarray:
    """Plug-in Shannon entropy in bits [...] of the joint histogram of points [..., K, 3] with cells [..., 3].

    The grid of each histogram starts at the minimum of its K points less 1 % of their range. Between 0 and log2 K.
    ``published``: cells are told apart exactly as by the published code, down to the rounding of its edges.
    """
    shape, k = points.shape[:-2], points.shape[-2]
    # Coordinates first: minima, maxima and cell numbers then run along contiguous memory.
    points = np.ascontiguousarray(np.moveaxis(points.reshape(-1, k, 3), -1, 0))
    cell = np.moveaxis(np.broadcast_to(cell, (*shape, 3)).reshape(-1, 1, 3), -1, 0).astype(points.dtype)
    low, high = points.min(axis=-1, keepdims=True), points.max(axis=-1, keepdims=True)
    origin = low - np.asarray(PADDING, points.dtype) * (high - low)
    index = _published_cells(points, origin, cell) if published else (points - origin) / cell
    # Cells beyond 2^20 per side are told apart no longer; three numbers of 20 bits fit into one of 64.
    index = np.minimum(index, 2.0**20).astype(np.int64)
    extent = index.max(axis=-1, keepdims=True) + 1
    cells = (index[0] * extent[1] + index[1]) * extent[2] + index[2]
    # Runs of equal cells in the sorted rows are the histogram's counts, of all rows at once.
    cells.sort(axis=-1)
    first = np.empty(cells.shape, bool)
    first[:, 0] = True
    np.not_equal(cells[:, 1:], cells[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    counts = np.diff(starts, append=cells.size)
    surplus = np.bincount(starts // k, weights=counts * np.log2(counts), minlength=len(cells))
    return np.maximum(np.log2(k) - surplus / k, 0.0).reshape(shape)


def _published_cells(points: np.ndarray, origin: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Cell numbers between edges that are rounded, as ``numpy.arange`` rounds them, to the points' own precision."""
    step = (origin + cell) - origin
    index = np.floor((points - origin) / step)
    index -= points < origin + index * step
    return index + (points >= origin + (index + 1) * step)


class ActionChunkEntropy(Score):
    """Sum over the horizon of the entropy of the samples' gripper positions [bit]; of two arms, the larger."""

    name = "ace"
    kind = ACTION
    least_k = 2

    class Settings(Strict):
        cell: Annotated[
            Positive, Field(description="cell size as a share of the range of each dimension")
        ] = 0.03
        published: Annotated[
            bool, Field(description="mean over the horizon plus 1e-6, as in the published code")
        ] = False

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.cell = np.empty(0)  # [A, 3] m

    def fit(self, episodes: list[Features], seed: int) -> None:
        low = np.min([f.positions.min(axis=(0, 1, 2)) for f in episodes], axis=0)
        high = np.max([f.positions.max(axis=(0, 1, 2)) for f in episodes], axis=0)
        extent = high - low
        # A dimension that never changes gets the largest range; a world without motion any positive one.
        largest = extent.max(axis=-1, keepdims=True)
        extent = np.where(extent > 0, extent, np.where(largest > 0, largest, 1))
        self.cell = extent * np.asarray(self.settings.cell, extent.dtype)

    def score(self, features: Features) -> np.ndarray:
        published = self.settings.published
        # [T, K, H, A, 3] -> one histogram per tick, step and arm
        bits = histogram_entropy(np.moveaxis(features.positions, 1, 3), self.cell, published=published)
        if published:
            return bits.mean(axis=1).max(axis=-1) + PUBLISHED_OFFSET
        return bits.sum(axis=1).max(axis=-1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"cell": self.cell}

    def load(self, arrays: dict[str, np.ndarray], graph: bytes | None = None) -> None:
        self.cell = arrays["cell"]


class Spread(Score):
    """Root mean square distance [m] of the samples' gripper positions from their mean, summed over the horizon."""

    name = "spread"
    kind = ACTION
    least_k = 2
    learns = False

    def score(self, features: Features) -> np.ndarray:
        variance = features.positions.astype(np.float64).var(axis=1).sum(axis=-1)
        return np.sqrt(variance).sum(axis=1).max(axis=-1)


class Overlap(Score):
    """Mean distance [m] between this tick's mean chunk and the last one's, where they overlap in time.

    Temporal consistency as in TIDE, on the mean of the samples. 0 at the first tick, and where nothing overlaps.
    """

    name = "overlap"
    kind = ACTION
    context = 1
    learns = False

    def score(self, features: Features) -> np.ndarray:
        means = features.positions.astype(np.float64).mean(axis=1)  # [T, H, A, 3]
        horizon = means.shape[1]
        result = np.zeros(len(features))
        for tick in range(1, len(features)):
            shift = (features.elapsed[tick] - features.elapsed[tick - 1]) / features.step_dt
            steps = np.arange(horizon)[np.arange(horizon) + shift <= horizon - 1 + 1e-9]
            if len(steps) == 0:
                continue
            at = np.minimum(steps + shift, horizon - 1)
            left = np.minimum(at.astype(int), horizon - 2) if horizon > 1 else np.zeros(len(at), int)
            right = np.minimum(left + 1, horizon - 1)
            part = (at - left)[:, None, None]
            before = (1 - part) * means[tick - 1][left] + part * means[tick - 1][right]
            result[tick] = np.linalg.norm(means[tick][steps] - before, axis=-1).mean(axis=0).max()
        return result
