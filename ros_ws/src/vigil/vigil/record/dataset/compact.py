"""Taking episodes out of a data set: marked first, which can be taken back; removed for good by a copy that takes its place.

No file of a data set is changed in place. Compaction writes a new folder beside it, checks it, and swaps the two in one
step, so there is no instant at which the data set is half of one and half of the other.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vigil.errors import VigilError
from vigil.record.dataset import layout, stats
from vigil.record.dataset.files import owned, read_json, sync_file, write_json
from vigil.record.dataset.layout import DELETED, INFO, PICTURE, SETTINGS, STATS, TASKS, place
from vigil.record.dataset.store import read_rows, read_tasks, row_table, stats_of_row
from vigil.record.writer import sync_folder

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD


def deleted(root: Path) -> dict[int, str]:
    """Episodes marked as deleted, and why."""
    marks = read_json(root / DELETED) or {}
    return {int(number): why for number, why in marks.get("episodes", {}).items()}


def mark(root: Path, episodes: Sequence[int], why: str = "", undo: bool = False) -> dict[int, str]:
    """Mark episodes as deleted, or no longer; gives all that are marked. The episodes' own files stay as they are.

    Raises:
        VigilError: no data set of Vigil's, or no such episode.
    """
    settle(root)
    info = _require_ours(root)
    if unknown := [number for number in episodes if not 0 <= number < info["total_episodes"]]:
        raise VigilError(
            f"{root} has no episode {unknown[0]}: its episodes are 0 to {info['total_episodes'] - 1}"
        )
    with owned(root):
        marks = deleted(root)
        for number in episodes:
            if undo:
                marks.pop(number, None)
            else:
                marks[number] = why
        write_json(root / DELETED, {"episodes": {str(number): marks[number] for number in sorted(marks)}})
    return marks


def compact(root: Path) -> tuple[int, int]:
    """Remove the marked episodes for good and number the others anew; gives (removed, left).

    Raises:
        VigilError: no data set of Vigil's, all episodes are marked, or the copy is not as it should be; the data set
            is then as it was.
    """
    settle(root)
    root = root.resolve()
    info = _require_ours(root)
    marks = deleted(root)
    if not marks:
        return 0, info["total_episodes"]
    kept = [number for number in range(info["total_episodes"]) if number not in marks]
    if not kept:
        raise VigilError(
            f"all {len(marks)} episodes of {root} are marked as deleted: remove the folder instead"
        )
    new, old = _beside(root)
    try:
        with owned(root):
            _copy(root, new, info, kept)
            if problems := verify(new):
                raise VigilError(
                    f"the compacted copy of {root} is not whole, and was not used: {problems[0]}"
                )
            _swap(root, new, old)
    except OSError as error:
        raise VigilError(f"cannot compact {root}: {error.strerror or error}; nothing is lost") from None
    finally:
        settle(root)
    return len(marks), len(kept)


def settle(root: Path) -> None:
    """Remove what an interrupted compaction left beside ``root``; end it, if it stopped between the renames of its swap.

    Raises:
        VigilError: another process is compacting, or nothing whole is left to be put in its place.
    """
    root = root.resolve()
    left = [folder for folder in _beside(root) if folder.exists()]
    if not left:
        return
    # Whoever is compacting holds the data set, or what was it until a moment ago: it must not lose its copy to us.
    with owned(root if root.exists() else left[-1]):
        if not root.exists():
            whole = [folder for folder in left if not verify(folder)]
            if not whole:
                raise VigilError(
                    f"{root} is gone, and neither of {', '.join(map(str, left))} is whole: look into them"
                )
            whole[0].rename(root)
            sync_folder(root.parent)
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)


def verify(root: Path) -> list[str]:
    """What does not fit together in a data set of Vigil's, in words; empty if all does."""
    try:
        info = read_json(root / INFO)
        if info is None:
            return [f"{root / INFO} is missing"]
        rows, tasks = read_rows(root, info["total_episodes"]), read_tasks(root)
        problems, index = [], 0
        for number, row in enumerate(rows):
            table = pq.read_table(
                root / place(layout.DATA_PATH, number), columns=["index", "episode_index", "task_index"]
            )
            whole = list(range(index, index + row["length"]))
            if table["index"].to_pylist() != whole or set(table["episode_index"].to_pylist()) != {number}:
                problems.append(f"the frames of episode {number} are not those that its row declares")
            if [row["dataset_from_index"], row["dataset_to_index"]] != [index, index + row["length"]]:
                problems.append(f"episode {number} does not follow the one before it")
            if {tasks[i] for i in set(table["task_index"].to_pylist())} != set(row["tasks"]):
                problems.append(f"the tasks of episode {number} are not those that its row declares")
            for key in video_keys(info):
                path = root / place(layout.VIDEO_PATH, number, video_key=key)
                if not path.is_file() or not path.stat().st_size:
                    problems.append(f"episode {number} has no video of {key}")
            index += row["length"]
        if index != info["total_frames"]:
            problems.append(f"{index} frames, {INFO} declares {info['total_frames']}")
    except (VigilError, OSError, pa.ArrowException, KeyError, IndexError) as error:
        return [str(error)]
    return problems


