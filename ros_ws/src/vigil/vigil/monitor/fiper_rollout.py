"""One roll-out published with FIPER (Roemer et al., NeurIPS 2025), as a roll-out of this format.

A file holds a dictionary with ``metadata`` and ``rollout`` (a list with a dictionary per tick), or that list alone,
whose first entry may be the metadata. A tick has ``obs_embedding`` [E] and ``action_pred`` [K, H, D]; each may be a
list with one array per robot. Only positions are kept, as columns x, y, z (x0, y0, z0, x1, ... of several robots).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from vigil.errors import VigilError
from vigil.monitor.fiper_pickle import MOST_BYTES, as_array, read_pickle
from vigil.record.rollout import POLICY, Episode, Rollout
from vigil.rig import Positive, Strict

SUBSETS = ("calibration", "test")
IN_DISTRIBUTION = ("id", "ca", "na", "calibration")
EXECUTED = 8  # steps per tick where neither options nor metadata say

Columns = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=3, description="x, y and z")
]


class ImportOptions(Strict):
    """What the files do not say, or say wrongly.

    Without `position` and `velocity` the columns are those of the metadata's ``action_mappings`` (``pos``, else
    ``vel``), else the first three (or as many as there are) taken for positions.
    """

    position: Columns | None = Field(None, description="action columns that are positions [m]")
    velocity: Columns | None = Field(
        None, description="action columns that are velocities [m/s], to be integrated"
    )
    dt: Positive | None = Field(None, description="of that integration [s]; by default step_dt")
    start: Columns | None = Field((0, 1, 2), description="state columns where integration starts; none: at 0")
    step_dt: Positive = Field(0.1, description="time between two steps of a chunk [s]")
    executed: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="steps executed per tick; by default action_execution_horizon of the metadata, else 8",
    )
    task: str = Field("", pattern=r"^(\w[\w.-]*)?$", description="by default the folder's name")
    most_bytes: Annotated[int, Field(ge=1)] = Field(MOST_BYTES, description="largest file that is read")

    @model_validator(mode="after")
    def _one_reading(self) -> ImportOptions:
        if self.position and self.velocity:
            raise ValueError("position and velocity are alternatives: give one of them")
        if self.dt and self.position:
            raise ValueError("dt is for velocities: leave it out with position")
        for columns in (self.position, self.velocity, self.start):
            if columns and len(set(columns)) < len(columns):
                raise ValueError(f"columns {list(columns)} name one twice")
        return self


@dataclass(frozen=True)
class Reading:
    """Which action columns are looked at, as what."""

    columns: tuple[int, ...]
    integrated: bool
    source: str

    def __str__(self) -> str:
        kind = "velocity" if self.integrated else "position"
        return f"{kind} {','.join(map(str, self.columns))} ({self.source})"


def convert(path: Path, task: str, subset: str, options: ImportOptions) -> tuple[Rollout, str, Reading]:
    """The roll-out in one file, its subset, and how its actions were read.

    Raises:
        VigilError: the file is refused or lacks something; names file, tick and key.
    """
    metadata, ticks = split_metadata(read_pickle(path, options.most_bytes), path)
    subset = subset or _text(metadata.get("rollout_type"))
    subset = subset if subset in SUBSETS else "test"
    embedding = _stack(path, "obs_embedding", [_embedding(path, i, tick) for i, tick in enumerate(ticks)])
    actions = _stack(path, "action_pred", [_actions(path, i, tick) for i, tick in enumerate(ticks)])
    robots, columns = actions.shape[3:]  # [T, K, H, R, D]
    reading = choose_columns(metadata, columns, options, path)
    positions = actions[..., list(reading.columns)]
    if reading.integrated:
        positions = np.cumsum(positions, axis=2) * (options.dt or options.step_dt)
        positions += _starts(path, ticks, robots, len(reading.columns), options)[:, None, None]

    axes = "xyz"[: len(reading.columns)]
    suffixes = [""] if robots == 1 else [str(robot) for robot in range(robots)]
    names = [[axis + suffix for axis in axes] for suffix in suffixes]
    executed = options.executed or _whole(metadata.get("action_execution_horizon")) or EXECUTED
    period = executed * options.step_dt
    subtype = _text(metadata.get("rollout_subtype"))
    # Roll-outs without a subtype: those to calibrate on are the normal ones.
    ood = subtype not in IN_DISTRIBUTION if subtype else subset == "test"
    episode = Episode.model_validate(
        {
            "rig": "fiper",
            "task": task,
            "perturbation": "ood" if ood else "none",
            "outcome": "success" if succeeded(metadata, path) else "failure",
            "duration_s": len(ticks) * period,
            "ood": ood,
            "subtype": subtype,
            "end_effectors": [
                {"chain": "position", "columns": arm, "tool_offset": [0.0, 0.0, 0.0]} for arm in names
            ],
        }
    )
    rollout = Rollout(
        stamps=np.arange(len(ticks)) * period,
        tick=np.arange(len(ticks)),
        embedding=embedding,
        samples=positions.reshape(*positions.shape[:3], -1),
        names=tuple(name for arm in names for name in arm),
        step_dt=options.step_dt,
        authority=np.full(len(ticks), POLICY),
        joint_positions=np.empty((len(ticks), 0)),
        joint_names=(),
        episode=episode,
    )
    return rollout, subset, reading


def split_metadata(content: Any, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metadata (empty if there are none) and ticks of either published form."""
    metadata: Any = {}
    ticks = content
    if isinstance(content, dict):
        metadata, ticks = content.get("metadata") or {}, content.get("rollout")
    elif (
        isinstance(content, list) and content and isinstance(content[0], dict) and content[0].get("metadata")
    ):
        inner = content[0]["metadata"]
        metadata, ticks = inner if isinstance(inner, dict) else content[0], content[1:]
    if not isinstance(metadata, dict):
        raise VigilError(f"{path}: metadata is a {type(metadata).__name__}, must be a dictionary")
    if not (isinstance(ticks, list) and ticks and all(isinstance(tick, dict) for tick in ticks)):
        raise VigilError(
            f"{path} holds no roll-out: must be a list of dictionaries, one per tick, or a dictionary with that list "
            "under 'rollout'"
        )
    return metadata, ticks


