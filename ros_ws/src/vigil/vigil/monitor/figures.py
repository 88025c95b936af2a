"""Pictures of a comparison: accuracy against detection time, order of the scores, number of calibration roll-outs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vigil.monitor.compare import SizePoint, Task
from vigil.monitor.detector import Detector
from vigil.monitor.evaluate import Case, Row

CLASSES = ("success, ID", "success, OOD", "failure, ID", "failure, OOD")
COLOURS = ("#2e7d4f", "#8bc29b", "#e0a13c", "#c8322b")
FEWEST = 3  # episodes of a class below which its order says nothing


def accuracy_against_time(path: Path, rows: Sequence[Row], highlight: str) -> None:
    """One point per method with its 95 % intervals; the upper left corner is where to be. ``rows`` are of one task."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for i, row in enumerate(row for row in rows if np.isfinite(row.detection_time)):
        colour = "#c8322b" if row.method == highlight else f"C{i % 10}"
        point = row.detection_time, row.accuracy
        errors = [
            [[max(value - low, 0.0)], [max(high - value, 0.0)]]
            for value, (low, high) in (
                (point[0], row.intervals.get("detection_time", (point[0], point[0]))),
                (point[1], row.intervals.get("accuracy", (point[1], point[1]))),
            )
        ]
        axes.errorbar(*point, xerr=errors[0], yerr=errors[1], fmt="o", color=colour, alpha=0.8, lw=0.8, ms=7)
        axes.annotate(row.method, point, xytext=(6, 5), textcoords="offset points", fontsize=8, color=colour)
    axes.axhline(0.5, color="#8a97a5", lw=0.8, ls="--")
    axes.set(
        xlabel="detection time (share of the longest episode)",
        ylabel="accuracy (mean of TPR and TNR)",
        title=f"Failure detection, {rows[0].task or 'all roll-outs'}: bars are 95 % intervals",
        xlim=(-0.02, 1.02),
    )
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def score_order(path: Path, task: Task, detectors: dict[str, Detector]) -> None:
    """Each method's largest score of an episode, by its threshold, in four classes of episodes.

    A score is of use where success in distribution <= success out of it < failure in it <= failure out of it.
    """
    columns = min(4, len(detectors))
    lines = -(-len(detectors) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 2.8 * lines), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(detectors) :]:
        axes.set_visible(False)
    for axes, (method, detector) in zip(grid.flat, detectors.items(), strict=False):
        highest = highest_scores(task.cases, detector)
        drawn = axes.boxplot(
            highest, patch_artist=True, widths=0.6, showfliers=False, medianprops={"color": "black"}
        )
        for box, colour in zip(drawn["boxes"], COLOURS, strict=True):
            box.set_facecolor(colour)
        axes.axhline(1.0, color="#51606f", lw=1, ls="--")
        axes.set_title(f"{method}{'' if in_order(highest) else ' (out of order)'}", fontsize=9)
        labels = [f"{name}\n{len(values)}" for name, values in zip(CLASSES, highest, strict=True)]
        axes.set_xticks(range(1, 5), labels, fontsize=6.5)
        axes.tick_params(axis="y", labelsize=7)
    figure.suptitle(f"Largest score of an episode, in units of the threshold: {task.name}", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def highest_scores(cases: Sequence[Case], detector: Detector) -> list[np.ndarray]:
    """By class of `CLASSES`: each episode's largest value over time of the detector's own statistic.

    That is the smallest score of a clause in units of its threshold, and the largest of the clauses: 1 is an alarm.
    """
    values: list[list[float]] = [[], [], [], []]
    index = {name: i for i, name in enumerate(detector.names)}
    for case in cases:
        peak = 0.0
        for segment in case.segments:
            judged = detector.judge(segment)
            ratio = judged.windowed / judged.thresholds
            clauses = [ratio[:, [index[n] for n in clause]].min(axis=1) for clause in detector.clauses]
            peak = max(peak, float(np.max(clauses)))
        values[2 * case.failed + case.ood].append(peak)
    return [np.array(v) for v in values]


def in_order(highest: Sequence[np.ndarray]) -> bool:
    """Whether the medians rise from class to class; classes of fewer than `FEWEST` episodes are left out."""
    medians = [np.median(values) for values in highest if len(values) >= FEWEST]
    return bool(np.all(np.diff(medians) >= 0))


def sizes(path: Path, curves: dict[str, list[SizePoint]]) -> None:
    """TWA and accuracy against the number of calibration roll-outs, mean and range over draws."""
    figure, grid = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, figure_name in zip(grid, ("twa", "accuracy"), strict=True):
        for method, points in curves.items():
            n = [point.n for point in points]
            values = [getattr(point, figure_name) for point in points]
            axes.plot(n, [v.mean() for v in values], "o-", label=method)
            axes.fill_between(n, [v.min() for v in values], [v.max() for v in values], alpha=0.2)
        axes.set(xlabel="successful roll-outs to calibrate on", ylabel=figure_name.upper(), xscale="log")
        axes.set_xticks(
            [p.n for p in next(iter(curves.values()))], [str(p.n) for p in next(iter(curves.values()))]
        )
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    grid[0].legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
