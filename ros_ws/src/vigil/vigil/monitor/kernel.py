"""KernCD: how little the successful roll-outs tell about an observation, as a Gaussian process's posterior variance.

    s(x) = k(x, x) - k_x' (K + m lambda I)^-1 k_x

over the m ticks of the roll-outs, with an RBF kernel and the median pairwise distance as its bandwidth. All m ticks
count, through a basis of r of them (deterministic training conditional approximation, Quinonero-Candela and Rasmussen,
2005), so that one tick costs O(r^2) whatever m is. The basis is chosen greedily, where it explains least (pivoted
Cholesky).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from vigil.monitor.features import Features
from vigil.monitor.score import OBSERVATION, Score
from vigil.rig import Positive, Strict


class KernelVariance(Score):
    """Posterior variance of the embedding, between 0 (well known) and 1 (nothing alike was seen)."""

    name = "kernel"
    kind = OBSERVATION

    class Settings(Strict):
        regularisation: Positive = 1e-5
        basis: Annotated[int, Field(ge=2, le=4096, description="r, most ticks kept")] = 384
        bandwidth_scale: Positive = 1.0

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.centres = np.empty((0, 0), np.float32)  # [r, E]
        self.bandwidth = 1.0
        self.weight = np.empty((0, 0))  # [r, r]

    def fit(self, episodes: list[Features], seed: int) -> None:
        x = np.concatenate([f.embedding for f in episodes]).astype(np.float64)
        some = np.random.default_rng(seed).permutation(len(x))[:1000]
        pairs = _square_distances(x[some], x[some])[np.triu_indices(len(some), 1)]
        median = float(np.sqrt(np.median(pairs))) if len(pairs) else 0.0
        self.bandwidth = self.settings.bandwidth_scale * median or 1.0
        chosen = self._pivots(x)
        self.centres = x[chosen].astype(np.float32)
        of_centres = self._kernel(self.centres)
        of_ticks = self._kernel(x)  # [m, r]
        noise = len(x) * self.settings.regularisation
        # Jitter far below the noise: the basis is independent by choice, but single precision centres are not exact.
        prior = of_centres + 1e-7 * np.eye(len(chosen))
        self.weight = np.linalg.inv(prior) - np.linalg.inv(prior + of_ticks.T @ of_ticks / noise)

    def score(self, features: Features) -> np.ndarray:
        k = self._kernel(features.embedding)
        return np.maximum(1.0 - np.einsum("tr,tr->t", k @ self.weight, k), 0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centres": self.centres, "bandwidth": np.float64(self.bandwidth), "weight": self.weight}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.centres, self.weight = arrays["centres"], arrays["weight"]
        self.bandwidth = float(arrays["bandwidth"])

    def _kernel(self, x: np.ndarray) -> np.ndarray:
        return np.exp(-_square_distances(x, self.centres) / (2 * self.bandwidth**2))

    def _pivots(self, x: np.ndarray, tolerance: float = 1e-4) -> list[int]:
        residual = np.ones(len(x))
        factor = np.empty((len(x), min(self.settings.basis, len(x))))
        chosen: list[int] = []
        for column in range(factor.shape[1]):
            pivot = int(np.argmax(residual))
            if residual[pivot] < tolerance:
                break
            k = np.exp(-_square_distances(x, x[pivot : pivot + 1])[:, 0] / (2 * self.bandwidth**2))
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
