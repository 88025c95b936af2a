"""The published arithmetic, faults included, against plain implementations of what the published code does."""

from __future__ import annotations

import numpy as np
import pytest

from vigil.monitor.calibrate import Recipe, build_detector, fit_scores, split_rollouts
from vigil.monitor.compare import METHODS
from vigil.monitor.entropy import ActionChunkEntropy
from vigil.monitor.features import Features, Kinematics
from vigil.monitor.mlp import Mlp
from vigil.monitor.parity import published_threshold
from vigil.monitor.rnd import RandomNetworkDistillation
from vigil.record.rollout import EndEffector


def episode(rng: np.random.Generator, ticks: int, k: int, horizon: int, *, flat: bool = False) -> Features:
    path = np.cumsum(0.02 * rng.standard_normal((ticks, k, horizon, 1, 3)), axis=2)
    positions = (path + rng.standard_normal((ticks, 1, 1, 1, 3))).astype(np.float32)
    if flat:
        positions[..., 2] = 0
    embedding = rng.standard_normal((ticks, 6)).astype(np.float32)
    return Features(0.4 * np.arange(ticks), embedding, positions, 0.05)


def plain_entropy(points: np.ndarray, cell: np.ndarray) -> float:
    """Bits of [K, 3]: edges by ``arange`` in the points' own precision, cells by search, counts by a dictionary."""
    columns = []
    for x, size in zip(points.T, cell, strict=True):
        pad = 0.01 * (x.max() - x.min())
        edges = np.arange(x.min() - pad, x.max() + pad + size, size)
        columns.append(np.searchsorted(edges, x, side="right"))
    counts: dict[tuple, int] = {}
    for cells in zip(*columns, strict=True):
        counts[cells] = counts.get(cells, 0) + 1
    share = np.array(list(counts.values())) / len(points)
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize(
    ("k", "horizon", "flat"), [(8, 4, False), (32, 8, False), (256, 16, True), (512, 4, False)]
)
def test_entropy(k, horizon, flat):
    rng = np.random.default_rng(k)
    calibration = [episode(rng, 12, k, horizon, flat=flat) for _ in range(3)]
    score = ActionChunkEntropy(ActionChunkEntropy.Settings(published=True))
    score.fit(calibration, seed=0)
    everything = np.concatenate([f.positions.reshape(-1, 3) for f in calibration])
    extent = everything.max(axis=0) - everything.min(axis=0)
    cell = 0.03 * np.where(extent == 0, extent.max(), extent)
    np.testing.assert_allclose(score.cell[0], cell, rtol=1e-7)
    test = episode(rng, 10, k, horizon, flat=flat)
    plain = [
        np.mean([plain_entropy(tick[:, step, 0], score.cell[0]) for step in range(horizon)]) + 1e-6
        for tick in test.positions
    ]
    np.testing.assert_allclose(score.score(test), plain, rtol=1e-6)


def test_distance_between_given_networks():
    rng = np.random.default_rng(0)

    def network(sizes: tuple[int, ...], tail: int) -> Mlp:
        net = Mlp.orthogonal(sizes, rng, tail)
        net.biases = [rng.normal(0, 0.1, b.shape).astype(np.float32) for b in net.biases]
        return net

    def plain(net: Mlp, x: np.ndarray, tail: int) -> np.ndarray:
        hidden = len(net.weights) - 1
        for layer in range(hidden):
            x = x @ net.weights[layer].astype(float) + net.biases[layer]
            x = np.where(x > 0, x, (0.0 if layer >= hidden - tail else 0.01) * x)
        return x @ net.weights[-1].astype(float) + net.biases[-1]

    score = RandomNetworkDistillation(RandomNetworkDistillation.published())
    score.used = np.ones(6, bool)
    score.mean = score.std = np.ones(6, np.float32)
    score.target, score.predictor = network((6, 32, 64, 16), 0), network((6, 32, 64, 32, 16, 16), 2)
    test = episode(rng, 20, 2, 2)
    x = test.embedding.astype(float)
    difference = plain(score.predictor, x, 2) - plain(score.target, x, 0) + 1e-6
    np.testing.assert_allclose(score.score(test), np.linalg.norm(difference, axis=1) + 1e-6, rtol=1e-6)
    stored = RandomNetworkDistillation(score.settings)
    stored.load({}, score.graph())
    np.testing.assert_allclose(stored.score(test), score.score(test), rtol=1e-5)


