"""Detectors of other papers, as scores, so that ours can be compared with them on the same roll-outs.

`Stac` compares successive batches of chunks; `LogpZO`, `PcaKmeans` and `Mahalanobis` look for new observations. All
are re-implementations from the papers' formulas, so their numbers may differ from the published ones.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vigil.monitor.features import Features
from vigil.monitor.mlp import AdamW, Mlp
from vigil.monitor.score import ACTION, OBSERVATION, Score, hold_out
from vigil.rig import Positive, Strict

Size = Annotated[int, Field(ge=1)]
CLIP = 10.0  # standard deviations, as in `rnd`


class Standardiser:
    """Embeddings [T, E] -> [T, U] float32 of zero mean and unit variance, in standard deviations, within +-10.

    As in `rnd`, features that did not vary in calibration are left out: their first move would outweigh all else.
    """

    def __init__(self) -> None:
        self.used = np.empty(0, bool)  # [E]
        self.mean = self.std = np.empty(0, np.float32)  # [U]

    def fit(self, ticks: np.ndarray) -> None:
        """Learn mean and spread of ticks [T, E]."""
        ticks = np.asarray(ticks, np.float64)
        spread = ticks.std(axis=0)
        self.used = spread > 1e-4 * spread.max()
        if not self.used.any():
            self.used[:] = True
        self.mean = ticks[:, self.used].mean(axis=0).astype(np.float32)
        self.std = np.maximum(spread[self.used], np.finfo(np.float32).tiny).astype(np.float32)

    def __call__(self, ticks: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # beyond single precision is beyond the limit as well
            x = (ticks[:, self.used].astype(np.float32) - self.mean) / self.std
        return np.clip(x, -CLIP, CLIP)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"used": self.used, "mean": self.mean, "std": self.std}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.used, self.mean, self.std = arrays["used"], arrays["mean"], arrays["std"]


def mean_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of samples x [K, D] and y [L, D]: 0 if alike, at most 2.

        mean k(x, x) + mean k(y, y) - 2 mean k(x, y),   k(a, b) = exp(-|a - b|^2 / (2 m))

    where m is the median of the nonzero squared distances in both together (biased estimate; Gretton et al., 2012).
    In single precision: distances below 0.2 % of the largest distance from the common mean count as zero.
    """
    pooled = np.concatenate([x, y]).astype(np.float64)
    # About the mean: far from the origin the squares would cancel to nothing.
    pooled = (pooled - pooled.mean(axis=0)).astype(np.float32)
    squares = np.einsum("kd,kd->k", pooled, pooled)
    distances = pooled @ pooled.T
    distances *= -2
    distances += squares[:, None]
    distances += squares[None]
    distances[distances <= 4e-6 * squares.max()] = 0.0
    apart = distances[distances > 0]
    if len(apart) == 0:
        return 0.0
    distances *= np.float32(-0.5 / np.median(apart))
    kernel = np.exp(distances, out=distances)
    k = len(x)
    within = kernel[:k, :k].mean(dtype=np.float64) + kernel[k:, k:].mean(dtype=np.float64)
    return max(float(within - 2 * kernel[:k, k:].mean(dtype=np.float64)), 0.0)


class Stac(Score):
    """STAC of Sentinel (Agia et al., CoRL 2024): discrepancy of successive batches of chunks where they overlap.

    Of the last tick's samples the steps from now on, of this tick's as many from its beginning; how many steps lie
    between the two ticks is rounded. 0 at the first tick, and where nothing overlaps.

    The published statistic is the sum over the episode. A score knows its tick and the one before only, so that sum
    is left to the window: one as long as the longest episode gives the published form, shorter ones forget.
    """

    name = "stac"
    kind = ACTION
    context = 1
    least_k = 2
    learns = False
    cumulative: ClassVar[bool] = True  # published with a window as long as the episode

    def score(self, features: Features) -> np.ndarray:
        horizon = features.positions.shape[2]
        result = np.zeros(len(features))
        for tick in range(1, len(features)):
            shift = round((features.elapsed[tick] - features.elapsed[tick - 1]) / features.step_dt)
            if not 0 <= shift < horizon:
                continue
            before, now = features.positions[tick - 1 : tick + 1]  # [K, H, ...]
            result[tick] = mean_discrepancy(
                before[:, shift:].reshape(len(before), -1), now[:, : horizon - shift].reshape(len(now), -1)
            )
        return result


