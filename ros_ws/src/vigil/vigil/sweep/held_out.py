"""Demonstrations as a policy would have seen them: observations at its own rate, and what was commanded from then on.

They come from recordings or from a LeRobotDataset v3.0, without torch. Whether training has seen them nobody can tell from
here: it is up to whoever names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vigil.errors import VigilError
from vigil.policy.observation import prepare_image
from vigil.policy.spec import BundleSpec
from vigil.record.dataset.prepare import Wanted, find_recordings, prepare
from vigil.record.dataset.resample import Grid
from vigil.record.dataset.source import read_source
from vigil.record.episode import GOOD

INFO = Path("meta") / "info.json"  # what makes a folder a LeRobotDataset


@dataclass(frozen=True)
class HeldOut:
    """One demonstrated episode on an even grid of T instants; N columns of the state, D of the action.

    Attributes:
        name: for messages.
        period: of the grid [s].
        images: by camera, uint8 [T, h, w, 3], prepared as the policy sees them.
        states: float32 [T, N], measured; rad and m.
        judged: bool [T], somebody demonstrates at this instant, and no input has a gap there.
        times: float64 [T], of the instants [s].
        command_times, commands: float64 [n] and [n, D], what the arm was told, and when.
    """

    name: str
    period: float
    images: Mapping[str, np.ndarray]
    states: np.ndarray
    judged: np.ndarray
    times: np.ndarray
    command_times: np.ndarray
    commands: np.ndarray

    def targets(self, instant: int, horizon: int, step_dt: float) -> np.ndarray:
        """Commands [horizon, D] due at an instant of the grid and every ``step_dt`` [s] after it; the last one stays."""
        due = self.times[instant] + np.arange(horizon) * step_dt
        return np.stack([np.interp(due, self.command_times, column) for column in self.commands.T], -1)


def grid_rate(periods: Sequence[float]) -> int:
    """Lowest whole number of instants per second on which all of ``periods`` [s] fall, to the millisecond."""
    return 1000 // math.gcd(1000, *(max(1, round(period * 1000)) for period in periods))


def data_identity(data: Path) -> str:
    """Names what is in ``data``, as far as that can be told without reading it; changes when episodes are added."""
    if (data / INFO).is_file():
        return f"{data.resolve()} {(data / INFO).stat().st_mtime_ns}"
    return " ".join(f"{path.resolve()}:{path.stat().st_size}" for path in find_recordings([data]))


def read_held_out(
    data: Path, spec: BundleSpec, rate: int, most: int, told: Callable[[str], None] = lambda why: None
) -> Iterator[HeldOut]:
    """Up to ``most`` demonstrated episodes of ``data``, at ``rate`` instants per second.

    Args:
        told: hears of every episode that is left out, and why.

    Raises:
        VigilError: ``data`` is neither recordings nor a data set, lacks a camera or a column of the policy, or holds no
            demonstration.
    """
    read = _of_dataset if (data / INFO).is_file() else _of_recordings
    found = 0
    for episode in read(data, spec, rate, told):
        if not episode.judged.any():
            told(f"{episode.name}: nobody demonstrates in it")
            continue
        yield episode
        found += 1
        if found == most:
            return
    if not found:
        raise VigilError(
            f"{data} holds no demonstration: give recordings of `vigil collect`, or a LeRobotDataset v3.0 of "
            f"episodes that ended in {' or '.join(GOOD)}"
        )


def _of_recordings(data: Path, spec: BundleSpec, rate: int, told: Callable[[str], None]) -> Iterator[HeldOut]:
    from vigil.monitor.scores import SCORES

    for path in find_recordings([data]):
        try:
            source = read_source(path)
            wanted = Wanted(Grid(rate, "nearest"), draw=not source.cameras, outcomes=GOOD)
            parts, _ = prepare(path, wanted, tuple(SCORES))
        except VigilError as error:
            told(f"{path}: {error}")
            continue
        for part in parts:
            columns = part.source.columns
            order = [
                _place(path, "joint states", columns, spec.state_names),
                _place(path, "arm/state", columns, spec.action_names),
            ]
            if lacking := [name for name in spec.cameras if name not in part.pictures.cameras]:
                raise VigilError(
                    f"{path} has no pictures of {', '.join(lacking)}: the policy looks through them"
                )
            control = part.source.control
            yield HeldOut(
                part.name,
                1.0 / rate,
                {c: _prepared(part.pictures.frames(c, part.part), spec) for c in spec.cameras},
                part.table.state[:, order[0]],
                part.table.intervention & ~part.table.gap,
                part.part.times / 1e9,
                control.stream.stamps / 1e9,
                control.commanded[:, order[1]],
            )


def _of_dataset(data: Path, spec: BundleSpec, rate: int, told: Callable[[str], None]) -> Iterator[HeldOut]:
    from vigil.record.dataset.reader import DatasetReader  # needs the extra `dataset`

    reader = DatasetReader(data)
    if lacking := [name for name in spec.cameras if name not in reader.cameras]:
        raise VigilError(
            f"{data} has no pictures of {', '.join(lacking)}; its cameras are {', '.join(reader.cameras) or 'none'}"
        )
    state, action = "observation.state", "action"
    order = [
        _place(data, state, reader.names(state), spec.state_names),
        _place(data, action, reader.names(action), spec.action_names),
    ]
    optional = [name for name in ("intervention", "control_source", "gap") if name in reader.features]
    for number in reader.episodes:
        outcome = reader.rows[number].get("x_outcome", GOOD[0])
        if outcome not in GOOD:
            told(f"episode {number}: ended with outcome {outcome or 'none'}")
            continue
        table = reader.columns(number, [state, action, "timestamp", *optional])
        times = table["timestamp"].astype(np.float64)
        frames = np.abs(times[None] - np.arange(times[0], times[-1] + 1e-6, 1.0 / rate)[:, None]).argmin(1)
        judged = np.ones(len(times), bool)
        if "control_source" in table:  # a foreign data set does not tell, and is taken for demonstrations
            judged &= table["intervention"].astype(bool)
        if "gap" in table:
            judged &= ~table["gap"].astype(bool)
        yield HeldOut(
            f"episode {number}",
            1.0 / rate,
            {c: _chosen(reader.pictures(number, c), frames, spec) for c in spec.cameras},
            table[state][frames][:, order[0]].astype(np.float32),
            judged[frames],
            times[frames],
            times,
            table[action][:, order[1]].astype(np.float64),
        )


def _place(data: Path, what: str, given: Sequence[str], wanted: Sequence[str]) -> list[int]:
    if lacking := [name for name in wanted if name not in given]:
        raise VigilError(
            f"{data}: {what} has no {', '.join(lacking)}, which the policy needs; it has {', '.join(given)}"
        )
    return [list(given).index(name) for name in wanted]


def _prepared(frames: Iterator[np.ndarray], spec: BundleSpec) -> np.ndarray:
    return np.stack([prepare_image(rgb, spec.image_shape) for rgb in frames])


def _chosen(frames: Iterator[np.ndarray], wanted: np.ndarray, spec: BundleSpec) -> np.ndarray:
    """The frames at the places ``wanted``, prepared; a frame that is wanted twice comes twice."""
    needed = set(wanted.tolist())
    found = {i: prepare_image(rgb, spec.image_shape) for i, rgb in enumerate(frames) if i in needed}
    return np.stack([found[i] for i in wanted.tolist()])
