"""A LeRobotDataset v3.0 on disk that grows episode by episode, and is whole after every one of them.

An episode's files are made under ``.staging``, brought to the disk, and renamed into place; ``meta/info.json``, which
says how many episodes there are, comes last. Files numbered beyond that are an episode that was interrupted: whoever
reads the data set does not see them, and the next export removes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vigil.errors import VigilError
from vigil.record.dataset import layout, stats
from vigil.record.dataset.files import owned, publish, read_json, sync_file, write_json
from vigil.record.dataset.layout import INFO, PICTURE, SETTINGS, STAGING, STATS, TASKS, place
from vigil.record.dataset.stats import Stats

WITHOUT_STATS = ("string", "video")  # of video the pictures' statistics come from the encoder's side


@dataclass(frozen=True)
class NewEpisode:
    """What belongs to one episode of T frames.

    Attributes:
        columns: by feature, arrays [T] or [T, n]; without those that LeRobot counts itself.
        videos: finished files in the staging folder, by camera.
        picture_stats: by camera.
        facts: by the names of `layout.EPISODE_FACTS`.
    """

    task: str
    columns: Mapping[str, np.ndarray]
    videos: Mapping[str, Path]
    picture_stats: Mapping[str, Stats]
    facts: Mapping[str, Any]


class Store:
    """One data set, open for adding. Use `open_store`.

    Attributes:
        info: content of ``info.json``; empty before the first episode.
        done: (recording, part) of every episode in it.
    """

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.root, self.settings = root, settings
        self.info: dict[str, Any] = read_json(root / INFO) or {}
        _check_folder(root, self.info)
        _check_settings(root, settings)
        self._remove_unfinished()
        rows = read_rows(root, len(self))
        self.done = {(row["x_recording"], row["x_part"]) for row in rows}
        self._stats = [stats_of_row(row) for row in rows]
        self._tasks = read_tasks(root) if self.info else []

    def __len__(self) -> int:
        return self.info.get("total_episodes", 0)

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Of ``info.json``; empty before the first episode."""
        return self.info.get("features", {})

    def stage(self) -> Path:
        """An empty folder to make an episode's videos in."""
        folder = self.root / STAGING
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def add(self, episode: NewEpisode, features: dict[str, dict[str, Any]], robot: str) -> int:
        """Append an episode; gives its number. It is part of the data set when this returns.

        Raises:
            VigilError: its features are not those of the data set.
            OSError: the disk refuses; `open_store` says so in words.
        """
        if self.features and (why := difference(self.features, features)):
            raise VigilError(f"does not fit the data set: {why}")
        number, first = len(self), self.info.get("total_frames", 0)
        length = len(episode.columns["action"])
        info = self.info or _new_info(self.settings["fps"], features, robot)
        tasks = self._tasks if episode.task in self._tasks else [*self._tasks, episode.task]
        columns = dict(episode.columns)
        columns |= {
            "timestamp": (np.arange(length) / info["fps"]).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(first, first + length),
            "task_index": np.full(length, tasks.index(episode.task)),
        }
        found = {
            name: stats.of_columns(columns[name])
            for name, feature in features.items()
            if feature["dtype"] not in WITHOUT_STATS and name not in layout.SCORE_COLUMNS
        } | {PICTURE + camera: s for camera, s in episode.picture_stats.items()}
        row = _row(number, first, length, episode, info["fps"])
        staging = self.root / STAGING
        pq.write_table(layout.data_table(features, columns), staging / "data.parquet", compression="snappy")
        pq.write_table(
            row_table(row, episode.videos, found), staging / "episode.parquet", compression="snappy"
        )
        pq.write_table(layout.tasks_table(tasks), staging / "tasks.parquet", compression="snappy")
        for path in staging.iterdir():
            sync_file(path)
        for camera, path in episode.videos.items():
            publish(path, self.root / place(layout.VIDEO_PATH, number, video_key=PICTURE + camera))
        publish(staging / "data.parquet", self.root / place(layout.DATA_PATH, number))
        publish(staging / "episode.parquet", self.root / place(layout.EPISODES_PATH, number))
        publish(staging / "tasks.parquet", self.root / TASKS)
        write_json(self.root / STATS, stats.as_json(stats.join([*self._stats, found])))
        info = {
            **info,
            "total_episodes": number + 1,
            "total_frames": first + length,
            "total_tasks": len(tasks),
            "splits": {"train": f"0:{number + 1}"},
        }
        write_json(self.root / INFO, info)
        self.info, self._tasks = info, tasks
        self._stats.append(found)
        self.done.add((episode.facts["x_recording"], episode.facts["x_part"]))
        return number

    def _remove_unfinished(self) -> None:
        shutil.rmtree(self.root / STAGING, ignore_errors=True)
        for pattern in ("data/*/*.parquet", "meta/episodes/*/*.parquet", "videos/*/*/*.mp4", "**/*.partial"):
            for path in self.root.glob(pattern):
                if path.suffix == ".partial" or number_of(path) >= len(self):
                    path.unlink()