def succeeded(metadata: dict[str, Any], path: Path) -> bool:
    """Whether the episode succeeded, by ``successful`` of the metadata, else by the file's name.

    Raises:
        VigilError: neither says. (The published reader takes such a roll-out for a success.)
    """
    given = metadata.get("successful")
    if given is not None:
        value = _array(path, "successful of the metadata", given)
        if value.size != 1 or value.item() not in (0, 1):
            raise VigilError(f"{path}: successful of the metadata must be true or false")
        return bool(value.item())
    name = path.stem.lower() + "_"
    success = "_s_" in name or ("success" in name and "unsuccess" not in name)
    failure = "_f_" in name or "failure" in name
    if success == failure:
        raise VigilError(
            f"{path}: neither 'successful' in its metadata nor its name says how it ended: put success or failure "
            "into the file's name"
        )
    return success


def choose_columns(metadata: dict[str, Any], columns: int, options: ImportOptions, path: Path) -> Reading:
    """Which of ``columns`` action columns to read; VigilError if there are too few."""
    mappings = metadata.get("action_mappings")
    mappings = mappings if isinstance(mappings, dict) else {}
    if options.position or options.velocity:
        chosen = options.position or options.velocity
        reading = Reading(chosen, options.position is None, "as told")
    elif declared := _indices(mappings.get("pos")):
        reading = Reading(declared, False, "by the metadata")
    elif declared := _indices(mappings.get("vel")):
        reading = Reading(declared, True, "by the metadata")
    else:
        reading = Reading(tuple(range(min(columns, 3))), False, "assumed")
    if max(reading.columns) >= columns:
        raise VigilError(
            f"{path}: action_pred has {columns} columns, 0 to {columns - 1}; {reading} is not among them: name others "
            "with --position or --velocity"
        )
    return reading


def _indices(value: Any) -> tuple[int, ...]:
    fits = isinstance(value, list | tuple) and 1 <= len(value) <= 3
    return tuple(value) if fits and all(isinstance(i, int) and i >= 0 for i in value) else ()


