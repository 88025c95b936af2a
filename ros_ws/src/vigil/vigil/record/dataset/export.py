"""Recordings to a LeRobotDataset v3.0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.record.dataset import video
from vigil.record.dataset.compact import settle
from vigil.record.dataset.files import read_json, write_json
from vigil.record.dataset.layout import SCORE_COLUMNS, SETTINGS, make_features
from vigil.record.dataset.prepare import Prepared, Wanted, prepare, summary
from vigil.record.dataset.stats import PictureStats, Stats
from vigil.record.dataset.store import NewEpisode, Store, open_store

Tell = Callable[[str, int], None]  # what is being done, and by how many frames it has advanced


@dataclass(frozen=True)
class Encoding:
    """How pictures are stored. ``crf``: constant rate factor, lower is better; None: the codec's usual one."""

    codec: str = "h264"
    crf: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an export.

    Attributes:
        added: a line per episode that is new in the data set.
        present: recordings that were in it before.
        skipped: why, by recording, others are not.
    """

    added: list[dict[str, Any]]
    present: int
    skipped: dict[str, str]
    episodes: int
    frames: int


def export(
    recordings: Sequence[Path],
    out: Path,
    wanted: Wanted,
    encoding: Encoding,
    score_names: Sequence[str],
    tell: Tell = lambda what, frames: None,
) -> Outcome:
    """Add recordings to the data set in ``out``, or begin it. Those that are in it already are left alone.

    A recording that cannot be exported does not end the export: it is named in the result, and in
    ``meta/vigil_export.json``, with the reason.

    Args:
        score_names: columns for scores; a data set that exists keeps its own.

    Raises:
        VigilError: ``out`` is not a data set of these settings, or the disk refuses.
    """
    video.check_codec(encoding.codec)
    settle(out)
    settings = {**asdict(wanted.grid), "size": wanted.size, "draw": wanted.draw, **asdict(encoding)}
    added: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    present = 0
    with open_store(out, settings) as store:
        before = read_json(out / SETTINGS)
        gone = {(name, part) for name, part in before.get("removed", [])}
        try:
            for path in recordings:
                tell(path.name, 0)
                try:
                    names = _score_names(store, score_names)
                    episodes, ready = prepare(path, wanted, names, store.done | gone)
                    for episode in episodes:
                        _add(store, episode, encoding, names, tell)
                        added.append(summary(episode.facts, len(episode.part)))
                    present += bool(ready) and not episodes
                except VigilError as error:
                    skipped[str(path)] = str(error)
        finally:
            lines = {
                (line["recording"], line["part"]): line for line in [*before.get("episodes", []), *added]
            }
            report = {"skipped": skipped, "episodes": list(lines.values())}
            write_json(out / SETTINGS, {**before, "settings": settings, **report})
        return Outcome(added, present, skipped, len(store), store.info.get("total_frames", 0))


class _Stopped(Exception):
    """Ends the encoding of a camera because another one failed, or the user wants it."""


def _score_names(store: Store, given: Sequence[str]) -> list[str]:
    known = store.features.get(next(iter(SCORE_COLUMNS)))
    return list(known["names"] if known else given)


def _add(store: Store, episode: Prepared, encoding: Encoding, score_names: Sequence[str], tell: Tell) -> None:
    table, fps = episode.table, store.settings["fps"]
    videos, picture_stats, shapes = encode_cameras(episode, store.stage(), fps, encoding, tell)
    cameras = {
        name: {"shape": list(shape), "info": video.describe(encoding.codec, shape, fps, encoding.crf)}
        for name, shape in shapes.items()
    }
    columns = {
        "observation.state": table.state,
        "action": table.action,
        "intervention": table.intervention,
        "control_source": table.control_source,
        "next.reward": table.reward,
        "next.done": np.arange(len(table.reward)) == len(table.reward) - 1,
        "alarm": table.alarm,
        "verdict": table.verdict,
        "gap": table.gap,
        "skew": table.skew,
        **{name: getattr(table, attribute) for name, attribute in SCORE_COLUMNS.items()},
    }
    store.add(
        NewEpisode(episode.task, columns, videos, picture_stats, episode.facts),
        make_features(episode.source.columns, cameras, score_names),
        episode.source.facts["rig"],
    )


def encode_cameras(
    episode: Prepared, folder: Path, fps: int, encoding: Encoding, tell: Tell
) -> tuple[dict[str, Path], dict[str, Stats], dict[str, tuple[int, int, int]]]:
    """Videos, statistics and shapes by camera; every camera in a thread of its own.

    Raises:
        VigilError: a picture cannot be read or encoded.
    """
    cameras = list(episode.pictures.cameras)
    counting = {name: PictureStats(len(episode.part)) for name in cameras}
    shapes: dict[str, tuple[int, int, int]] = {}
    stop = threading.Event()

    def watched(camera: str) -> Iterator[np.ndarray]:
        for rgb in episode.pictures.frames(camera, episode.part):
            if stop.is_set():
                raise _Stopped
            shapes.setdefault(camera, rgb.shape)
            counting[camera].add(rgb)
            yield rgb
            if camera == cameras[0]:
                tell(episode.name, 1)

    videos = {camera: folder / f"{camera}.mp4" for camera in cameras}
    with ThreadPoolExecutor(len(cameras), thread_name_prefix="encode") as pool:
        jobs = [
            pool.submit(video.encode, videos[c], watched(c), fps, encoding.codec, encoding.crf)
            for c in cameras
        ]
        try:
            while any(not job.done() for job in jobs):
                # In short waits, so that Ctrl-C is heard; the first one that fails ends the others.
                wait(jobs, timeout=0.2)
                if any(job.done() and job.exception() for job in jobs):
                    break
        finally:
            stop.set()
    failed = [error for job in jobs if (error := job.exception()) and not isinstance(error, _Stopped)]
    if failed:
        raise failed[0]
    return videos, {name: one.stats() for name, one in counting.items()}, {c: shapes[c] for c in cameras}