@contextmanager
def open_store(root: Path, settings: dict[str, Any]) -> Iterator[Store]:
    """Open the data set in ``root``, or begin one.

    Args:
        settings: what all its episodes have in common, JSON values; kept, and compared when it is opened again.

    Raises:
        VigilError: ``root`` holds something else, or a data set of other settings, or another process is at it.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with owned(root):
            store = Store(root, settings)
            if not (root / SETTINGS).exists():
                write_json(root / SETTINGS, {"settings": settings})
            try:
                yield store
            finally:
                shutil.rmtree(root / STAGING, ignore_errors=True)
    except OSError as error:
        raise VigilError(f"cannot write to {root}: {error.strerror or error}") from None


def number_of(path: Path) -> int:
    """Episode that a numbered file belongs to."""
    return int(path.parent.name.removeprefix("chunk-")) * layout.CHUNK + int(path.stem.removeprefix("file-"))


def read_rows(root: Path, count: int) -> list[dict[str, Any]]:
    """The first ``count`` rows of ``meta/episodes``, of one file or many.

    Raises:
        VigilError: there are fewer.
    """
    rows: list[dict[str, Any]] = []
    try:
        for path in sorted(root.glob("meta/episodes/*/*.parquet")) if count else ():
            rows += pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise VigilError(f"{root}/meta/episodes is damaged: {error}") from None
    rows = [row for row in rows if row["episode_index"] < count]
    if [row["episode_index"] for row in rows] != list(range(count)):
        raise VigilError(f"{root}/meta/episodes has {len(rows)} of the {count} episodes that {INFO} declares")
    return rows


def read_tasks(root: Path) -> list[str]:
    """Texts of the tasks, by their number.

    Raises:
        VigilError: there is no readable list.
    """
    try:
        rows = pq.read_table(root / TASKS).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise VigilError(f"cannot read {root / TASKS}: {error}") from None
    named = "task" if rows and "task" in rows[0] else "__index_level_0__"
    return [row[named] for row in sorted(rows, key=lambda row: row["task_index"])]


def difference(having: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """In what two sets of features differ, in words; empty if they are alike."""
    for name in [*having, *given]:
        if name not in given:
            return f"it has no {name}"
        if name not in having:
            return f"the data set has no {name}"
        for what in ("dtype", "shape", "names"):
            if having[name][what] != given[name][what]:
                return f"{what} of {name} is {given[name][what]}, the data set has {having[name][what]}"
    return ""


def row_table(
    row: Mapping[str, Any], cameras: Sequence[str] | Mapping[str, Any], found: Mapping[str, Stats]
) -> pa.Table:
    """One row of ``meta/episodes``, with its statistics."""
    kinds: dict[str, pa.DataType] = {
        "episode_index": pa.int64(),
        "tasks": pa.list_(pa.string()),
        "length": pa.int64(),
        "data/chunk_index": pa.int64(),
        "data/file_index": pa.int64(),
        "dataset_from_index": pa.int64(),
        "dataset_to_index": pa.int64(),
    }
    for camera in cameras:
        video = f"videos/{PICTURE}{camera}"
        kinds |= {f"{video}/chunk_index": pa.int64(), f"{video}/file_index": pa.int64()}
        kinds |= {f"{video}/from_timestamp": pa.float64(), f"{video}/to_timestamp": pa.float64()}
    kinds |= {"meta/episodes/chunk_index": pa.int64(), "meta/episodes/file_index": pa.int64()}
    kinds |= layout.EPISODE_FACTS
    values = dict(row)
    for feature, one in found.items():
        for key, value in one.items():
            kind: pa.DataType = pa.int64() if key == "count" else pa.float64()
            for _ in range(value.ndim):
                kind = pa.list_(kind)
            kinds[f"stats/{feature}/{key}"] = kind
            values[f"stats/{feature}/{key}"] = value.tolist()
    return pa.table([pa.array([values[name]], kind) for name, kind in kinds.items()], names=list(kinds))


def _row(number: int, first: int, length: int, episode: NewEpisode, fps: int) -> dict[str, Any]:
    chunk, file = divmod(number, layout.CHUNK)
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.task],
        "length": length,
        "dataset_from_index": first,
        "dataset_to_index": first + length,
    }
    for what in ("data", "meta/episodes", *(f"videos/{PICTURE}{camera}" for camera in episode.videos)):
        row |= {f"{what}/chunk_index": chunk, f"{what}/file_index": file}
    for camera in episode.videos:
        video = f"videos/{PICTURE}{camera}"
        row |= {f"{video}/from_timestamp": 0.0, f"{video}/to_timestamp": length / fps}
    return row | dict(episode.facts)


def stats_of_row(row: Mapping[str, Any]) -> dict[str, Stats]:
    """Statistics by feature, out of a row of ``meta/episodes``."""
    found: dict[str, Stats] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            _, feature, key = name.split("/")
            found.setdefault(feature, {})[key] = np.array(value)
    return found


def _new_info(fps: int, features: Mapping[str, Any], robot: str) -> dict[str, Any]:
    video = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": layout.VERSION,
        "fps": fps,
        "features": dict(features),
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": layout.CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": layout.DATA_PATH,
        "video_path": layout.VIDEO_PATH if video else None,
        "robot_type": robot,
        "splits": {},
    }


def _check_folder(root: Path, info: Mapping[str, Any]) -> None:
    ours = (root / SETTINGS).exists()
    if info and not ours:
        raise VigilError(
            f"{root} is a data set of somebody else's, which is left as it is: name another folder"
        )
    # What was killed before its first whole file has left at most partial ones.
    if not ours and any(path.is_file() and path.suffix != ".partial" for path in root.rglob("*")):
        raise VigilError(f"{root} is not empty and holds no data set: name another folder")


def _check_settings(root: Path, settings: Mapping[str, Any]) -> None:
    kept = (read_json(root / SETTINGS) or {}).get("settings", settings)
    differing = sorted(k for k in {**kept, **settings} if kept.get(k) != settings.get(k))
    if differing:
        what = ", ".join(f"{k} {kept.get(k)!r} (now {settings.get(k)!r})" for k in differing)
        raise VigilError(f"{root} was exported with {what}: give the same, or name another folder")
