"""Detectors side by side on the same roll-outs: the methods there are, and their figures on every task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.monitor.calibrate import (
    Fit,
    Fitted,
    Recipe,
    build_detector,
    fit_scores,
    split_rollouts,
)
from vigil.monitor.conformal import required, smallest_delta
from vigil.monitor.detector import Clauses, Detector
from vigil.monitor.evaluate import RESAMPLES, Case, Row, first_alarm, mean_row, measure, trivial_rows
from vigil.monitor.features import Features, Kinematics
from vigil.monitor.parity import Style


@dataclass(frozen=True)
class Method:
    """A detector by name: alarm where all scores of one clause are above their thresholds."""

    clauses: Clauses
    fit: Fit | None = None  # None: as asked for
    style: Style | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)

    def recipe(self, base: Recipe) -> Recipe:
        """What to calibrate for this method, with everything else as in ``base``."""
        return replace(
            base,
            clauses=self.clauses,
            fit=self.fit or base.fit,
            style=self.style or base.style,
            settings={**base.settings, **self.settings},
            windows={**self.windows, **base.windows},
        )


def _published(style: Style) -> Method:
    settings = {"rnd": {"preset": "fiper"}, "ace": {"published": True}}
    return Method((("rnd", "ace"),), fit="published", style=style, settings=settings)


METHODS: dict[str, Method] = {
    "kernel": Method((("kernel",),)),
    "kernel_actions": Method((("kernel_actions",),)),
    "kernel_dwell": Method((("kernel_dwell",),)),
    "kernel+ace": Method((("kernel", "ace"),)),
    "fiper": Method((("rnd", "ace"),)),
    "fiper-published": _published("constant"),
    "fiper-published-step": _published("per_step"),
    "fiper-published-band": _published("band"),
    "rnd": Method((("rnd",),)),
    "ace": Method((("ace",),)),
    "spread": Method((("spread",),)),
    "overlap": Method((("overlap",),)),
    "stac": Method((("stac",),)),
    "logpzo": Method((("logpzo",),)),
    "pca_kmeans": Method((("pca_kmeans",),)),
    "mahalanobis": Method((("mahalanobis",),)),
    "clock": Method((("clock",),)),
}
"""Detectors that are compared. The rows `always` and `never` come without asking."""

DEFAULT_METHOD = "kernel_dwell"
DELTAS = (0.05, 0.1, 0.2)
"""Of `false_alarms`."""
EXCHANGES = 20
"""Draws of `false_alarms`, in which calibration and held-out successes are dealt anew."""
SIZES = (2, 4, 6, 8, 10, 20, 50)
"""Numbers of calibration roll-outs of `size_curve`."""


@dataclass(frozen=True)
class Task:
    """One benchmark task: successful roll-outs to calibrate on, and test cases."""

    name: str
    calibration: Sequence[Features]
    cases: Sequence[Case]
    kinematics: Kinematics


Advance = Callable[[str], None]
"""Called with what begins now."""


class Bench:
    """Fits each score once per task and settings, whatever number of methods uses it."""

    def __init__(self, task: Task, advance: Advance = lambda _: None) -> None:
        self.task = task
        self._advance = advance
        self._fitted: dict[str, Fitted] = {}

    def detector(self, recipe: Recipe) -> Detector:
        """The detector of ``recipe``, calibrated on the task's successes."""
        split = split_rollouts(len(self.task.calibration), recipe)
        scores, curves = {}, {}
        for name in recipe.names:
            settings = recipe.settings.get(name, {})
            key = json.dumps(
                [name, recipe.fitting, recipe.seed, settings, split.fit if recipe.fitting == "split" else 0]
            )
            if key not in self._fitted:
                self._advance(f"{self.task.name}: fitting {name}")
                self._fitted[key] = fit_scores(self.task.calibration, [name], recipe, split)
            scores |= self._fitted[key].scores
            curves |= self._fitted[key].curves
        return build_detector(Fitted(scores, curves), recipe, split, self.task.kinematics)


