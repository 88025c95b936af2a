"""A LeRobotDataset v3.0 -> arrays to train on: Vigil's own (`vigil dataset export`), or anybody's with the rig's names.

Columns and cameras are matched by name. Where the data set says who had control, rows are those of policy and operator;
an operator's corrections may count more, and what led to them less (`TrainConfig.intervention_weight`, as DAgger and
Sirius do). Rows in gaps, and episodes that are marked as deleted or failed, are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from vigil.errors import VigilError
from vigil.policy.observation import prepare_image
from vigil.record.dataset.layout import DELETED, INFO
from vigil.record.dataset.reader import DatasetReader
from vigil.record.episode import GOOD
from vigil.train.config import TrainConfig

CONTROLLED = ("policy", "operator", "blended")


@dataclass(frozen=True)
class DatasetRows:
    """Rows of all episodes; N rows, D columns.

    Attributes:
        images: by camera, uint8 [N, S, S, 3].
        states, chunks: float32 [N, D] and [N, H, D]; rad and m.
        episode: int [N].
        weights: float64 [N], how often a row is drawn, relative to the others.
        task: text that all episodes share.
    """

    images: dict[str, np.ndarray]
    states: np.ndarray
    chunks: np.ndarray
    episode: np.ndarray
    weights: np.ndarray
    task: str


def read_dataset(
    root: Path, columns: Sequence[str], cameras: Sequence[str], task: str, config: TrainConfig
) -> DatasetRows:
    """All rows of the data set in ``root``, one per ``config.step_dt``.

    Args:
        columns: of states and actions, by name; cameras: by name, as in ``observation.images.NAME``.
        task: text of the task to be learnt; where a data set has only one, that one is.

    Raises:
        VigilError: columns or cameras are missing, it has several tasks and not this one, or no row is left.
    """
    reader = DatasetReader(root)
    if lacking := [name for name in cameras if name not in reader.cameras]:
        raise VigilError(
            f"{root} has no pictures of {', '.join(lacking)}; its cameras are {', '.join(reader.cameras)}"
        )
    order = {feature: _order(reader, feature, columns) for feature in ("observation.state", "action")}
    text = _task(reader, task)
    chosen = [
        number
        for number in reader.episodes
        if reader.rows[number]["tasks"] == [text] and reader.rows[number].get("x_outcome", "success") in GOOD
    ]
    shown = track(chosen, "reading", transient=True, disable=not sys.stderr.isatty())
    parts = [_read_episode(reader, number, order, cameras, config) for number in shown]
    parts = [part for part in parts if len(part.states)]
    if not parts:
        raise VigilError(
            f"{root} has no rows to learn from: none of its {len(reader.rows)} episodes of the task {text!r} ended in "
            f"{' or '.join(GOOD)} with somebody in control"
        )
    weights = np.concatenate([part.weights for part in parts])
    if not weights.any():
        raise VigilError(
            f"{root}: every row has the weight 0: raise intervention_weight, or lower pre_intervention"
        )
    return DatasetRows(
        images={name: np.concatenate([part.images[name] for part in parts]) for name in cameras},
        states=np.concatenate([part.states for part in parts]),
        chunks=np.concatenate([part.chunks for part in parts]),
        episode=np.concatenate([part.episode for part in parts]),
        weights=weights,
        task=text,
    )


def _order(reader: DatasetReader, feature: str, columns: Sequence[str]) -> list[int]:
    names = reader.names(feature)
    if lacking := [name for name in columns if name not in names]:
        raise VigilError(f"{reader.root}: {feature} has no {', '.join(lacking)}; it has {', '.join(names)}")
    return [names.index(name) for name in columns]


def _task(reader: DatasetReader, wanted: str) -> str:
    if wanted in reader.tasks or len(reader.tasks) == 1:
        return wanted if wanted in reader.tasks else reader.tasks[0]
    raise VigilError(
        f"{reader.root} has the tasks {reader.tasks}: set the rig's task to the one to be learnt"
    )


def _read_episode(
    reader: DatasetReader,
    episode: int,
    order: dict[str, list[int]],
    cameras: Sequence[str],
    config: TrainConfig,
) -> DatasetRows:
    having = [name for name in ("intervention", "control_source", "gap") if name in reader.features]
    table = reader.columns(episode, ["observation.state", "action", "timestamp", *having])
    times = table["timestamp"].astype(np.float64)
    steps = np.arange(0.0, times[-1] + 1e-6, config.step_dt)
    rows = np.unique(np.abs(times[None] - steps[:, None]).argmin(1))
    intervention = table.get("intervention", np.zeros(len(times), bool)).astype(bool)
    kept = np.ones(len(times), bool)
    if "control_source" in table:
        kept &= np.isin(table["control_source"].astype(str), CONTROLLED)
    if "gap" in table:
        kept &= ~table["gap"].astype(bool)
    rows = rows[kept[rows]]
    actions = table["action"][:, order["action"]]
    due = times[rows, None] + np.arange(config.horizon) * config.step_dt
    chunks = np.stack([np.interp(due, times, column) for column in actions.T], -1)
    return DatasetRows(
        images={name: _pictures(reader, episode, name, rows, config.image_size) for name in cameras},
        states=table["observation.state"][rows][:, order["observation.state"]].astype(np.float32),
        chunks=chunks.astype(np.float32),
        episode=np.full(len(rows), episode),
        weights=row_weights(intervention, times, config)[rows],
        task="",
    )


def row_weights(intervention: np.ndarray, times: np.ndarray, config: TrainConfig) -> np.ndarray:
    """float64 [T]: 1, more under an operator's correction, 0 where the policy was about to need one.

    A demonstration, which an operator gives from its first to its last frame, corrects nothing and counts 1.
    """
    weights = np.ones(len(times))
    if intervention.all():
        return weights
    weights[intervention] = config.intervention_weight
    for begin in np.flatnonzero(np.diff(intervention.astype(int)) == 1) + 1:
        led_to_it = (times >= times[begin] - config.pre_intervention) & (times < times[begin]) & ~intervention
        weights[led_to_it] = 0.0
    return weights


def _pictures(reader: DatasetReader, episode: int, camera: str, rows: np.ndarray, size: int) -> np.ndarray:
    wanted = set(rows.tolist())
    found = [
        prepare_image(rgb, size) for i, rgb in enumerate(reader.pictures(episode, camera)) if i in wanted
    ]
    return np.stack(found) if found else np.empty((0, size, size, 3), np.uint8)


def cache_key(root: Path, config: TrainConfig) -> str:
    """Text that a cache of `read_dataset` is valid for."""
    changing = [root / INFO, root / DELETED]
    content = [path.read_text(encoding="utf-8") if path.exists() else "" for path in changing]
    return json.dumps([config.data_settings(), content], sort_keys=True)
