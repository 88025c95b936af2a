"""Fit scores, windows and thresholds on successful roll-outs of one policy.

Nothing calibrates that was fitted on, so that a calibration score is exchangeable with that of a future success:

``cross``
    every roll-out is scored by a model of the others (leave-one-out in closed form where the score has it, else by folds),
    so that all of them can calibrate. What is shipped is fitted on all.
``split``
    roll-outs are split, whole ones at a time, into a part to fit on, one to scale on and one to calibrate on. For scores
    with random networks, of which two fits have not the same scale.
``published``
    the published code's choices, faults included (`vigil.monitor.parity`), for comparing numbers.

Two modes. ``separate`` calibrates every score's threshold by itself at delta; the conjunction then alarms at most as
often, in practice much less. ``joint`` (default) calibrates the alarm itself: with scores scaled on a part of the
roll-outs, the largest value over time of min(observation, action) is one number per remaining roll-out, whose conformal
quantile at delta scales both thresholds. The bound is the same, and is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vigil.errors import VigilError
from vigil.monitor import conformal
from vigil.monitor.detector import Channel, Clauses, Detector
from vigil.monitor.features import Features, Kinematics
from vigil.monitor.parity import Style, published_threshold
from vigil.monitor.score import Score
from vigil.monitor.scores import SCORES, make_score
from vigil.monitor.windows import choose_window, windowed

Fit = Literal["auto", "cross", "split", "published"]
Mode = Literal["joint", "separate"]

FIPER: Clauses = (("rnd", "ace"),)
LEAST_TO_FIT = 5
LEAST_TO_SCALE = 3
FOLDS = 5
TINY = 1e-12


@dataclass(frozen=True)
class Recipe:
    """What to calibrate, and how."""

    delta: float = 0.05
    clauses: Clauses = FIPER
    fit: Fit = "auto"  # cross where every score allows it, else split
    mode: Mode = "joint"
    style: Style = "constant"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by score
    windows: dict[str, int] = field(default_factory=dict)  # by score; the others are chosen
    seed: int = 0
    out_of_range_ticks: int = 5

    def __post_init__(self) -> None:
        conformal.check_delta(self.delta)
        names = self.names
        if unknown := [name for name in names if name not in SCORES]:
            raise VigilError(f"unknown score {unknown[0]!r}: choose from {', '.join(SCORES)}")
        if not names or not all(self.clauses):
            raise VigilError("a detector needs at least one score in each clause")
        if len(set(names)) != len(names):
            raise VigilError(
                f"each score has one threshold, so it can stand in one clause only: {list(names)}"
            )
        unstable = [name for name in names if not SCORES[name].refits_alike]
        if self.fit == "cross" and unstable:
            raise VigilError(
                f"two fits of {', '.join(unstable)} do not have the same scale, so fits without a roll-out do not tell how "
                "the shipped one will score: use fit split"
            )
        if self.mode == "joint" and self.style == "per_step" and self.fit != "published":
            raise VigilError(
                "style per_step bounds single ticks, not the alarm of a whole episode: use mode separate, or style band"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for clause in self.clauses for name in clause)

    @property
    def fitting(self) -> Literal["cross", "split", "published"]:
        """``fit``, with ``auto`` resolved for these scores."""
        if self.fit != "auto":
            return self.fit
        return "cross" if all(SCORES[name].refits_alike for name in self.names) else "split"

    @property
    def scales(self) -> bool:
        """Whether some roll-outs are needed to bring scores to a common scale, or to shape a band."""
        return self.fitting != "published" and (
            self.style == "band" or (self.mode == "joint" and len(self.names) > 1)
        )


@dataclass(frozen=True)
class Split:
    """Roll-outs (by number) for fitting, for scales, and for thresholds. Those to scale and to calibrate are disjoint."""

    fit: tuple[int, ...]
    scale: tuple[int, ...]
    calibrate: tuple[int, ...]


def split_rollouts(n: int, recipe: Recipe) -> Split:
    """A random split of n roll-outs that always leaves enough to calibrate.

    ``split``: 40 % to fit, 20 % to scale, 40 % to calibrate. ``cross``: all to fit, 20 % to scale if the recipe has a use
    for it, the others to calibrate. ``published``: all for everything.

    Raises:
        InsufficientRollouts: n cannot support the recipe's delta beside the fewest roll-outs to fit and to scale on.
    """
    order = tuple(np.random.default_rng(recipe.seed).permutation(n).tolist())
    if recipe.fitting == "published":
        return Split(order, (), order)
    needed = conformal.required(recipe.delta)
    scale = max(LEAST_TO_SCALE, round(0.2 * n)) if recipe.scales else 0
    if recipe.fitting == "cross":
        if n - scale < needed:
            scale = LEAST_TO_SCALE if recipe.scales else 0
        if n - scale < needed:
            raise InsufficientRollouts(n, recipe.delta, needed + scale)
        return Split(order, order[:scale], order[scale:])
    calibrate = max(needed, round(0.4 * n))
    if n - calibrate - scale < LEAST_TO_FIT:
        scale = LEAST_TO_SCALE if recipe.scales else 0
        calibrate = n - scale - LEAST_TO_FIT
    if calibrate < needed:
        raise InsufficientRollouts(n, recipe.delta, needed + scale + LEAST_TO_FIT)
    return Split(order[calibrate + scale :], order[calibrate : calibrate + scale], order[:calibrate])


class InsufficientRollouts(conformal.InsufficientCalibration):
    """Too few successful roll-outs to fit and to calibrate on. ``missing``: how many more."""

    def __init__(self, n: int, delta: float, needed: int) -> None:
        super().__init__(max(n, 0), delta)
        self.missing = needed - n
        calibrating = conformal.required(delta)
        others = f" and {needed - calibrating} others to fit or scale on" if needed > calibrating else ""
        self.args = (
            f"{n} successful roll-outs cannot bound false alarms at delta = {delta:g}: {calibrating} to calibrate{others} "
            f"are needed, {self.missing} more. Record more (`vigil evaluate RIG --uncalibrated`), or raise delta",
        )


@dataclass(frozen=True)
class Fitted:
    """Fitted scores, and the raw curve [T_i] of every roll-out by each; None for those that `split` fitted on."""

    scores: dict[str, Score]
    curves: dict[str, list[np.ndarray | None]]

    def part(self, name: str, rollouts: Sequence[int]) -> list[np.ndarray]:
        """Raw curves of some roll-outs."""
        return [self.curves[name][i] for i in rollouts]


def fit_scores(
    episodes: Sequence[Features],
    names: Sequence[str],
    recipe: Recipe,
    split: Split | None = None,
) -> Fitted:
    """Fit the named scores as ``recipe`` says, and score every roll-out that may calibrate.

    Args:
        split: for fit ``split``: which roll-outs to fit on; by default `split_rollouts`.
    """
    scores: dict[str, Score] = {}
    curves: dict[str, list[np.ndarray | None]] = {}
    episodes = list(episodes)
    for name in names:
        scores[name] = score = make_score(name, recipe.settings.get(name))
        if recipe.fitting == "cross":
            curves[name] = score.cross_scores(episodes, FOLDS, recipe.seed)
        elif recipe.fitting == "published":
            score.fit(episodes, recipe.seed)
            curves[name] = [score.score(episode) for episode in episodes]
        else:
            split = split or split_rollouts(len(episodes), recipe)
            score.fit([episodes[i] for i in split.fit], recipe.seed)
            fitted = set(split.fit)
            curves[name] = [None if i in fitted else score.score(e) for i, e in enumerate(episodes)]
    return Fitted(scores, curves)


def build_detector(fitted: Fitted, recipe: Recipe, split: Split, kinematics: Kinematics) -> Detector:
    """Windows and thresholds for ``recipe`` from curves that are already there. Takes milliseconds."""
    windows = {name: _window(fitted, recipe, split, name) for name in recipe.names}

    def summed(rollouts: Sequence[int]) -> dict[str, list[np.ndarray]]:
        return {
            name: [windowed(curve, windows[name]) for curve in fitted.part(name, rollouts)]
            for name in recipe.names
        }

    thresholds = calibrate_thresholds(summed(split.scale), summed(split.calibrate), recipe)
    channels = []
    for name in recipe.names:
        highest = [curve.max() for curve in fitted.part(name, split.calibrate)]
        published = recipe.fitting == "published"
        channels.append(
            Channel(
                score=fitted.scores[name],
                window=windows[name],
                threshold=thresholds[name],
                single=float(np.quantile(highest, 1 - recipe.delta))
                if published
                else conformal.conformal_quantile(highest, recipe.delta),
            )
        )
    return Detector(channels, recipe.clauses, kinematics, recipe.out_of_range_ticks)


def _window(fitted: Fitted, recipe: Recipe, split: Split, name: str) -> int:
    if not fitted.scores[name].windowed:
        return 1
    return recipe.windows.get(name) or choose_window(fitted.part(name, (*split.scale, *split.calibrate)))


def calibrate_thresholds(
    scale: dict[str, list[np.ndarray]], calibrate: dict[str, list[np.ndarray]], recipe: Recipe
) -> dict[str, np.ndarray]:
    """Thresholds [L] by score from windowed curves [T_i] of two disjoint sets of roll-outs.

    Raises:
        InsufficientCalibration: ``calibrate`` cannot support ``recipe.delta``.
    """
    if recipe.fitting == "published":
        return {
            name: published_threshold(calibrate[name], 1 - recipe.delta, recipe.style)
            for name in recipe.names
        }
    if recipe.mode == "separate" or not recipe.scales:
        share = recipe.delta / len(recipe.clauses)  # any of them alarms
        return {
            name: np.maximum(_separate(scale[name], calibrate[name], recipe.style, share), TINY)
            for name in recipe.names
        }
    shapes = {name: _shape(scale[name], recipe) for name in recipe.names}

    def statistic(curves: dict[str, list[np.ndarray]], clause: tuple[str, ...]) -> np.ndarray:
        """Per roll-out: the largest value over time of the smallest normalised score."""
        return np.array(
            [
                np.min(
                    [
                        c / conformal.at(shapes[n], np.arange(len(c)))
                        for n, c in zip(clause, row, strict=True)
                    ],
                    0,
                ).max()
                for row in zip(*(curves[name] for name in clause), strict=True)
            ]
        )

    # Clauses share the false alarms evenly: each is brought to the same quantile before they compete.
    factors = [max(_upper(statistic(scale, clause), recipe.delta), TINY) for clause in recipe.clauses]
    combined = np.max(
        [
            statistic(calibrate, clause) / factor
            for clause, factor in zip(recipe.clauses, factors, strict=True)
        ],
        0,
    )
    common = conformal.conformal_quantile(combined, recipe.delta)
    return {
        name: np.maximum(shapes[name] * factor * common, TINY)
        for clause, factor in zip(recipe.clauses, factors, strict=True)
        for name in clause
    }


def describe_bound(recipe: Recipe, n: int) -> str:
    """What the calibration promises, in words."""
    if recipe.fitting == "published":
        return "nothing: thresholds come from the roll-outs that the scores were fitted on, as in the published code"
    if recipe.style == "per_step":
        return (
            f"at any single tick, each score of a successful roll-out like the {n} calibrated ones is above its "
            f"threshold with probability at most {recipe.delta:g}; nothing bounds a whole episode, or misses"
        )
    return (
        f"of successful roll-outs like the {n} calibrated ones, at most {recipe.delta:.0%} raise an alarm; "
        "nothing bounds misses"
    )


def _separate(scale: list[np.ndarray], calibrate: list[np.ndarray], style: Style, delta: float) -> np.ndarray:
    if style == "constant":
        return conformal.constant_threshold(calibrate, delta)
    if style == "per_step":
        return conformal.per_step_threshold(calibrate, delta)
    return conformal.functional_band(scale, calibrate, delta)


def _shape(curves: list[np.ndarray], recipe: Recipe) -> np.ndarray:
    """What a score is divided by before scores are compared; not yet a threshold."""
    if recipe.style == "constant":
        return np.array([max(_upper([curve.max() for curve in curves], recipe.delta), TINY)])
    mean, modulation = conformal.band_shape(curves)
    return np.maximum(mean + modulation, TINY)


def _upper(values: Sequence[float] | np.ndarray, delta: float) -> float:
    return float(np.quantile(values, 1 - delta, method="higher"))
