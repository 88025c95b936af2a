"""Names and features of a LeRobotDataset v3.0, and of what Vigil adds to one.

One data file, one episodes file and one video per camera for every episode, each numbered as the episode. The format
allows more episodes per file; this way an episode that is not complete touches no file of those that are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

VERSION = "v3.0"
CHUNK = 1000  # files per folder
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
SETTINGS, DELETED = "meta/vigil_export.json", "meta/vigil_deleted.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STAGING = ".staging"
PICTURE = "observation.images."
SCORE_COLUMNS = {
    "monitor.scores": "scores",
    "monitor.windowed": "windowed",
    "monitor.thresholds": "thresholds",
}

# Columns that LeRobot has in every data set.
INDEX_FEATURES: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
# What Vigil knows of an episode, beside LeRobot's own columns of meta/episodes; docs/dataset.md explains each.
EPISODE_FACTS: dict[str, pa.DataType] = {
    "x_outcome": pa.string(),
    "x_reason": pa.string(),
    "x_operator": pa.string(),
    "x_perturbation": pa.string(),
    "x_rig": pa.string(),
    "x_bundle": pa.string(),
    "x_recording": pa.string(),
    "x_source": pa.string(),
    "x_part": pa.int64(),
    "x_parts": pa.int64(),
    "x_started": pa.string(),
    "x_clock": pa.string(),
    "x_start_ns": pa.int64(),
    "x_measured_fps": pa.float64(),
    "x_skew_median_s": pa.float64(),
    "x_skew_max_s": pa.float64(),
    "x_gap_frames": pa.int64(),
    "x_intervention_frames": pa.int64(),
    "x_interventions": pa.int64(),
    "x_alarms": pa.int64(),
    "x_messages_dropped": pa.int64(),
    "x_marks": pa.string(),
    "x_labels": pa.list_(pa.string()),
    "x_gaps": pa.string(),  # JSON
    "x_cameras": pa.string(),  # JSON
}


def place(pattern: str, number: int, **names: str) -> str:
    """Path of a numbered file, relative to the data set."""
    return pattern.format(chunk_index=number // CHUNK, file_index=number % CHUNK, **names)


def make_features(
    columns: Sequence[str], cameras: Mapping[str, dict[str, Any]], score_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Features of ``info.json``; ``cameras``: shape and video info of each picture feature, by camera."""
    vector = {"dtype": "float32", "shape": [len(columns)], "names": list(columns)}
    features: dict[str, dict[str, Any]] = {"observation.state": vector, "action": dict(vector)}
    for camera, facts in cameras.items():
        features[PICTURE + camera] = {
            "dtype": "video",
            "shape": facts["shape"],
            "names": ["height", "width", "channels"],
            "info": facts["info"],
        }
    features["intervention"] = {"dtype": "bool", "shape": [1], "names": None}
    features["control_source"] = {"dtype": "string", "shape": [1], "names": None}
    features["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    features["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    features["alarm"] = {"dtype": "bool", "shape": [1], "names": None}
    features["verdict"] = {"dtype": "string", "shape": [1], "names": None}
    for name in SCORE_COLUMNS:
        features[name] = {"dtype": "float32", "shape": [len(score_names)], "names": list(score_names)}
    features["gap"] = {"dtype": "bool", "shape": [1], "names": None}
    features["skew"] = {"dtype": "float32", "shape": [1], "names": None}
    return features | INDEX_FEATURES


def column_type(feature: Mapping[str, Any]) -> pa.DataType:
    """Arrow type of a feature's column."""
    value = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}[
        feature["dtype"]
    ]
    return (
        value
        if feature["shape"] == [1] and feature["names"] is None
        else pa.list_(value, feature["shape"][0])
    )


def data_table(features: Mapping[str, Mapping[str, Any]], columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The data file of one episode; ``columns`` are arrays [T] or [T, n], those of video features left out."""
    arrays, fields = [], []
    for name, feature in features.items():
        if feature["dtype"] == "video":
            continue
        kind, values = column_type(feature), columns[name]
        if pa.types.is_fixed_size_list(kind):
            flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
            array = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        else:
            array = pa.array(values, kind)
        arrays.append(array)
        fields.append(pa.field(name, kind))
    return pa.table(arrays, pa.schema(fields))


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """``tasks.parquet``: as pandas writes a frame whose index is the task's text.

    Without pandas' own metadata the text would come back as an ordinary column, and LeRobot would hand out row numbers
    for tasks.
    """

    def column(name: str, kind: str, numpy_kind: str) -> dict[str, Any]:
        return {
            "name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None
        }  # fmt: skip

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)}
    )
    return pa.table([list(range(len(tasks))), list(tasks)], schema=schema)


def is_dataset(folder: Path) -> bool:
    """A LeRobotDataset, Vigil's or another's."""
    return (folder / INFO).is_file()
