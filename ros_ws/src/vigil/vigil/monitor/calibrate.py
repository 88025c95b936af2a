"""Fit scores, windows and thresholds on successful roll-outs of one policy.

The roll-outs are split three ways, whole roll-outs at a time: on one part the scores are fitted, on the second the
windows are chosen and the scores brought to a common scale, on the third the thresholds are calibrated. Nothing is
fitted on a roll-out that calibrates, so the scores of the third part are exchangeable with those of a future success.

Two modes. ``separate`` calibrates every score's threshold by itself at delta; the conjunction then alarms at most as
often, in practice much less. ``joint`` (default) calibrates the alarm itself: with scores scaled by the second part,
the largest value over time of min(observation, action) is one number per roll-out, whose conformal quantile at delta
scales both thresholds. The bound is the same, and is used up.
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
from vigil.monitor.score import Score
from vigil.monitor.scores import make_score
from vigil.monitor.windows import choose_window, windowed

Mode = Literal["joint", "separate"]
Style = Literal["constant", "per_step", "band"]

FIPER: Clauses = (("rnd", "ace"),)
LEAST_TO_FIT = 5
LEAST_TO_SCALE = 3
TINY = 1e-12


@dataclass(frozen=True)
class Recipe:
    """What to calibrate, and how."""

    delta: float = 0.05
    clauses: Clauses = FIPER
    mode: Mode = "joint"
    style: Style = "constant"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by score
    windows: dict[str, int] = field(default_factory=dict)  # by score; the others are chosen
    seed: int = 0
    out_of_range_ticks: int = 5

    def __post_init__(self) -> None:
        conformal.check_delta(self.delta)
        names = [name for clause in self.clauses for name in clause]
        if not names or not all(self.clauses):
            raise VigilError("a detector needs at least one score in each clause")
        if len(set(names)) != len(names):
            raise VigilError(f"each score has one threshold, so it can stand in one clause only: {names}")
        if self.mode == "joint" and self.style == "per_step":
            raise VigilError(
                "style per_step bounds single ticks, not the alarm of a whole episode: use mode separate, or style band"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for clause in self.clauses for name in clause)


@dataclass(frozen=True)
class Split:
    """Roll-outs (by number) for fitting, for windows and scales, and for thresholds. Disjoint."""

    fit: tuple[int, ...]
    scale: tuple[int, ...]
    calibrate: tuple[int, ...]


def split_rollouts(n: int, delta: float, seed: int, scaled: bool = True) -> Split:
    """A random split of n roll-outs: 40 % to fit, 20 % to scale, 40 % to calibrate, and always enough to calibrate.

    Raises:
        InsufficientCalibration: n cannot support delta beside the fewest roll-outs to fit and to scale on.
    """
    scale = max(LEAST_TO_SCALE, round(0.2 * n)) if scaled else 0
    needed = conformal.required(delta)
    calibrate = max(needed, round(0.4 * n))
    if n - calibrate - scale < LEAST_TO_FIT:
        scale = LEAST_TO_SCALE if scaled else 0
        calibrate = n - scale - LEAST_TO_FIT
    if calibrate < needed:
        raise InsufficientRollouts(n, delta, needed + scale + LEAST_TO_FIT)
    order = np.random.default_rng(seed).permutation(n).tolist()
    return Split(
        fit=tuple(order[calibrate + scale :]),
        scale=tuple(order[calibrate : calibrate + scale]),
        calibrate=tuple(order[:calibrate]),
    )


class InsufficientRollouts(conformal.InsufficientCalibration):
    """Too few successful roll-outs to fit and to calibrate on different ones. ``missing``: how many more."""

    def __init__(self, n: int, delta: float, needed: int) -> None:
        super().__init__(max(n, 0), delta)
        self.missing = needed - n
        self.args = (
            f"{n} successful roll-outs cannot bound false alarms at delta = {delta:g}: {conformal.required(delta)} to "
            f"calibrate and {needed - conformal.required(delta)} others to fit on are needed, {self.missing} more. "
            "Record more (`vigil evaluate RIG --uncalibrated`), or raise delta",
        )


@dataclass(frozen=True)
class Curves:
    """Raw scores [T_i] of roll-outs, by score."""

    scale: dict[str, list[np.ndarray]]
    calibrate: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Fitted:
    """Scores fitted on one part of the roll-outs, and their raw curves on the other two."""

    scores: dict[str, Score]
    split: Split
    curves: Curves


def fit_scores(
    episodes: Sequence[Features],
    names: Sequence[str],
    split: Split,
    settings: dict[str, dict[str, Any]] | None = None,
    seed: int = 0,
) -> Fitted:
    """Fit the named scores on ``split.fit`` and score the other roll-outs with them."""
    scores = {}
    for name in names:
        scores[name] = make_score(name, (settings or {}).get(name))
        scores[name].fit([episodes[i] for i in split.fit], seed)

    def curves(part: tuple[int, ...]) -> dict[str, list[np.ndarray]]:
        return {name: [score.score(episodes[i]) for i in part] for name, score in scores.items()}

    return Fitted(scores, split, Curves(curves(split.scale), curves(split.calibrate)))


def build_detector(fitted: Fitted, recipe: Recipe, kinematics: Kinematics) -> Detector:
    """Windows and thresholds for ``recipe`` from curves that are already there. Takes milliseconds."""
    chosen_on = fitted.curves.scale if fitted.split.scale else fitted.curves.calibrate
    windows = {}
    for name in recipe.names:
        if not fitted.scores[name].windowed:
            windows[name] = 1
        else:
            windows[name] = recipe.windows.get(name) or choose_window(chosen_on[name])

    def summed(curves: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
        return {name: [windowed(curve, windows[name]) for curve in curves[name]] for name in recipe.names}

    thresholds = calibrate_thresholds(summed(fitted.curves.scale), summed(fitted.curves.calibrate), recipe)
    channels = [
        Channel(
            score=fitted.scores[name],
            window=windows[name],
            threshold=thresholds[name],
            single=conformal.conformal_quantile(
                [c.max() for c in fitted.curves.calibrate[name]], recipe.delta
            ),
        )
        for name in recipe.names
    ]
    return Detector(channels, recipe.clauses, kinematics, recipe.out_of_range_ticks)


def calibrate_thresholds(
    scale: dict[str, list[np.ndarray]], calibrate: dict[str, list[np.ndarray]], recipe: Recipe
) -> dict[str, np.ndarray]:
    """Thresholds [L] by score from windowed curves [T_i] of two disjoint sets of roll-outs.

    Raises:
        InsufficientCalibration: ``calibrate`` cannot support ``recipe.delta``.
    """
    if recipe.mode == "separate":
        return {
            name: np.maximum(_separate(scale[name], calibrate[name], recipe), TINY) for name in recipe.names
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
    if recipe.style == "per_step":
        return (
            f"at any single tick, each score of a successful roll-out like the {n} calibrated ones is above its "
            f"threshold with probability at most {recipe.delta:g}; nothing bounds a whole episode, or misses"
        )
    return (
        f"of successful roll-outs like the {n} calibrated ones, at most {recipe.delta:.0%} raise an alarm; "
        "nothing bounds misses"
    )


def _separate(scale: list[np.ndarray], calibrate: list[np.ndarray], recipe: Recipe) -> np.ndarray:
    if recipe.style == "constant":
        return conformal.constant_threshold(calibrate, recipe.delta)
    if recipe.style == "per_step":
        return conformal.per_step_threshold(calibrate, recipe.delta)
    return conformal.functional_band(scale, calibrate, recipe.delta)


def _shape(curves: list[np.ndarray], recipe: Recipe) -> np.ndarray:
    """What a score is divided by before scores are compared; not yet a threshold."""
    if recipe.style == "constant":
        return np.array([max(_upper([curve.max() for curve in curves], recipe.delta), TINY)])
    mean, modulation = conformal.band_shape(curves)
    return np.maximum(mean + modulation, TINY)


def _upper(values: Sequence[float] | np.ndarray, delta: float) -> float:
    return float(np.quantile(values, 1 - delta, method="higher"))
