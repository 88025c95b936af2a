"""One episode as a report tells it: what was seen, who was in control, what the monitor said, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Span:
    """A time during which one authority held; times in s since the episode's start."""

    start: float
    end: float
    authority: str
    reason: str


@dataclass(frozen=True)
class Event:
    """Something that happened at one instant; ``kind`` is alarm, hold, operator, policy or end."""

    at: float
    kind: str
    label: str


@dataclass(frozen=True)
class ScoreSeries:
    """One score over an episode. All arrays [T]; thresholds may be inf."""

    name: str
    kind: str  # observation or action
    stamps: np.ndarray  # [s] since the episode's start
    windowed: np.ndarray
    thresholds: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Score over its threshold: above 1 means above the threshold; NaN where there is no threshold."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.windowed / self.thresholds
        return np.where(np.isfinite(self.thresholds) & (self.thresholds > 0), ratio, np.nan)


@dataclass(frozen=True)
class Frame:
    """One picture, as JPEG."""

    at: float
    jpeg: bytes


@dataclass(frozen=True)
class Story:
    """One episode. ``facts`` are the keys of ``report.json``; ``problems`` say where it went other than told."""

    facts: dict[str, Any]
    title: str
    expectation: str
    duration: float
    spans: tuple[Span, ...]
    events: tuple[Event, ...]
    scores: tuple[ScoreSeries, ...]
    films: dict[str, tuple[Frame, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def told(self) -> bool:
        """True when the episode went as its story says."""
        return not self.problems
