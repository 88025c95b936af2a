"""``vigil dataset view``: one recorded episode in the viewer of rerun, or as a file for it.

Everything lies on one time axis, that of the acquisition stamps::

    cameras/NAME                          pictures, as they were recorded
    joints/GROUP/measured/COLUMN          one group for each topic of joint states; commanded likewise
    chunks/COLUMN/LANE                    where the policy wanted to go: each chunk a line of its own
    monitor/SCORE/raw|windowed|threshold
    authority                             who was in control, as a number (see `AUTHORITIES`)
    log/authority, log/monitor            changes, with their reasons
    episode                               what the recorder knows of it, and what is odd about it
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.record.dataset.files import publish
from vigil.record.dataset.lanes import chunk_lines
from vigil.record.dataset.source import Source, read_source
from vigil.record.pictures import compressed_picture
from vigil.record.rollout import AUTHORITIES

AXIS = "stamp"
FACTS = ("task", "rig", "operator_id", "outcome", "termination_reason", "started")
CHUNK_GREY = (150, 150, 170)
LEVELS = {"ESTOP": "CRITICAL", "HOLD": "WARN", "ALARM": "ERROR", "NOMINAL": "INFO"}


def view(path: Path, save: Path | None = None) -> None:
    """Show the recording at ``path`` in the viewer, or write it to the file ``save`` instead.

    Raises:
        VigilError: rerun-sdk is missing; there is no screen; ``path`` is no recording of an episode, or lacks joint
            states or the arm's state; ``save`` cannot be written.
    """
    rerun = load_rerun()
    if save is None and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        raise VigilError(
            "there is no screen for the viewer: write a file with --save FILE.rrd, and open it elsewhere"
        )
    try:
        source = read_source(path)
    except VigilError as error:
        raise VigilError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    recording = rerun.RecordingStream("vigil")
    scene = _Scene(rerun, recording, source)
    if save is None:
        _open_viewer(recording, scene.layout())
        scene.fill()
        recording.disconnect()
        return
    temporary = save.with_name(save.name + ".partial")
    try:
        save.parent.mkdir(parents=True, exist_ok=True)
        recording.save(temporary, default_blueprint=scene.layout())
    except (OSError, RuntimeError) as error:
        raise VigilError(f"cannot write {save}: {error}") from None
    try:
        scene.fill()
        recording.disconnect()
        publish(temporary, save)
    finally:
        temporary.unlink(missing_ok=True)


def load_rerun() -> Any:
    """The module ``rerun`` with its blueprints; what it does not understand raises, instead of being left out.

    Raises:
        VigilError: it is not installed.
    """
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise VigilError(f"the viewer needs rerun-sdk ({error}): pip install 'vigil[view]'") from None
    rerun.set_strict_mode(True)
    return rerun


def _open_viewer(recording: Any, layout: Any) -> None:
    # The viewer lies beside the interpreter, which is not on the path where nobody activated the environment.
    here = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([here, os.environ.get("PATH", "")])
    try:
        recording.spawn(default_blueprint=layout)
    except RuntimeError as error:
        raise VigilError(
            f"the viewer does not start ({str(error).splitlines()[0]}): use --save FILE.rrd"
        ) from None


class _Scene:
    """A recording's content as entities of rerun."""

    def __init__(self, rerun: Any, recording: Any, source: Source) -> None:
        self._rr, self._to, self._source = rerun, recording, source
        self._reader = source.reader
        # A simulated clock begins at 0: it would be shown as a date of 1970.
        self._simulated = source.facts.get("clock") == "simulated"
        self._chunks = chunk_lines(self._reader)
        topics = [joints.topic.removeprefix(f"/{source.facts['rig']}/") for joints in source.joints]
        self._groups = [topic.strip("/").rpartition("/")[0] or "arm" for topic in topics]

    def fill(self) -> None:
        """Send everything."""
        lines = [f"* {name}: {self._source.facts.get(name) or '-'}" for name in FACTS]
        lines += [f"* **{label}**" for label in self._source.labels]
        text = self._rr.TextDocument("\n".join(lines), media_type="text/markdown")
        self._to.log("episode", text, static=True)
        self._joints()
        for (column, lane), line in self._chunks.items():
            path = self._path("chunks", column, f"lane{lane}")
            self._style(path, "chunk", colors=CHUNK_GREY, widths=1.0)
            columns = self._rr.Scalars.columns(scalars=line.values).partition(line.lengths)
            self._to.send_columns(path, [self._axis(line.stamps)], columns)
        self._monitor()
        self._authority()
        for camera in self._source.cameras:
            self._pictures(camera)

    def layout(self) -> Any:
        """What is shown where: only what the recording holds."""
        plans = self._rr.blueprint
        source = self._source
        seen = [camera for camera, stream in source.cameras.items() if len(stream)]
        pictures = [plans.Spatial2DView(origin=self._path("cameras", c), name=c) for c in seen]
        groups = [plans.TimeSeriesView(origin=self._path("joints", g), name=g) for g in self._groups]
        targets = [
            plans.TimeSeriesView(
                name=column,
                contents=[
                    self._path("joints", group, "measured", column),
                    self._path("joints", group, "commanded", column),
                    self._path("chunks", column) + "/**",
                ],
            )
            for group, joints in zip(self._groups, source.joints, strict=True)
            for column in joints.columns
            if (column, 0) in self._chunks
        ]
        scores = [
            plans.TimeSeriesView(
                name=name, contents=[self._path("monitor", name, what) for what in ("windowed", "threshold")]
            )
            for name in source.verdicts.names
        ]
        plots = [plans.Tabs(*groups, *([plans.Grid(*targets, name="chunks")] if targets else []))]
        plots += [plans.Horizontal(*scores)] if scores else []
        plots += [plans.TimeSeriesView(origin="authority", name="authority")]
        texts = [plans.TextLogView(origin="log"), plans.TextDocumentView(origin="episode")]
        return plans.Blueprint(
            plans.Horizontal(plans.Vertical(*pictures, *texts), plans.Vertical(*plots), column_shares=[2, 3]),
            collapse_panels=True,
        )

    def _joints(self) -> None:
        control, columns = self._source.control, self._source.columns
        for group, joints in zip(self._groups, self._source.joints, strict=True):
            for place, column in enumerate(joints.columns):
                path = self._path("joints", group, "measured", column)
                self._plot(path, f"{column} measured", joints.stream.stamps, joints.positions[:, place])
                path = self._path("joints", group, "commanded", column)
                commanded = control.commanded[:, columns.index(column)]
                self._plot(path, f"{column} commanded", control.stream.stamps, commanded)

    def _monitor(self) -> None:
        told = self._source.verdicts
        stamps = told.stream.stamps
        tables = {"raw": told.scores, "windowed": told.windowed, "threshold": told.thresholds}
        for place, name in enumerate(told.names):
            for what, values in tables.items():
                self._plot(self._path("monitor", name, what), f"{name} {what}", stamps, values[:, place])
        if not len(stamps):
            return
        reasons = self._reader.columns("monitor/status", ("reason",))["reason"][told.stream.index]
        places = _changes(told.verdict, told.alarm)
        texts = [
            _sentence(told.verdict[i] + (", alarm" if told.alarm[i] else ""), str(reasons[i])) for i in places
        ]
        self._log("log/monitor", stamps[places], texts, [LEVELS.get(told.verdict[i], "WARN") for i in places])

    def _authority(self) -> None:
        control = self._source.control
        stamps, names = control.stream.stamps, control.authority
        numbers = np.array([AUTHORITIES.index(n) if n in AUTHORITIES else -1 for n in names], float)
        rows = self._reader.columns("arm/state", ("event", "reason", "transition"))
        event, reason, transition = (rows[k][control.stream.index] for k in ("event", "reason", "transition"))
        places = _changes(names, transition)
        # The last sample before each change too, and the very last: between them the line is level, so it has steps.
        shown = sorted({*places, *(i - 1 for i in places if i), len(stamps) - 1})
        legend = ", ".join(f"{number} {name}" for number, name in enumerate(AUTHORITIES))
        self._plot("authority", legend, stamps[shown], numbers[shown])
        texts = [
            _sentence(f"{names[i]} ({event[i]})" if event[i] else names[i], str(reason[i])) for i in places
        ]
        self._log("log/authority", stamps[places], texts, [LEVELS.get(names[i], "INFO") for i in places])

    def _pictures(self, camera: str) -> None:
        stream, path = self._source.cameras[camera], self._path("cameras", camera)
        stamps = dict(zip(stream.index.tolist(), stream.stamps.tolist(), strict=True))
        for number, (_, message) in enumerate(self._reader.messages(self._source.image_topics[camera])):
            if number in stamps:
                picture = compressed_picture(message, camera)
                kind = "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"
                columns = self._rr.EncodedImage.columns(blob=[picture], media_type=[kind])
                self._to.send_columns(path, [self._axis([stamps[number]])], columns)

    def _plot(self, path: str, name: str, stamps: np.ndarray, values: np.ndarray) -> None:
        finite = np.isfinite(values)  # a score that was not computed, a threshold that was not calibrated
        if finite.any():
            self._style(path, name)
            columns = self._rr.Scalars.columns(scalars=values[finite])
            self._to.send_columns(path, [self._axis(stamps[finite])], columns)

    def _style(self, path: str, name: str, **given: Any) -> None:
        self._to.log(path, self._rr.SeriesLines(names=name, **given), static=True)

    def _log(self, path: str, stamps: np.ndarray, texts: list[str], levels: list[str]) -> None:
        columns = self._rr.TextLog.columns(text=texts, level=levels)
        self._to.send_columns(path, [self._axis(stamps)], columns)

    def _axis(self, stamps: Sequence[int] | np.ndarray) -> Any:
        stamps = np.asarray(stamps, np.int64)
        if self._simulated:
            return self._rr.TimeColumn(AXIS, duration=stamps.astype("timedelta64[ns]"))
        return self._rr.TimeColumn(AXIS, timestamp=stamps.astype("datetime64[ns]"))

    def _path(self, *parts: str) -> str:
        return self._rr.new_entity_path(list(parts))


def _changes(*columns: np.ndarray) -> list[int]:
    """Places where one of the columns differs from the row before; the first row is one."""
    rows: Iterator[tuple[Any, ...]] = zip(*columns, strict=True)
    return [0, *(i for i, (before, now) in enumerate(pairwise(rows), 1) if before != now)]


def _sentence(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