def _starts(path: Path, ticks: list[dict], robots: int, columns: int, options: ImportOptions) -> np.ndarray:
    """Where integration starts [T, R, columns]: the robot's state at each tick, 0 if the file has none."""
    starts = np.zeros((len(ticks), robots, columns))
    states = [tick.get("state") if tick.get("agent_pos") is None else tick["agent_pos"] for tick in ticks]
    if options.start is None or all(state is None for state in states):
        return starts
    for i, state in enumerate(states):
        per_robot = _per_robot(state)
        if len(per_robot) != robots or len(options.start) < columns:
            raise VigilError(
                f"{path}: tick {i} has a state for {len(per_robot)} robots and --start names {len(options.start)} "
                f"columns; needed are {robots} and {columns}. Integrate from 0 with --start none"
            )
        for robot, value in enumerate(per_robot):
            values = _array(path, f"state of tick {i}", value).reshape(-1)
            if max(options.start[:columns]) >= len(values):
                raise VigilError(
                    f"{path}: the state of tick {i} has {len(values)} columns, --start names "
                    f"{list(options.start[:columns])}: name others, or integrate from 0 with --start none"
                )
            starts[i, robot] = values[list(options.start[:columns])]
    return starts


def _embedding(path: Path, i: int, tick: dict) -> np.ndarray:
    """[E], of all robots one after the other."""
    parts = []
    for value in _per_robot(_key(path, i, tick, "obs_embedding")):
        array = _array(path, f"obs_embedding of tick {i}", value)
        if array.ndim == 0 or array.size == 0 or array.size != array.shape[-1]:
            raise VigilError(
                f"{path}: obs_embedding of tick {i} has shape {list(array.shape)}, must be [E] or [1, E]"
            )
        parts.append(array.reshape(-1))
    return np.concatenate(parts)


def _actions(path: Path, i: int, tick: dict) -> np.ndarray:
    """[K, H, R, D] of R robots."""
    parts = [
        _array(path, f"action_pred of tick {i}", value)
        for value in _per_robot(_key(path, i, tick, "action_pred"))
    ]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) != 1 or len(shapes[0]) != 3 or 0 in shapes[0]:
        raise VigilError(
            f"{path}: action_pred of tick {i} has shape {' and '.join(str(list(s)) for s in shapes)}, must be "
            "[samples, steps, columns], the same for every robot"
        )
    return np.stack(parts, axis=2)


def _key(path: Path, i: int, tick: dict, key: str) -> Any:
    if tick.get(key) is None:
        raise VigilError(
            f"{path}: tick {i} has no {key}, only {', '.join(sorted(map(str, tick)))[:200]}: record the roll-out with "
            "its embeddings and sampled actions"
        )
    return tick[key]


def _per_robot(value: Any) -> list[Any]:
    """One value per robot: the items of a list, unless these are bare numbers."""
    if not isinstance(value, list):
        try:
            value = as_array(value)
        except (ValueError, TypeError):
            return [value]  # whoever reads it says what is wrong
    if not isinstance(value, list) or not value:
        return [value]
    numbers = all(isinstance(item, int | float) for item in value)
    return [np.asarray(value, np.float64)] if numbers else value


def _array(path: Path, what: str, value: Any) -> np.ndarray:
    """Finite numbers, float64."""
    try:
        array = value if isinstance(value, np.ndarray) else as_array(value)
        if isinstance(array, list) or array.dtype.kind not in "biuf":
            raise ValueError("it holds no numbers")
    except (ValueError, TypeError) as error:
        raise VigilError(f"{path}: {what} cannot be read: {error}; must be an array of numbers") from None
    array = array.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # roll-outs are stored in single precision
        bad = np.count_nonzero(~np.isfinite(array.astype(np.float32)))
    if bad:
        raise VigilError(f"{path}: {what} has {bad} non-finite values: leave this roll-out out")
    return array


def _stack(path: Path, key: str, values: list[np.ndarray]) -> np.ndarray:
    for i, value in enumerate(values):
        if value.shape != values[0].shape:
            raise VigilError(
                f"{path}: {key} of tick {i} has shape {list(value.shape)}, of tick 0 {list(values[0].shape)}"
            )
    return np.stack(values)


def _whole(value: Any) -> int:
    """A positive whole number, or 0."""
    try:
        number = as_array(value)
    except (ValueError, TypeError):
        return 0
    fits = isinstance(number, np.ndarray) and number.size == 1 and number.dtype.kind in "iu"
    return max(int(number.item()), 0) if fits else 0


def _text(value: Any) -> str:
    try:
        text = as_array(value)
        return str(text.item())[:100] if isinstance(text, np.ndarray) and text.dtype.kind == "U" else ""
    except (ValueError, TypeError):
        return ""
