"""Reading a LeRobotDataset v3.0: Vigil's own, or anybody's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vigil.errors import VigilError
from vigil.record.dataset import video
from vigil.record.dataset.compact import deleted
from vigil.record.dataset.files import read_json
from vigil.record.dataset.layout import INFO, PICTURE
from vigil.record.dataset.store import read_rows, read_tasks
from vigil.record.pictures import decode_picture


class DatasetReader:
    """One data set.

    Raises:
        VigilError: it is none, of another version, or damaged.

    Attributes:
        fps: frames per second.
        features: of ``info.json``.
        rows: of ``meta/episodes``, by number.
        deleted: episodes that are marked as deleted, and why; they are still in ``rows``.
        tasks: texts by their number.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        info = read_json(root / INFO)
        if info is None:
            raise VigilError(f"{root} is no LeRobotDataset: it has no {INFO}")
        version = str(info.get("codebase_version", ""))
        if not version.startswith("v3."):
            raise VigilError(
                f"{root} is a LeRobotDataset {version or 'of unknown version'}, read is v3.0: "
                "convert it with lerobot's own script (convert_dataset_v21_to_v30)"
            )
        self._info = info
        self.fps = float(info["fps"])
        self.features: dict[str, dict[str, Any]] = info["features"]
        self.rows = read_rows(root, info["total_episodes"])
        self.tasks = read_tasks(root)
        self.deleted = deleted(root)
        self._table: tuple[Path, pa.Table] | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras by short name."""
        return tuple(name.removeprefix(PICTURE) for name in self.features if name.startswith(PICTURE))

    @property
    def episodes(self) -> list[int]:
        """Numbers of the episodes that are not marked as deleted."""
        return [number for number in range(len(self.rows)) if number not in self.deleted]

    def names(self, feature: str) -> list[str]:
        """Names of a vector's columns.

        Raises:
            VigilError: there is no such feature, or its columns have no names.
        """
        self._require([feature])
        names = self.features[feature].get("names")
        if isinstance(names, dict):  # lerobot's older form: {"motors": [...]}
            names = next(iter(names.values()), None)
        if not names:
            raise VigilError(
                f"{self.root}: the columns of {feature} have no names, so none can be matched to a joint"
            )
        return list(names)

    def columns(self, episode: int, features: Sequence[str]) -> dict[str, np.ndarray]:
        """Features of one episode's T frames, [T] or [T, n].

        Raises:
            VigilError: no such feature, or the data file does not hold the episode.
        """
        self._require(features)
        table = self._episode(episode)
        found = {}
        for name in features:
            column = table[name].combine_chunks()
            if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
                found[name] = (
                    np.stack(column.to_numpy(zero_copy_only=False)) if len(column) else np.empty((0, 0))
                )
            else:
                found[name] = column.to_numpy(zero_copy_only=False)
        return found

    def pictures(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        """One episode's frames of a camera, uint8 [height, width, 3], red first.

        Raises:
            VigilError: no such camera, or its file is damaged.
        """
        key, row = PICTURE + camera, self.rows[episode]
        self._require([key])
        if self.features[key]["dtype"] == "image":
            for cell in self._episode(episode)[key].to_pylist():
                yield decode_picture(cell["bytes"], camera)
            return
        path = self.root / self._info["video_path"].format(
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        yield from video.decode(path, row[f"videos/{key}/from_timestamp"], row["length"])

    def _episode(self, episode: int) -> pa.Table:
        row = self.rows[episode]
        path = self.root / self._info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        if self._table is None or self._table[0] != path:
            try:
                self._table = path, pq.read_table(path)
            except (OSError, pa.ArrowException) as error:
                raise VigilError(f"cannot read {path}: {error}") from None
        table = self._table[1]
        table = table.filter(pa.compute.equal(table["episode_index"], episode))
        if len(table) != row["length"]:
            raise VigilError(
                f"{path} holds {len(table)} frames of episode {episode}, {row['length']} are declared"
            )
        return table

    def _require(self, features: Sequence[str]) -> None:
        for name in features:
            if name not in self.features:
                raise VigilError(f"{self.root} has no {name}; it has {', '.join(self.features)}")