class LogpZO(Score):
    """logpZO of FAIL-Detect (Xu et al., RSS 2025): how far a flow from data to noise misplaces an observation.

    A velocity field v is fitted on straight paths from an embedding o to Gaussian noise z:

        x_t = (1 - t) o + t z,   v(x_t, t) -> z - o,   score |o + v(o, 0)|^2

    of the standardised embedding. One Euler step over the whole path should land where noise lies.
    """

    name = "logpzo"
    kind = OBSERVATION

    class Settings(Strict):
        hidden: tuple[Size, ...] = (256, 256)
        epochs: Size = 80
        batch: Size = 128
        rate: Positive = 1e-3
        final_rate: Positive = 1e-5
        decay: Annotated[float, Field(ge=0)] = 1e-5
        patience: Size = 15

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.standardise = Standardiser()
        self.field: Mlp | None = None

    def fit(self, episodes: list[Features], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.standardise.fit(np.concatenate([f.embedding for f in episodes]))
        training, validation = hold_out(episodes, rng)
        x = self._inputs(training)
        held = self._inputs(validation) if validation else x
        size = x.shape[1]
        self.field = self._train(Mlp.orthogonal((size + 3, *self.settings.hidden, size), rng), x, held, rng)

    def score(self, features: Features) -> np.ndarray:
        o = self.standardise(features.embedding)
        landed = o + self.field.forward(_with_time(o, np.zeros((len(o), 1), np.float32)))
        return (landed.astype(np.float64) ** 2).sum(axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.standardise.arrays(), **self.field.arrays("field")}

    def load(self, arrays: dict[str, np.ndarray], graph: bytes | None = None) -> None:
        self.standardise.load(arrays)
        self.field = Mlp.from_arrays(arrays, "field")

    def _inputs(self, episodes: list[Features]) -> np.ndarray:
        return self.standardise(np.concatenate([f.embedding for f in episodes]))

    def _train(self, field: Mlp, x: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> Mlp:
        s = self.settings
        # The same paths at every epoch, and four of each tick: what is compared is the network, not the luck.
        held_inputs, held_target = _paths(np.tile(held, (4, 1)), rng)
        optimiser = AdamW(field.parameters, s.decay)
        best, best_loss, waited = field.copy(), np.inf, 0
        for epoch in range(s.epochs):
            rate = s.final_rate + (s.rate - s.final_rate) * (1 + np.cos(np.pi * epoch / s.epochs)) / 2
            order = rng.permutation(len(x))
            for start in range(0, len(x), s.batch):
                inputs, target = _paths(x[order[start : start + s.batch]], rng)
                trace, out = field.trace(inputs)
                optimiser.step(field.gradients((2 / out.size) * (out - target), trace), rate)
            loss = float(np.mean((field.forward(held_inputs) - held_target) ** 2))
            if loss < best_loss:
                best, best_loss, waited = field.copy(), loss, 0
            else:
                waited += 1
            if waited >= s.patience:
                break
        return best


def _paths(o: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random place on a path to noise from each row of o [B, U]: network inputs [B, U + 3] and targets [B, U]."""
    z = rng.standard_normal(o.shape, np.float32)
    t = rng.random((len(o), 1), np.float32)
    return _with_time((1 - t) * o + t * z, t), z - o


def _with_time(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    turn = np.float32(2 * np.pi) * t
    return np.concatenate([x, t, np.sin(turn), np.cos(turn)], axis=1)


class PcaKmeans(Score):
    """Distance to the nearest of some cluster centres of the embedding's principal components.

    The baseline of that name in FIPER and FAIL-Detect, after Liu et al. (2024). The embedding is taken as it is.
    """

    name = "pca_kmeans"
    kind = OBSERVATION

    class Settings(Strict):
        components: Size = 10
        clusters: Size = 64
        restarts: Size = 4

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.mean = np.empty(0)  # [E]
        self.components = np.empty((0, 0))  # [E, C]
        self.centres = np.empty((0, 0))  # [clusters, C]

    def fit(self, episodes: list[Features], seed: int) -> None:
        rng = np.random.default_rng(seed)
        ticks = np.concatenate([f.embedding for f in episodes]).astype(np.float64)
        self.mean = ticks.mean(axis=0)
        directions = np.linalg.svd(ticks - self.mean, full_matrices=False)[2]
        self.components = directions[: self.settings.components].T
        x = (ticks - self.mean) @ self.components
        runs = [cluster(x, self.settings.clusters, rng) for _ in range(self.settings.restarts)]
        self.centres = min(runs, key=lambda run: run[1])[0]

    def score(self, features: Features) -> np.ndarray:
        x = (features.embedding - self.mean) @ self.components
        return np.sqrt(_square_distances(x, self.centres).min(axis=1))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "components": self.components, "centres": self.centres}

    def load(self, arrays: dict[str, np.ndarray], graph: bytes | None = None) -> None:
        self.mean, self.components, self.centres = arrays["mean"], arrays["components"], arrays["centres"]


def cluster(
    x: np.ndarray, clusters: int, rng: np.random.Generator, rounds: int = 100
) -> tuple[np.ndarray, float]:
    """k-means of x [m, C]: centres [k, C], and the mean squared distance to the nearest.

    Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii, 2007). There are fewer centres than ``clusters`` if
    there are fewer different points.
    """
    chosen = [int(rng.integers(len(x)))]
    nearest = _square_distances(x, x[chosen])[:, 0]
    negligible = 1e-12 * max(nearest.max(), np.finfo(float).tiny)
    while len(chosen) < clusters and nearest.max() > negligible:
        chosen.append(int(rng.choice(len(x), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _square_distances(x, x[chosen[-1:]])[:, 0])
    centres = x[chosen]
    member = np.full(len(x), -1)
    for _ in range(rounds):
        squares = _square_distances(x, centres)
        before, member = member, squares.argmin(axis=1)
        if np.array_equal(before, member):
            break
        # A centre that lost all its points stays where it is; it is a point that was seen.
        counts = np.bincount(member, minlength=len(centres))[:, None]
        sums = np.zeros_like(centres)
        np.add.at(sums, member, x)
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return centres, float(_square_distances(x, centres).min(axis=1).mean())


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[m, n] of rows a [m, C] and b [n, C]; few columns, so the difference itself, which does not cancel."""
    return ((a[:, None] - b[None]) ** 2).sum(axis=-1)


class Mahalanobis(Score):
    """Distance of the standardised embedding from its mean, in standard deviations of its own directions.

    The covariance is shrunk towards a multiple of the identity by as much as Ledoit and Wolf (2004) find best for
    independent ticks. Ticks of one episode are not independent, so that is rather too little than too much.
    """

    name = "mahalanobis"
    kind = OBSERVATION

    def __init__(self, settings: Score.Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.standardise = Standardiser()
        self.mean = np.empty(0)  # [U], 0 but for what the clipping cut off
        self.whitening = np.empty((0, 0))  # [U, U], W with W W' = inverse covariance

    def fit(self, episodes: list[Features], seed: int) -> None:
        ticks = np.concatenate([f.embedding for f in episodes])
        self.standardise.fit(ticks)
        x = self.standardise(ticks).astype(np.float64)
        self.mean = x.mean(axis=0)
        values, vectors = np.linalg.eigh(shrunk_covariance(x - self.mean))
        self.whitening = vectors / np.sqrt(values)

    def score(self, features: Features) -> np.ndarray:
        return np.linalg.norm((self.standardise(features.embedding) - self.mean) @ self.whitening, axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.standardise.arrays(), "centre": self.mean, "whitening": self.whitening}

    def load(self, arrays: dict[str, np.ndarray], graph: bytes | None = None) -> None:
        self.standardise.load(arrays)
        self.mean, self.whitening = arrays["centre"], arrays["whitening"]


def shrunk_covariance(x: np.ndarray, least: float = 1e-4) -> np.ndarray:
    """Covariance [U, U] of centred rows x [m, U], shrunk towards the mean variance (Ledoit and Wolf, 2004).

    At least the share ``least`` is shrunk, which bounds the condition number; no variance at all gives the identity.
    """
    m, size = x.shape
    sample = x.T @ x / m
    variance = np.trace(sample) / size
    if variance <= 0:
        return np.eye(size)
    target = variance * np.eye(size)
    off_target = ((sample - target) ** 2).sum()
    noise = (((x * x).sum(axis=1) ** 2).mean() - (sample**2).sum()) / m
    share = np.clip(noise / off_target, least, 1.0) if off_target > 0 else 1.0
    return share * target + (1 - share) * sample


BASELINES: dict[str, type[Score]] = {score.name: score for score in (Stac, LogpZO, PcaKmeans, Mahalanobis)}
