"""KernCD: how little the successful roll-outs tell about an observation, as a Gaussian process's posterior variance.

    s(x) = k(x, x) - k_x' (K + m lambda I)^-1 k_x

over the m ticks of the roll-outs, with an RBF kernel and the median pairwise distance as its bandwidth. All m ticks
count, through a basis of r of them (deterministic training conditional approximation, Quinonero-Candela and Rasmussen,
2005), so that one tick costs O(r^2) whatever m is. The basis is chosen greedily, where it explains least (pivoted
Cholesky).

Leaving an episode out needs no second fit: its ticks are taken out of the Gram matrix, and out of the basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vigil.monitor.features import Features
from vigil.monitor.score import OBSERVATION, Score
from vigil.rig import Positive, Strict

JITTER = 1e-7  # far below the noise: the basis is independent by choice, but single precision centres are not exact
SUBSET = 1000  # ticks, or chunks, among which the median distance is taken
RECALL = 40  # ticks that `dwell` looks back


class KernelVariance(Score):
    """Posterior variance of the embedding, between 0 (well known) and 1 (nothing alike was seen)."""

    name = "kernel"
    kind = OBSERVATION

    class Settings(Strict):
        regularisation: Positive = 1e-5
        basis: Annotated[int, Field(ge=2, le=4096, description="r, most ticks kept")] = 384
        bandwidth_scale: Positive = 1.0
        actions: Annotated[
            Literal["none", "path", "fourier"],
            Field(
                description="second block of the kernel: none, the mean chunk's path from its start, or the mean of "
                "random Fourier features of the chunks' paths"
            ),
        ] = "none"
        frequencies: Annotated[int, Field(ge=1, description="of `fourier`")] = 64
        dwell: Annotated[
            Literal[True, False],
            Field(
                description="another block: for how many of the last 40 ticks the embedding was about the same"
            ),
        ] = False
        dwell_radius: Annotated[Positive, Field(description="what is about the same, in bandwidths")] = 0.5

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.bandwidth = 1.0  # of the embedding
        self.action_bandwidth = self.dwell_bandwidth = 1.0
        self.waves = np.empty((0, 0), np.float32)  # [H * A * 3, frequencies], rad per m
        self.phases = np.empty(0, np.float32)  # [frequencies]
        self.centres = np.empty((0, 0), np.float32)  # [r, inputs]
        self.weight = np.empty((0, 0))  # [r, r]

    def fit(self, episodes: list[Features], seed: int) -> None:
        self._fit(episodes, seed)

    def cross_scores(self, episodes: list[Features], folds: int, seed: int) -> list[np.ndarray]:
        """As `Score.cross_scores`, leaving out one episode at a time whatever ``folds`` is, in closed form."""
        gram = self._fit(episodes, seed)
        result, end = [], 0
        for episode in episodes:
            start, end = end, end + len(episode)
            mine = (gram.chosen >= start) & (gram.chosen < end)
            rows = gram.of_ticks[start:end]
            others = gram.total - rows.T @ rows
            weight = _weight(
                gram.prior[np.ix_(~mine, ~mine)],
                others[np.ix_(~mine, ~mine)],
                (len(gram.of_ticks) - len(rows)) * self.settings.regularisation,
            )
            result.append(_variance(rows[:, ~mine], weight))
        return result

    def score(self, features: Features) -> np.ndarray:
        return _variance(_rbf(self._inputs(features), self.centres), self.weight)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "bandwidth": np.float64(self.bandwidth),
            "action_bandwidth": np.float64(self.action_bandwidth),
            "dwell_bandwidth": np.float64(self.dwell_bandwidth),
            "waves": self.waves,
            "phases": self.phases,
            "centres": self.centres,
            "weight": self.weight,
        }

    def load(self, arrays: dict[str, np.ndarray], graph: bytes | None = None) -> None:
        for name in ("bandwidth", "action_bandwidth", "dwell_bandwidth"):
            setattr(self, name, float(arrays[name]))
        self.waves, self.phases = arrays["waves"], arrays["phases"]
        self.centres, self.weight = arrays["centres"], arrays["weight"]

    def _fit(self, episodes: list[Features], seed: int) -> _Gram:
        rng = np.random.default_rng(seed)
        embedding = np.concatenate([f.embedding for f in episodes])
        self.bandwidth = self.settings.bandwidth_scale * _median_distance(embedding, rng)
        if self.settings.actions == "fourier":
            paths = np.concatenate([_paths(f)[:, :: max(f.positions.shape[1] // 8, 1)] for f in episodes])
            paths = paths.reshape(-1, paths.shape[-1])
            size = (paths.shape[1], self.settings.frequencies)
            self.waves = (rng.standard_normal(size) / _median_distance(paths, rng)).astype(np.float32)
            self.phases = rng.uniform(0, 2 * np.pi, self.settings.frequencies).astype(np.float32)
        if self.settings.actions != "none":
            actions = np.concatenate([self._actions(f) for f in episodes])
            self.action_bandwidth = self.settings.bandwidth_scale * _median_distance(actions, rng)
        if self.settings.dwell:
            dwell = np.concatenate([self._dwell(f) for f in episodes])
            self.dwell_bandwidth = self.settings.bandwidth_scale * _median_distance(dwell, rng)
        x = np.concatenate([self._inputs(f) for f in episodes])
        chosen = _pivots(x, self.settings.basis)
        self.centres = x[chosen].astype(np.float32)
        of_ticks = _rbf(x, self.centres)
        gram = _Gram(np.array(chosen), _rbf(self.centres, self.centres), of_ticks, of_ticks.T @ of_ticks)
        self.weight = _weight(gram.prior, gram.total, len(x) * self.settings.regularisation)
        return gram

    def _inputs(self, features: Features) -> np.ndarray:
        """[T, inputs], scaled so that the kernel's bandwidth is 1: a product of kernels is one kernel on both."""
        blocks = [np.asarray(features.embedding, np.float64) / self.bandwidth]
        if self.settings.actions != "none":
            blocks.append(self._actions(features) / self.action_bandwidth)
        if self.settings.dwell:
            blocks.append(self._dwell(features) / self.dwell_bandwidth)
        return np.concatenate(blocks, axis=1)

    def _dwell(self, features: Features) -> np.ndarray:
        """[T, 1], the sum over the last `RECALL` ticks of how alike (0 to 1) their embeddings were to this one's."""
        seen = features.seen()[-len(features) - RECALL :]
        scale = self.bandwidth * self.settings.dwell_radius
        alike = _rbf(seen[len(seen) - len(features) :] / scale, seen / scale)
        # Row t of the batch is number p + t of what was seen; it looks back, and not at itself.
        age = np.arange(len(seen) - len(features), len(seen))[:, None] - np.arange(len(seen))
        return np.where((age > 0) & (age <= RECALL), alike, 0.0).sum(axis=1, keepdims=True)

    def _actions(self, features: Features) -> np.ndarray:
        paths = _paths(features)
        if self.settings.actions == "path":
            return paths.mean(axis=1, dtype=np.float64)
        waves = np.cos(paths @ self.waves + self.phases).mean(axis=1, dtype=np.float64)
        return waves * np.sqrt(2 / self.settings.frequencies)