def test_thresholds_by_hand():
    curves = [np.array([1.0, 5.0]), np.array([2.0, 3.0]), np.array([4.0, 1.0, 1.0])]
    np.testing.assert_allclose(published_threshold(curves, 0.5, "constant"), [4])
    np.testing.assert_allclose(published_threshold(curves, 0.5, "per_step"), [2, 3, 1, 2])
    np.testing.assert_allclose(published_threshold(curves, 0.9, "constant"), [4.8])


def test_band_by_hand():
    """The longest curve leads the first half; the width comes from (mean - score) of the second: too low an edge."""
    longest, second = np.array([2.0, 2.0, 2.0]), np.array([1.0, 3.0])
    others = [np.array([4.0, 0.0]), np.array([4.0, 2.0])]
    mean, modulation = np.array([1.5, 2.5, 2.0]), np.array([0.5, 0.5, 1 / 3])
    deviations = [max((1.5 - 4) / 0.5, (2.5 - 0) / 0.5), max((1.5 - 4) / 0.5, (2.5 - 2) / 0.5)]
    edge = mean + np.quantile(deviations, 0.9) * modulation
    found = published_threshold(
        [
            second,
            longest,
            *others,
        ],
        0.9,
        "band",
    )
    np.testing.assert_allclose(found, np.append(edge, edge.mean()))
    above = published_threshold([second, longest, others[0] * 0 + 9, others[1] * 0 + 9], 0.9, "band")
    assert (above < mean.max()).all(), "successes far above the mean lower the published edge"


@pytest.mark.parametrize("method", ["fiper-published", "fiper-published-step", "fiper-published-band"])
def test_the_detector_alarms_where_both_normalised_scores_pass_one(method, monkeypatch):
    rng = np.random.default_rng(2)
    small = RandomNetworkDistillation.Settings(
        target=(16,), predictor=(16, 16), outputs=8, epochs=3, published=True, standardise=False
    )
    monkeypatch.setattr(RandomNetworkDistillation, "published", classmethod(lambda cls: small))
    calibration = [episode(rng, int(n), 8, 4) for n in rng.integers(6, 12, 9)]
    recipe = METHODS[method].recipe(Recipe(delta=0.1, windows={"rnd": 3, "ace": 2}))
    split = split_rollouts(len(calibration), recipe)
    fitted = fit_scores(calibration, recipe.names, recipe, split)
    kinematics = Kinematics((EndEffector(chain="position", columns=("x", "y", "z")),))
    detector = build_detector(fitted, recipe, split, kinematics)
    test = episode(rng, 20, 8, 4)
    judged = detector.judge(test)
    above = np.ones(len(test), bool)
    for name, width in (("rnd", 3), ("ace", 2)):
        curves = [fitted.curves[name][i] for i in split.calibrate]
        summed = [np.array([c[max(0, t - width + 1) : t + 1].sum() for t in range(len(c))]) for c in curves]
        threshold = published_threshold(summed, 0.9, recipe.style)
        raw = fitted.scores[name].score(test)
        windowed = np.array([raw[max(0, t - width + 1) : t + 1].sum() for t in range(len(raw))])
        limits = np.array([threshold[min(t, len(threshold) - 1)] for t in range(len(raw))])
        above &= windowed / limits > 1
    np.testing.assert_array_equal(judged.alarm, above)
