"""How good a data set is to learn from, in figures, for any LeRobotDataset.

All columns are taken in units of their range in the data set (1 % to 99 % quantile), so that radians and metres count
alike. States and actions need not have the same columns.

Action divergence and transition diversity are after Belkhale, Cui and Sadigh, "Data Quality in Imitation Learning" (2023):
where episodes pass the same state, how much their actions differ, and how much what comes next differs. States are
"the same" if they are among the `NEIGHBOURS` nearest in other episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vigil.record.dataset.reader import DatasetReader

AHEAD_S = 0.5  # how far actions and transitions are followed
NEIGHBOURS = 5
SAMPLES = 3000  # frames that neighbours are looked for among
IDLE_SPEED = 0.02  # [ranges/s] of the fastest column: slower is idle
IDLE_S = 0.5  # a shorter stop is none
CELLS = 10  # per column, for coverage


@dataclass(frozen=True)
class Run:
    """Frames ``start`` to ``stop`` (exclusive) of an episode."""

    start: int
    stop: int


@dataclass(frozen=True)
class EpisodeData:
    """What is looked at of one episode's T frames; D columns."""

    number: int
    state: np.ndarray  # [T, D] rad, m
    action: np.ndarray  # [T, any]
    intervention: np.ndarray  # bool [T]
    alarm: np.ndarray  # bool [T]
    gap: np.ndarray  # bool [T]


@dataclass(frozen=True)
class EpisodeQuality:
    """Figures of one episode; None where there is nothing to take it from.

    Attributes:
        idle: stops of at least `IDLE_S`.
        idle_share: of its time.
        speed: median speed of the fastest column while in motion [ranges/s].
        operator_speed: the same, while an operator had control.
        divergence, diversity: action divergence and transition diversity, rms [ranges].
        alarms: frames at which an alarm begins.
    """

    idle: tuple[Run, ...]
    idle_share: float
    speed: float | None
    operator_speed: float | None
    divergence: float | None
    diversity: float | None
    alarms: tuple[int, ...]


@dataclass(frozen=True)
class Coverage:
    """Where a data set has been; D columns.

    Attributes:
        low, high: [D] 1 % and 99 % quantile.
        shares: [D, CELLS] share of the frames in each tenth of that range; what is outside counts to the ends.
        plane: [n, 2] states of a sample of frames, in the plane of their largest spread [ranges].
        episode: [n] whose.
    """

    columns: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    shares: np.ndarray
    plane: np.ndarray
    episode: np.ndarray


def read_episodes(reader: DatasetReader) -> list[EpisodeData]:
    """Of every episode that is not marked as deleted; flags that a data set does not have are False."""
    flags = [name for name in ("intervention", "alarm", "gap") if name in reader.features]
    found = []
    for number in reader.episodes:
        table = reader.columns(number, ["observation.state", "action", *flags])
        none = np.zeros(len(table["action"]), bool)
        values = {
            name: table[name].astype(bool) if name in table else none
            for name in ("intervention", "alarm", "gap")
        }
        found.append(EpisodeData(number, table["observation.state"], table["action"], **values))
    return found


def ranges(episodes: Sequence[EpisodeData]) -> tuple[np.ndarray, np.ndarray]:
    """(low, width) of every column of the states; the width is never 0."""
    return _ranges([episode.state for episode in episodes])


