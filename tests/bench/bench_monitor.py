"""Cost of one monitor tick on one core, beside a plain per-step histogram of the same entropy.

    .venv/bin/python tests/bench/bench_monitor.py

The ratio to the plain implementation, measured in the same run, is what can be compared between machines.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from vigil.monitor.detector import Channel, Detector
from vigil.monitor.entropy import PADDING, ActionChunkEntropy, histogram_entropy
from vigil.monitor.features import Evidence, Features, Kinematics
from vigil.monitor.kernel import RECALL, KernelDwell
from vigil.monitor.rnd import RandomNetworkDistillation
from vigil.monitor.score import Score
from vigil.record.rollout import EndEffector

JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
NAMES = (*JOINTS, "gripper")
HOME = np.array([0.0, -0.4, 0.0, -2.2, 0.0, 1.8, 0.7854, 0.085])
ARM = Kinematics((EndEffector(chain="franka", columns=JOINTS, tool_offset=(0.0, 0.0, 0.1488)),))
HORIZON, DIMENSION, TICKS, STEP_DT = 16, 128, 2500, 0.05


def plain_entropy(points: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Entropy [H] of points [H, K, 3], one `numpy.histogramdd` per step."""
    result = []
    for step in points:
        low, high = step.min(0), step.max(0)
        origin = low - PADDING * (high - low)
        bins = [
            np.arange(np.floor((h - o) / c) + 2) * c + o for h, o, c in zip(high, origin, cell, strict=True)
        ]
        counts, _ = np.histogramdd(step, bins=bins)
        share = counts[counts > 0] / len(step)
        result.append(-(share * np.log2(share)).sum())
    return np.array(result)


def fitted_scores(rng: np.random.Generator) -> dict[str, Score]:
    """Scores fitted on ticks of a 20-dimensional manifold. Training quality does not matter for the time."""
    causes = rng.standard_normal((TICKS, 20))
    embedding = np.tanh(causes @ rng.standard_normal((20, DIMENSION)) / 4).astype(np.float32)
    samples = chunks(rng, 8)
    points = ARM.positions(samples, NAMES, STEP_DT)[None]
    points = np.broadcast_to(points, (TICKS, *points.shape[1:]))
    episode = Features(np.arange(TICKS) * 0.2, embedding, points, STEP_DT)
    settings = RandomNetworkDistillation.Settings(epochs=2)
    scores = {
        "rnd": RandomNetworkDistillation(settings),
        "kernel_dwell": KernelDwell(),
        "ace": ActionChunkEntropy(),
    }
    for score in scores.values():
        score.fit([episode], seed=0)
    stored = RandomNetworkDistillation(settings)
    stored.load({}, scores["rnd"].graph())  # as a calibrated monitor runs it
    return scores | {"rnd": stored}


def chunks(rng: np.random.Generator, k: int) -> np.ndarray:
    """K samples [K, H, 8] that spread over centimetres."""
    drift = np.cumsum(0.01 * rng.standard_normal((k, HORIZON, 8)), axis=1)
    return (HOME + drift).astype(np.float32)


def measure(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and p99 of the time of ``work`` [ms]."""
    for _ in range(10):
        work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return float(np.median(times) * 1e3), float(np.percentile(times, 99) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)
    scores = fitted_scores(rng)
    cell = scores["ace"].cell[0]
    table = Table(title=f"Monitor, one core, H = {HORIZON}, embedding {DIMENSION}, {TICKS} calibration ticks")
    for column in ("what", "median ms", "p99 ms", "against plain histograms"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def row(what: str, work: Callable[[], object], plain: float | None = None) -> None:
        median, p99 = measure(work, repeats)
        table.add_row(what, f"{median:.3f}", f"{p99:.3f}", f"{median / plain:.2f} x" if plain else "")

    one = Features(
        np.zeros(1),
        rng.standard_normal((1, DIMENSION)).astype(np.float32),
        np.empty((1, 0, 0, 1, 3)),
        STEP_DT,
        rng.standard_normal((RECALL, DIMENSION)).astype(np.float32),
    )
    for name in ("rnd", "kernel_dwell"):
        row(f"{name}: embedding score", partial(scores[name].score, one))
    for k in (32, 256):
        samples = chunks(rng, k)
        points = np.ascontiguousarray(ARM.positions(samples, NAMES, STEP_DT)[:, :, 0].swapaxes(0, 1))
        np.testing.assert_allclose(
            histogram_entropy(points.astype(float), cell),
            plain_entropy(points.astype(float), cell),
            atol=1e-9,
        )
        plain, plain_p99 = measure(partial(plain_entropy, points, cell), max(repeats // 10, 20))
        table.add_row(f"K = {k}: entropy, plain histograms", f"{plain:.3f}", f"{plain_p99:.3f}", "1 x")
        row(f"K = {k}: entropy", partial(histogram_entropy, points, cell), plain)
        row(f"K = {k}: gripper positions", partial(ARM.positions, samples, NAMES, STEP_DT))
        for clause in (("rnd", "ace"), ("kernel_dwell",)):
            channels = [Channel(scores[name], 5, np.array([1.0]), 1.0) for name in clause]
            detector = Detector(channels, (clause,), ARM)
            row(f"K = {k}: whole tick ({', '.join(clause)})", ticking(detector, samples, one), plain)
    Console(width=110).print(table)


def ticking(detector: Detector, samples: np.ndarray, one: Features) -> Callable[[], object]:
    """Judges the same evidence again and again, at advancing stamps."""
    count = iter(range(1_000_000))

    def tick() -> object:
        number = next(count)
        return detector.update(
            Evidence(
                stamp=0.2 * number,
                tick=number,
                bundle_hash="",
                sampler="ddim",
                sampler_steps=10,
                names=NAMES,
                step_dt=STEP_DT,
                embedding=one.embedding[0],
                k=len(samples),
                horizon=HORIZON,
                samples=samples.ravel(),
            )
        )

    return tick


if __name__ == "__main__":
    main()
