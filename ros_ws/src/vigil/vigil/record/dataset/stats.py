"""Statistics of features as LeRobot keeps them: per episode, and joined over all episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
KEYS = ("min", "max", "mean", "std", "count", *QUANTILES)
PICTURES = 100  # of an episode that are looked at
STRIDE = 4  # pixels apart, in both directions

Stats = dict[str, np.ndarray]  # by KEYS; `count` has shape [1]


def of_columns(values: np.ndarray) -> Stats:
    """Statistics of numbers [T] or [T, n]; each of shape [n], or [1]."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found["count"] = np.array([len(values)])
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return found | dict(zip(QUANTILES, quantiles, strict=True))


class PictureStats:
    """Statistics of an episode's pictures by channel, in 0 to 1, each of shape [3, 1, 1]; of a sample of the frames."""

    def __init__(self, frames: int) -> None:
        """``frames``: how many there will be."""
        self._every = max(1, -(-frames // PICTURES))
        self._seen = 0
        self._histogram = np.zeros((3, 256), np.int64)
        self._pictures = 0

    def add(self, rgb: np.ndarray) -> None:
        """The next frame, uint8 [height, width, 3]."""
        if self._seen % self._every == 0:
            sample = rgb[::STRIDE, ::STRIDE]
            for channel in range(3):
                self._histogram[channel] += np.bincount(sample[..., channel].ravel(), minlength=256)
            self._pictures += 1
        self._seen += 1

    def stats(self) -> Stats:
        """Exact for the sampled pixels: there are 256 values only. ``count`` is in pictures."""
        levels = np.arange(256) / 255.0
        total = self._histogram.sum(1, keepdims=True)
        share = self._histogram / total
        mean = share @ levels
        found = {
            "min": np.array([levels[row > 0][0] for row in self._histogram]),
            "max": np.array([levels[row > 0][-1] for row in self._histogram]),
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0)),
        }
        cumulated = np.cumsum(share, 1)
        for name, quantile in QUANTILES.items():
            found[name] = levels[[int(np.searchsorted(row, quantile)) for row in np.minimum(cumulated, 1.0)]]
        return {name: value.reshape(3, 1, 1) for name, value in found.items()} | {
            "count": np.array([self._pictures])
        }


def join(parts: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Statistics of all episodes together. Exact but for quantiles, which are means weighted by count, as LeRobot has it."""
    joined: dict[str, Stats] = {}
    for feature in dict.fromkeys(name for part in parts for name in part):
        having = [part[feature] for part in parts if feature in part]
        counts = np.array([float(s["count"][0]) for s in having])
        weight = (counts / counts.sum()).reshape(-1, *[1] * having[0]["mean"].ndim)
        means = np.stack([s["mean"] for s in having])
        mean = (weight * means).sum(0)
        variance = (weight * (np.stack([s["std"] for s in having]) ** 2 + (means - mean) ** 2)).sum(0)
        joined[feature] = {
            "min": np.min([s["min"] for s in having], 0),
            "max": np.max([s["max"] for s in having], 0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": np.array([int(counts.sum())]),
            **{name: (weight * np.stack([s[name] for s in having])).sum(0) for name in QUANTILES},
        }
    return joined


def as_json(stats: Mapping[str, Stats]) -> dict[str, Any]:
    """Content of ``stats.json``."""
    return {name: {key: value.tolist() for key, value in s.items()} for name, s in stats.items()}
