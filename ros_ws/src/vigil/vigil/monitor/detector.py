"""From scores to a verdict on every tick: windows, thresholds, their conjunction, the latch, the reason in words.

An alarm is raised where, for one of the ``clauses``, every score named in it is above its threshold at the same tick.
FIPER is the single clause (rnd, ace).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vigil.monitor.conformal import at
from vigil.monitor.features import Evidence, Features, Kinematics
from vigil.monitor.score import ACTION, OBSERVATION, Score
from vigil.monitor.windows import Window, windowed
from vigil.record.rollout import VERDICTS

NOMINAL, BENIGN_OOD, UNCERTAIN, ALARM, OUT_OF_RANGE, UNCALIBRATED, STALE = range(
    7
)  # as vigil_msgs/FailureStatus

Clauses = tuple[tuple[str, ...], ...]

RELEASE = 0.9  # of the threshold: a score that was above it counts as above until it falls below this


@dataclass
class Channel:
    """One fitted score with its window and thresholds."""

    score: Score
    window: int  # ticks
    threshold: np.ndarray  # [L], of the windowed score, by tick since the start; the last value holds
    single: float  # of the raw score of one tick: what OUT_OF_RANGE is judged by

    @property
    def name(self) -> str:
        return self.score.name


class Hysteresis:
    """Keeps a verdict from flickering while a score hovers at its threshold.

    It never raises an alarm, and so costs none of the calibrated bound: for that all scores of a clause have to be above
    their thresholds at one tick. It only ends one later.
    """

    def __init__(self, members: list[list[int]]) -> None:
        self._members = members
        self._held: np.ndarray | None = None
        self._alarmed = [False] * len(members)

    def step(self, sums: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, bool]:
        """Which of S scores count as above, and whether that is an alarm."""
        above = sums > thresholds
        held = above if self._held is None else above | (self._held & (sums > RELEASE * thresholds))
        self._alarmed = [
            bool(above[members].all() or (alarmed and held[members].all()))
            for members, alarmed in zip(self._members, self._alarmed, strict=True)
        ]
        self._held = held
        return held, any(self._alarmed)


@dataclass(frozen=True)
class Judgement:
    """Scores [T, S] and alarms [T] of one segment, offline."""

    scores: np.ndarray
    windowed: np.ndarray
    thresholds: np.ndarray
    alarm: np.ndarray
    verdict: np.ndarray


@dataclass(frozen=True)
class Status:
    """Verdict on one tick: the content of one FailureStatus message."""

    stamp: float
    tick: int
    verdict: int
    alarm: bool
    reason: str
    scores: np.ndarray  # [S]; NaN where not computed
    windowed: np.ndarray
    thresholds: np.ndarray

    @property
    def name(self) -> str:
        return VERDICTS[self.verdict]


@dataclass
class Detector:
    """Judges evidence tick by tick (`update`) or a whole segment at once (`judge`)."""

    channels: list[Channel]
    clauses: Clauses
    kinematics: Kinematics
    out_of_range_ticks: int = 5  # ticks from the start on that must all be above before OUT_OF_RANGE is said
    latched: bool = field(default=False, init=False)
    _windows: list[Window] = field(init=False)
    _memory: Features | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._context = max(channel.score.context for channel in self.channels)
        self._recall = max(channel.score.recall for channel in self.channels)
        self._index = {channel.name: i for i, channel in enumerate(self.channels)}
        self._members = [[self._index[name] for name in clause] for clause in self.clauses]
        self._kind = {
            kind: [i for i, c in enumerate(self.channels) if c.score.kind == kind]
            for kind in (OBSERVATION, ACTION)
        }
        self.reset()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.channels)

    @property
    def kinds(self) -> tuple[int, ...]:
        """0 for observation scores, 1 for action scores."""
        return tuple(int(channel.score.kind == ACTION) for channel in self.channels)

    def reset(self) -> None:
        """Forget all ticks and the latched alarm: a new episode or a new authority begins."""
        self.latched = False
        self._restart()

    def _restart(self) -> None:
        self._windows = [Window(channel.window) for channel in self.channels]
        self._memory = None
        self._past: np.ndarray | None = None
        self._start = math.nan
        self._last_stamp = -math.inf
        self._last_tick = -1
        self._ticks = 0
        self._always_above = True
        self._hysteresis = Hysteresis(self._members)

    def update(self, evidence: Evidence, *, latch: bool = True) -> Status:
        """Judge one tick. Whatever the evidence holds, this answers, and a flaw in it means STALE.

        Repeated ticks and ones from the past are no new evidence: they do not enter the windows.
        ``latch``: whether an alarm at this tick is remembered until `reset`.
        """
        if flaw := self._flaw(evidence):
            return self.stale(evidence.stamp, evidence.tick, flaw)
        if evidence.tick < self._last_tick:  # newer stamp, smaller tick: the policy was restarted
            self._restart()
        if self._ticks == 0:
            self._start = evidence.stamp
        try:
            features = self._features(evidence)
            seen = features if self._memory is None else self._memory.append(features)
            scores = np.array([float(c.score.score(seen[-1 - c.score.context :])[-1]) for c in self.channels])
        except (
            Exception
        ) as error:  # of another size than calibrated, or whatever else: the tick was not judged
            return self.stale(
                evidence.stamp, evidence.tick, f"cannot be scored ({type(error).__name__}: {error})"
            )
        if not np.isfinite(scores).all():
            bad = [c.name for c, s in zip(self.channels, scores, strict=True) if not np.isfinite(s)]
            return self.stale(evidence.stamp, evidence.tick, f"{', '.join(bad)} overflowed on this evidence")
        sums = np.array([w.push(s) for w, s in zip(self._windows, scores, strict=True)])
        thresholds = np.array([at(channel.threshold, self._ticks) for channel in self.channels], np.float64)
        self._memory = seen[-self._context :] if self._context else None
        self._past = features.seen()[-self._recall :] if self._recall else None
        self._last_stamp, self._last_tick = evidence.stamp, evidence.tick
        self._ticks += 1
        observation = self._kind[OBSERVATION]
        self._always_above &= bool(observation) and any(
            scores[i] > self.channels[i].single for i in observation
        )
        out_of_range = self._always_above and self._ticks >= self.out_of_range_ticks
        verdict = self._verdict(*self._hysteresis.step(sums, thresholds), out_of_range)
        if verdict == ALARM and latch:
            self.latched = True
        reason = self._reason(verdict, sums, thresholds)
        return Status(evidence.stamp, evidence.tick, verdict, self.latched, reason, scores, sums, thresholds)

    def stale(self, stamp: float, tick: int, why: str, verdict: int = STALE) -> Status:
        """The status where there is nothing to judge."""
        unknown = np.full(len(self.channels), np.nan)
        thresholds = np.array([at(channel.threshold, self._ticks) for channel in self.channels], np.float64)
        return Status(stamp, tick, verdict, self.latched, why, unknown, unknown.copy(), thresholds)

    def raw(self, features: Features) -> np.ndarray:
        """Raw scores [T, S] of one segment."""
        return np.stack([channel.score.score(features) for channel in self.channels], axis=1)

    def judge(self, features: Features) -> Judgement:
        """Judge a whole segment at once; the same numbers as `update` gives tick by tick."""
        scores = self.raw(features)
        sums = np.stack([windowed(scores[:, i], c.window) for i, c in enumerate(self.channels)], axis=1)
        ticks = np.arange(len(features))
        thresholds = np.stack([at(c.threshold, ticks) for c in self.channels], axis=1)
        hysteresis = Hysteresis(self._members)
        observation = self._kind[OBSERVATION]
        single = np.array([self.channels[i].single for i in observation])
        always = np.logical_and.accumulate((scores[:, observation] > single).any(axis=1))
        always &= ticks + 1 >= self.out_of_range_ticks
        verdict = np.array(
            [
                self._verdict(*hysteresis.step(*tick), bool(out))
                for *tick, out in zip(sums, thresholds, always, strict=True)
            ]
        )
        return Judgement(scores, sums, thresholds, verdict == ALARM, verdict)

    def _features(self, evidence: Evidence) -> Features:
        samples = evidence.samples.reshape(1, evidence.k, evidence.horizon, len(evidence.names))
        return Features(
            elapsed=np.array([evidence.stamp - self._start]),
            embedding=np.asarray(evidence.embedding, np.float32)[None],
            positions=np.asarray(
                self.kinematics.positions(samples, evidence.names, evidence.step_dt), np.float32
            ),
            step_dt=evidence.step_dt,
            past=self._past,
        )

    def _flaw(self, evidence: Evidence) -> str:
        if flaw := evidence.flaw():
            return flaw
        if not math.isfinite(evidence.stamp):
            return f"the stamp is {evidence.stamp}"
        if evidence.stamp < self._last_stamp:
            return f"time went backwards by {self._last_stamp - evidence.stamp:.3f} s"
        if evidence.stamp == self._last_stamp or evidence.tick == self._last_tick:
            return f"tick {evidence.tick} again: no new evidence"
        if lacking := [c.name for c in self.channels if evidence.k < c.score.least_k]:
            return f"{evidence.k} sample per tick: {', '.join(lacking)} cannot be told from so few"
        if missing := [name for name in self.kinematics.columns if name not in evidence.names]:
            return f"samples have columns {list(evidence.names)}, {missing} are missing"
        return ""

    def _verdict(self, above: np.ndarray, alarm: bool, out_of_range: bool) -> int:
        if alarm:
            return ALARM
        if out_of_range:
            return OUT_OF_RANGE
        # Where a detector has alarms of either kind alone, an excess without alarm lacks its partner.
        if any(above[i] for i in self._kind[ACTION]):
            return UNCERTAIN
        return BENIGN_OOD if any(above[i] for i in self._kind[OBSERVATION]) else NOMINAL

    def _reason(self, verdict: int, sums: np.ndarray, thresholds: np.ndarray) -> str:
        def excess(indices: list[int]) -> str:
            return ", ".join(
                f"{self.channels[i].name} {sums[i] / thresholds[i]:.2f} x its threshold"
                for i in indices
                if sums[i] > RELEASE * thresholds[i]
            )

        every = list(range(len(self.channels)))
        if verdict == ALARM:
            return f"failure predicted: {excess(every)}"
        if verdict == OUT_OF_RANGE:
            return f"the scene is not the calibrated one: new at every one of the {self._ticks} ticks since the start"
        if verdict == UNCERTAIN:
            return f"the policy is uncertain: {excess(self._kind[ACTION])}"
        if verdict == BENIGN_OOD:
            return f"unusual observation, the policy is certain: {excess(self._kind[OBSERVATION])}"
        return "as in calibration"
