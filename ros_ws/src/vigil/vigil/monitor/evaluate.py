"""How good a detector is on roll-outs whose outcome is known.

Failure is the positive class. A detection is an alarm before the episode's end; its time is the first alarm's tick by
the longest episode's last tick, over detected failures. Always-alarm and never-alarm score 0.50 whatever the data, and
failing episodes are longer, so a clock detects them too: these rows are always there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vigil.monitor.calibrate import Fitted, Recipe, build_detector
from vigil.monitor.detector import ALARM, OUT_OF_RANGE, Clauses, Detector
from vigil.monitor.features import Features, Kinematics
from vigil.record.rollout import Rollout

METHODS: dict[str, Clauses] = {
    "fiper": (("rnd", "ace"),),
    "rnd": (("rnd",),),
    "ace": (("ace",),),
    "kernel": (("kernel",),),
    "kernel+ace": (("kernel", "ace"),),
    "spread": (("spread",),),
    "overlap": (("overlap",),),
    "rnd+spread": (("rnd", "spread"),),
    "rnd+overlap": (("rnd", "overlap"),),
    "fiper|clock": (("rnd", "ace"), ("clock",)),
    "clock": (("clock",),),
}
"""Detectors that are compared: alarm where all scores of one clause are above their thresholds."""

HOLDING = (ALARM, OUT_OF_RANGE)
"""Verdicts on which a rig holds by default."""


@dataclass(frozen=True)
class Case:
    """One test roll-out: its segments, whether it failed, and its length in ticks."""

    segments: tuple[Features, ...]
    failed: bool
    group: str  # the perturbation

    @property
    def ticks(self) -> int:
        return sum(map(len, self.segments))


@dataclass(frozen=True)
class Row:
    """One detector's figures. Rates without any episode of their kind are NaN."""

    method: str
    delta: float
    successes: int
    failures: int
    tpr: float
    tnr: float
    detection_time: float

    @property
    def accuracy(self) -> float:
        """Mean of TPR and TNR."""
        return (self.tpr + self.tnr) / 2

    @property
    def timewise_accuracy(self) -> float:
        """TWA: as accuracy, each detection discounted by its time."""
        early = self.tpr * (1 - self.detection_time) if self.tpr > 0 else self.tpr
        return (early + self.tnr) / 2


FirstAlarm = Callable[[Case], int | None]
"""Tick (from 0) of the first alarm of an episode; None without alarm."""


def test_cases(rollouts: Sequence[Rollout], features: Sequence[Sequence[Features]]) -> list[Case]:
    """Successes and failures of the policy by itself. Episodes an operator finished, or discarded, say neither."""
    return [
        Case(tuple(segments), rollout.episode.outcome == "failure", rollout.episode.perturbation)
        for rollout, segments in zip(rollouts, features, strict=True)
        if rollout.episode.outcome in ("success", "failure")
    ]


def first_alarm(detector: Detector, *, hold_on: tuple[int, ...] = (ALARM,)) -> FirstAlarm:
    """The first tick with one of the verdicts ``hold_on``."""

    def find(case: Case) -> int | None:
        passed = 0
        for segment in case.segments:
            hits = np.flatnonzero(np.isin(detector.judge(segment).verdict, hold_on))
            if len(hits):
                return passed + int(hits[0])
            passed += len(segment)
        return None

    return find


def measure(method: str, delta: float, cases: Sequence[Case], first: FirstAlarm) -> Row:
    """Figures of one detector."""
    longest = max(max((case.ticks for case in cases), default=1) - 1, 1)
    alarms = [first(case) for case in cases]
    failures = [alarm for case, alarm in zip(cases, alarms, strict=True) if case.failed]
    successes = [alarm for case, alarm in zip(cases, alarms, strict=True) if not case.failed]
    detected = [alarm for alarm in failures if alarm is not None]
    return Row(
        method=method,
        delta=delta,
        successes=len(successes),
        failures=len(failures),
        tpr=len(detected) / len(failures) if failures else np.nan,
        tnr=sum(alarm is None for alarm in successes) / len(successes) if successes else np.nan,
        detection_time=float(np.mean(detected)) / longest if detected else np.nan,
    )


def trivial_rows(cases: Sequence[Case]) -> list[Row]:
    """What alarming always, and never, amounts to."""
    return [measure("always", np.nan, cases, lambda _: 0), measure("never", np.nan, cases, lambda _: None)]


def compare(
    fitted: Fitted, kinematics: Kinematics, cases: Sequence[Case], methods: Sequence[str], base: Recipe
) -> list[Row]:
    """One row per method, each calibrated by ``base`` on the same split; then the trivial rows."""
    rows = []
    for method in methods:
        recipe = Recipe(
            delta=base.delta,
            clauses=METHODS[method],
            mode=base.mode,
            style=base.style,
            settings=base.settings,
            windows=base.windows,
            seed=base.seed,
            out_of_range_ticks=base.out_of_range_ticks,
        )
        detector = build_detector(fitted, recipe, kinematics)
        rows.append(measure(method, recipe.delta, cases, first_alarm(detector)))
    return rows + trivial_rows(cases)


def by_group(method: str, delta: float, cases: Sequence[Case], first: FirstAlarm) -> list[tuple[str, Row]]:
    """Figures for every perturbation by itself."""
    groups = sorted({case.group for case in cases})
    return [
        (group, measure(method, delta, [c for c in cases if c.group == group], first)) for group in groups
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["method", "delta", "successes", "failures", "tpr", "tnr", "accuracy", "twa", "detection_time"]
    )
    for row in rows:
        figures = (row.tpr, row.tnr, row.accuracy, row.timewise_accuracy, row.detection_time)
        writer.writerow(
            [row.method, row.delta, row.successes, row.failures, *(f"{value:.4f}" for value in figures)]
        )
    return out.getvalue()