class KernelActions(KernelVariance):
    """The same with the chunks beside the embedding: new is also a known observation answered in an unknown way."""

    name = "kernel_actions"

    class Settings(KernelVariance.Settings):
        actions: Literal["path", "fourier"] = "path"


class KernelDwell(KernelVariance):
    """The same with the time that the scene has stayed as it is: new is also a known observation that does not pass.

    A policy that is stuck sees nothing new. How long a success stays at each observation is part of what it looks like.
    """

    name = "kernel_dwell"
    recall = RECALL

    class Settings(KernelVariance.Settings):
        dwell: Literal[True] = True


@dataclass(frozen=True)
class _Gram:
    """Kernel matrices of a fit: r of m ticks are the basis."""

    chosen: np.ndarray  # [r], their numbers
    prior: np.ndarray  # [r, r], among themselves
    of_ticks: np.ndarray  # [m, r]
    total: np.ndarray  # [r, r], of_ticks' of_ticks


def _weight(prior: np.ndarray, gram: np.ndarray, noise: float) -> np.ndarray:
    prior = prior + JITTER * np.eye(len(prior))
    return np.linalg.inv(prior) - np.linalg.inv(prior + gram / noise)


def _variance(k: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.einsum("tr,tr->t", k @ weight, k), 0.0)


def _paths(features: Features) -> np.ndarray:
    """Every chunk relative to the mean start of its tick, [T, K, H * A * 3] m."""
    start = features.positions[:, :, :1].mean(axis=1, keepdims=True)
    return (features.positions - start).reshape(*features.positions.shape[:2], -1)


def _median_distance(x: np.ndarray, rng: np.random.Generator) -> float:
    some = x[rng.permutation(len(x))[:SUBSET]]
    pairs = _square_distances(some, some)[np.triu_indices(len(some), 1)]
    return (float(np.sqrt(np.median(pairs))) if len(pairs) else 0.0) or 1.0


def _rbf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * _square_distances(a, b))


def _pivots(x: np.ndarray, most: int, tolerance: float = 1e-4) -> list[int]:
    residual = np.ones(len(x))
    factor = np.empty((len(x), min(most, len(x))))
    chosen: list[int] = []
    for column in range(factor.shape[1]):
        pivot = int(np.argmax(residual))
        if residual[pivot] < tolerance:
            break
        k = _rbf(x, x[pivot : pivot + 1])[:, 0]
        k -= factor[:, :column] @ factor[pivot, :column]
        factor[:, column] = k / np.sqrt(residual[pivot])
        residual = np.maximum(residual - factor[:, column] ** 2, 0.0)
        residual[pivot] = 0.0
        chosen.append(pivot)
    return chosen


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0.0)
