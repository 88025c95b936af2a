"""How good a detector is on roll-outs whose outcome is known.

Failure is the positive class. A detection is an alarm before the episode's end; its time is the first alarm's tick by
the longest episode's last tick, over detected failures (Roemer et al., NeurIPS 2025). Always-alarm and never-alarm score
0.50 whatever the data, and failing episodes are longer, so a clock detects them too: these rows are always there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vigil.monitor.detector import ALARM, OUT_OF_RANGE, Detector
from vigil.monitor.features import Features
from vigil.record.rollout import Rollout

HOLDING = (ALARM, OUT_OF_RANGE)
"""Verdicts on which a rig holds by default."""

FIGURES = ("tpr", "tnr", "accuracy", "twa", "detection_time")
RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """One test roll-out: its segments, whether it failed, and where it belongs."""

    segments: tuple[Features, ...]
    failed: bool
    group: str  # the perturbation
    ood: bool = False  # not from the distribution that was calibrated on
    task: str = ""

    @property
    def ticks(self) -> int:
        return sum(map(len, self.segments))


@dataclass(frozen=True)
class Row:
    """One detector's figures on one task. Rates without any episode of their kind are NaN."""

    method: str
    delta: float
    successes: int
    failures: int
    tpr: float
    tnr: float
    detection_time: float
    task: str = ""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, bootstrap over roll-outs
    samples: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # the resampled figures

    @property
    def accuracy(self) -> float:
        """Mean of TPR and TNR."""
        return (self.tpr + self.tnr) / 2

    @property
    def twa(self) -> float:
        """Timestep-wise accuracy: as accuracy, each detection discounted by its time."""
        early = self.tpr * (1 - self.detection_time) if self.tpr > 0 else self.tpr
        return (early + self.tnr) / 2


FirstAlarm = Callable[[Case], int | None]
"""Tick (from 0) of the first alarm of an episode; None without alarm."""


def test_cases(rollouts: Sequence[Rollout], features: Sequence[Sequence[Features]]) -> list[Case]:
    """Successes and failures of the policy by itself. Episodes an operator finished, or discarded, say neither."""
    return [
        Case(
            tuple(segments),
            failed=rollout.episode.outcome == "failure",
            group=rollout.episode.perturbation,
            ood=rollout.episode.out_of_distribution,
            task=rollout.episode.rig,
        )
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


def measure(
    method: str, delta: float, cases: Sequence[Case], first: FirstAlarm, *, resamples: int = 0, task: str = ""
) -> Row:
    """Figures of one detector; with ``resamples`` also their bootstrap intervals over roll-outs (seed 0).

    Failures and successes are resampled each among themselves, so that every resample has as many of both.
    """
    longest = max(max((case.ticks for case in cases), default=1) - 1, 1)
    at = np.array([np.nan if (tick := first(case)) is None else tick / longest for case in cases])
    failed = np.array([case.failed for case in cases], bool)
    point = _figures(at[failed], at[~failed])
    samples = {}
    if resamples:
        rng = np.random.default_rng(0)
        parts = [
            part[rng.integers(0, max(len(part), 1), (resamples, len(part)))]
            for part in (at[failed], at[~failed])
        ]
        samples = _figures(*parts)
    return Row(
        method=method,
        delta=delta,
        successes=int((~failed).sum()),
        failures=int(failed.sum()),
        tpr=float(point["tpr"]),
        tnr=float(point["tnr"]),
        detection_time=float(point["detection_time"]),
        task=task,
        intervals=_intervals(samples),
        samples=samples,
    )


def mean_row(rows: Sequence[Row], method: str) -> Row:
    """One method's mean over tasks; its intervals come from resampling every task."""
    samples = {
        name: np.mean([row.samples[name] for row in rows], axis=0)
        for name in FIGURES
        if all(row.samples for row in rows)
    }
    return _Mean(
        method=method,
        delta=rows[0].delta,
        successes=sum(row.successes for row in rows),
        failures=sum(row.failures for row in rows),
        tpr=float(np.mean([row.tpr for row in rows])),
        tnr=float(np.mean([row.tnr for row in rows])),
        detection_time=float(np.mean([row.detection_time for row in rows])),
        task="mean",
        intervals=_intervals(samples),
        samples=samples,
        mean_twa=float(np.mean([row.twa for row in rows])),
    )


@dataclass(frozen=True)
class _Mean(Row):
    """TWA is not a function of the means of its parts."""

    mean_twa: float = np.nan

    @property
    def twa(self) -> float:
        return self.mean_twa


def trivial_rows(cases: Sequence[Case], *, resamples: int = 0, task: str = "") -> list[Row]:
    """What alarming always, and never, amounts to."""
    return [
        measure("always", np.nan, cases, lambda _: 0, resamples=resamples, task=task),
        measure("never", np.nan, cases, lambda _: None, resamples=resamples, task=task),
    ]


def by_group(method: str, delta: float, cases: Sequence[Case], first: FirstAlarm) -> list[tuple[str, Row]]:
    """Figures for every perturbation by itself."""
    groups = sorted({case.group for case in cases})
    return [
        (group, measure(method, delta, [c for c in cases if c.group == group], first)) for group in groups
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, with bootstrap intervals where there are any."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bounds = [f"{name}_{end}" for name in FIGURES for end in ("low", "high")]
    writer.writerow(["task", "method", "delta", "successes", "failures", *FIGURES, *bounds])
    for row in rows:
        figures = [f"{getattr(row, name):.4f}" for name in FIGURES]
        limits = [f"{end:.4f}" for name in FIGURES for end in row.intervals.get(name, (np.nan, np.nan))]
        writer.writerow([row.task, row.method, row.delta, row.successes, row.failures, *figures, *limits])
    return out.getvalue()


def _figures(failures: np.ndarray, successes: np.ndarray) -> dict[str, np.ndarray]:
    """Figures [...] from the times of first alarms [..., n], in shares of the longest episode; NaN without alarm."""
    detected = ~np.isnan(failures)
    n, spared = failures.shape[-1], np.isnan(successes).mean(axis=-1) if successes.shape[-1] else np.nan
    found = detected.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr = np.true_divide(found, n)
        time = np.true_divide(np.where(detected, failures, 0.0).sum(axis=-1), found)
    early = np.where(found > 0, tpr * (1 - time), tpr)
    return {
        "tpr": tpr,
        "tnr": spared + np.zeros_like(tpr),
        "accuracy": (tpr + spared) / 2,
        "twa": (early + spared) / 2,
        "detection_time": time,
    }


def _intervals(samples: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    intervals = {}
    for name, values in samples.items():
        known = values[~np.isnan(values)]
        if len(known):
            low, high = np.quantile(known, (0.025, 0.975))
            intervals[name] = (float(low), float(high))
    return intervals