def video_keys(info: dict[str, Any]) -> list[str]:
    """Features that are videos."""
    return [name for name, feature in info["features"].items() if feature["dtype"] == "video"]


def _require_ours(root: Path) -> dict[str, Any]:
    info = read_json(root / INFO)
    if info is None:
        raise VigilError(f"{root} is no data set: it has no {INFO}; `vigil dataset export` makes one")
    if not (root / SETTINGS).exists():
        raise VigilError(f"{root} was not made by `vigil dataset export`: its episodes are left as they are")
    return info


def _beside(root: Path) -> tuple[Path, Path]:
    return root.with_name(f".{root.name}.compact"), root.with_name(f".{root.name}.old")


def _copy(root: Path, new: Path, info: dict[str, Any], kept: Sequence[int]) -> None:
    """A data set of the ``kept`` episodes in the folder ``new``. Videos are hard links where the disk has them."""
    rows, texts = read_rows(root, info["total_episodes"]), read_tasks(root)
    tasks = [text for text in texts if any(text in rows[number]["tasks"] for number in kept)]
    first, found = 0, []
    for number, before in enumerate(kept):
        row, length = rows[before], rows[before]["length"]
        table = pq.read_table(root / place(layout.DATA_PATH, before))
        columns = {
            "episode_index": [number] * length,
            "index": list(range(first, first + length)),
            "task_index": [tasks.index(texts[i]) for i in table["task_index"].to_pylist()],
        }
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int64()))
        _write(table, new / place(layout.DATA_PATH, number))
        cameras = [key.removeprefix(PICTURE) for key in video_keys(info)]
        for camera in cameras:
            key = PICTURE + camera
            source = root / place(layout.VIDEO_PATH, before, video_key=key)
            _link(source, new / place(layout.VIDEO_PATH, number, video_key=key))
        own = stats_of_row(row) | {name: stats.of_columns(table[name].to_numpy()) for name in columns}
        found.append(own)
        _write(
            row_table(_renumbered(row, number, first, cameras), cameras, own),
            new / place(layout.EPISODES_PATH, number),
        )
        first += length
    _write(layout.tasks_table(tasks), new / TASKS)
    for path in _others(root):
        _link(path, new / path.relative_to(root))
    write_json(new / STATS, stats.as_json(stats.join(found)))
    write_json(new / SETTINGS, _settings_after(root, rows, set(kept)))
    totals = {"total_episodes": len(kept), "total_frames": first, "total_tasks": len(tasks)}
    write_json(new / INFO, {**info, **totals, "splits": {"train": f"0:{len(kept)}"}})


def _others(root: Path) -> list[Path]:
    """Files that somebody else has put into the data set: they are kept."""
    known = {INFO, STATS, TASKS, SETTINGS, DELETED}
    folders = ("data/", "videos/", "meta/episodes/", layout.STAGING)
    names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    return [root / name for name in names if name not in known and not name.startswith(folders)]


def _renumbered(row: dict[str, Any], number: int, first: int, cameras: Sequence[str]) -> dict[str, Any]:
    chunk, file = divmod(number, layout.CHUNK)
    moved: dict[str, Any] = {"episode_index": number, "dataset_from_index": first}
    moved["dataset_to_index"] = first + row["length"]
    for what in ("data", "meta/episodes", *(f"videos/{PICTURE}{camera}" for camera in cameras)):
        moved |= {f"{what}/chunk_index": chunk, f"{what}/file_index": file}
    return {**row, **moved}


def _settings_after(root: Path, rows: Sequence[dict[str, Any]], kept: set[int]) -> dict[str, Any]:
    """The export's own file: what was removed is not to come back with the next export of the same runs."""
    content = read_json(root / SETTINGS)
    gone = [[row["x_recording"], row["x_part"]] for i, row in enumerate(rows) if i not in kept]
    lines = [line for line in content.get("episodes", []) if [line["recording"], line["part"]] not in gone]
    return {**content, "removed": [*content.get("removed", []), *gone], "episodes": lines}


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")
    sync_file(path)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        sync_file(target)


def _swap(root: Path, new: Path, old: Path) -> None:
    """``new`` becomes ``root``, in one step where the file system can exchange two folders; else `settle` ends it."""
    for folder in sorted(path for path in new.rglob("*") if path.is_dir()):
        sync_folder(folder)
    sync_folder(new)
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    done = (
        exchange is not None and exchange(_HERE, os.fsencode(new), _HERE, os.fsencode(root), _EXCHANGE) == 0
    )
    if not done:
        root.rename(old)
        new.rename(root)
    sync_folder(root.parent)