def _ranges(paths: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(np.concatenate(paths), [0.01, 0.99], axis=0)
    return low, np.maximum(high - low, 1e-6)


def judge(episodes: Sequence[EpisodeData], fps: float) -> list[EpisodeQuality]:
    """Figures of every episode, in the order given."""
    _, width = _ranges([episode.action for episode in episodes])
    differing = _differing(episodes, width, fps)
    return [_judge(episode, width, fps, *pair) for episode, pair in zip(episodes, differing, strict=True)]


def _judge(
    episode: EpisodeData, width: np.ndarray, fps: float, divergence: float | None, diversity: float | None
) -> EpisodeQuality:
    speed = fastest(episode.action, width, fps)
    idle = runs(speed < IDLE_SPEED, round(IDLE_S * fps))
    resting = np.zeros(len(speed), bool)
    for run in idle:
        resting[run.start : run.stop] = True
    moving = ~resting
    begins = np.flatnonzero(np.diff(np.concatenate([[0], episode.alarm.astype(int)])) == 1)
    return EpisodeQuality(
        idle=tuple(idle),
        idle_share=float(resting.mean()),
        speed=_median(speed[moving]),
        operator_speed=_median(speed[moving & episode.intervention]),
        divergence=divergence,
        diversity=diversity,
        alarms=tuple(int(i) for i in begins),
    )


def fastest(path: np.ndarray, width: np.ndarray, fps: float) -> np.ndarray:
    """Speed of the fastest column at each of T frames, over a tenth of a second [ranges/s]."""
    reach = max(1, round(0.05 * fps))
    index = np.arange(len(path))
    before, after = np.maximum(index - reach, 0), np.minimum(index + reach, len(path) - 1)
    moved = np.abs(path[after] - path[before]) / width
    return moved.max(1) * fps / np.maximum(after - before, 1)


def runs(flags: np.ndarray, shortest: int) -> list[Run]:
    """Stretches of at least ``shortest`` flagged frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return [Run(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= shortest]


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _differing(
    episodes: Sequence[EpisodeData], action_width: np.ndarray, fps: float
) -> list[tuple[float | None, float | None]]:
    """(action divergence, transition diversity) of every episode; None without other episodes to compare with."""
    low, width = ranges(episodes)
    ahead = max(1, round(AHEAD_S * fps))
    total = sum(max(len(e.state) - ahead, 0) for e in episodes)
    every = max(1, -(-total // SAMPLES))
    states, actions, nexts, owner = [], [], [], []
    for place, episode in enumerate(episodes):
        rows = np.arange(0, max(len(episode.state) - ahead, 0), every)
        states.append((episode.state[rows] - low) / width)
        actions.append((episode.action[rows + ahead] - episode.action[rows]) / action_width)
        nexts.append((episode.state[rows + ahead] - episode.state[rows]) / width)
        owner.append(np.full(len(rows), place))
    points, action, following, owner = (np.concatenate(x) for x in (states, actions, nexts, owner))
    if len(np.unique(owner)) < 2 or len(points) <= NEIGHBOURS:
        return [(None, None)] * len(episodes)
    divergence, diversity = np.empty(len(points)), np.empty(len(points))
    for part in np.array_split(np.arange(len(points)), max(1, len(points) // 500)):
        distance = ((points[part, None] - points[None]) ** 2).sum(-1)
        distance[owner[part, None] == owner[None]] = np.inf
        near = np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        known = np.isfinite(np.take_along_axis(distance, near, 1))[..., None]
        for values, result in ((action, divergence), (following, diversity)):
            apart = np.where(known, values[near] - values[part, None], 0.0) ** 2
            result[part] = apart.sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)
    found = []
    for place in range(len(episodes)):
        own = owner == place
        rms = [float(np.sqrt(x[own].mean())) if own.any() else None for x in (divergence, diversity)]
        found.append((rms[0], rms[1]))
    return found


def coverage(episodes: Sequence[EpisodeData], columns: Sequence[str]) -> Coverage:
    """Where all episodes together have been."""
    low, width = ranges(episodes)
    scaled = np.concatenate([(episode.state - low) / width for episode in episodes])
    cell = np.clip((scaled * CELLS).astype(int), 0, CELLS - 1)
    shares = np.stack([np.bincount(column, minlength=CELLS) for column in cell.T]) / len(scaled)
    owner = np.concatenate([np.full(len(e.state), place) for place, e in enumerate(episodes)])
    every = max(1, -(-len(scaled) // SAMPLES))
    sample = scaled[::every] - scaled.mean(0)
    _, _, axes = np.linalg.svd(sample, full_matrices=False)
    plane = sample @ axes[:2].T
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    return Coverage(tuple(columns), low, low + width, shares, plane, owner[::every])