def compare(
    tasks: Sequence[Task], methods: Sequence[str], base: Recipe, advance: Advance = lambda _: None
) -> tuple[list[Row], dict[tuple[str, str], Detector]]:
    """Rows by task and method, then those of the mean over tasks; and the detectors by (task, method).

    Raises:
        VigilError: an unknown method, or too few calibration roll-outs.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise VigilError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    rows: list[Row] = []
    detectors: dict[tuple[str, str], Detector] = {}
    for task in tasks:
        bench = Bench(task, advance)
        for method in methods:
            recipe = METHODS[method].recipe(base)
            detector = detectors[task.name, method] = bench.detector(recipe)
            advance(f"{task.name}: {method}")
            rows.append(
                measure(
                    method,
                    recipe.delta,
                    task.cases,
                    first_alarm(detector),
                    resamples=RESAMPLES,
                    task=task.name,
                )
            )
        rows += trivial_rows(task.cases, resamples=RESAMPLES, task=task.name)
    if len(tasks) > 1:
        for method in (*methods, "always", "never"):
            rows.append(mean_row([row for row in rows if row.method == method], method))
    return rows, detectors


@dataclass(frozen=True)
class SizePoint:
    """TWA of one method calibrated on ``n`` roll-outs, over draws and the mean of tasks."""

    n: int
    delta: float
    twa: np.ndarray  # [draws]
    accuracy: np.ndarray  # [draws]


def size_curve(
    tasks: Sequence[Task], method: str, base: Recipe, draws: int = 5, advance: Advance = lambda _: None
) -> list[SizePoint]:
    """How much is lost with few calibration roll-outs.

    n roll-outs support delta >= 1 / (n + 1) at best; where that is more than the recipe's delta, it is what is used.
    """
    points = []
    for n in SIZES:
        if n > min(len(task.calibration) for task in tasks):
            break
        recipe = METHODS[method].recipe(base)
        if required(base.delta) > n:
            recipe = replace(recipe, delta=smallest_delta(n))
        figures = np.empty((draws, len(tasks), 2))
        for draw in range(draws):
            for i, task in enumerate(tasks):
                advance(f"{method} on {n} roll-outs")
                chosen = np.random.default_rng([draw, n]).permutation(len(task.calibration))[:n]
                some = replace(task, calibration=[task.calibration[j] for j in chosen])
                row = measure(method, recipe.delta, task.cases, first_alarm(Bench(some).detector(recipe)))
                figures[draw, i] = row.twa, row.accuracy
        points.append(SizePoint(n, recipe.delta, *np.moveaxis(figures.mean(axis=1), -1, 0)))
    return points


@dataclass(frozen=True)
class FalseAlarms:
    """Alarms of one method on successes like the calibrated ones: undisturbed, and held out.

    One calibration may have more alarms than delta or fewer; what is bounded is the mean over calibrations. ``exchanged`` is
    that mean, over draws of which of all these successes calibrate.
    """

    task: str
    method: str
    delta: float
    successes: int
    alarms: int
    exchanged: float

    @property
    def limit(self) -> float:
        """The most that a bound of delta explains: two binomial standard deviations above it."""
        return self.delta + 2.0 * math.sqrt(self.delta * (1.0 - self.delta) / self.successes)


def false_alarms(
    tasks: Sequence[Task], method: str, base: Recipe, advance: Advance = lambda _: None
) -> list[FalseAlarms]:
    """Whether a bound holds on test roll-outs, by task and each of `DELTAS` that the calibration roll-outs support."""
    rows = []
    for task in tasks:
        alike = [case for case in task.cases if not case.failed and not case.ood]
        deltas = [delta for delta in DELTAS if alike and required(delta) <= len(task.calibration)]
        advance(f"{task.name}: false alarms of {method}")
        counts = _count_alarms(task, alike, method, base, deltas)
        whole = [case for case in alike if len(case.segments) == 1]
        dealt = [Case((features,), failed=False, group="none") for features in task.calibration] + whole
        exchanged = np.zeros(len(deltas))
        for draw in range(EXCHANGES if deltas else 0):
            advance(f"{task.name}: false alarms of {method}, draw {draw + 1} of {EXCHANGES}")
            order = np.random.default_rng(draw).permutation(len(dealt))
            chosen = [dealt[i].segments[0] for i in order[: len(task.calibration)]]
            others = [dealt[i] for i in order[len(task.calibration) :]]
            drawn = _count_alarms(replace(task, calibration=chosen), others, method, base, deltas)
            exchanged += np.array(drawn) / len(others) / EXCHANGES
        rows += [
            FalseAlarms(task.name, method, delta, len(alike), count, float(mean))
            for delta, count, mean in zip(deltas, counts, exchanged, strict=True)
        ]
    return rows


def _count_alarms(
    task: Task, cases: Sequence[Case], method: str, base: Recipe, deltas: Sequence[float]
) -> list[int]:
    """How many of ``cases`` raise an alarm, at each of ``deltas``."""
    bench = Bench(task)
    alarms = [
        first_alarm(bench.detector(METHODS[method].recipe(replace(base, delta=delta)))) for delta in deltas
    ]
    return [sum(alarm(case) is not None for case in cases) for alarm in alarms]
