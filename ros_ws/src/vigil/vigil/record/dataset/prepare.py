"""From a recording to episodes as a data set holds them, whatever the format of the data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.record.dataset.frames import Drawn, Pictures, Table, make_table
from vigil.record.dataset.resample import Grid, Part, resample
from vigil.record.dataset.source import Source, read_source
from vigil.record.dataset.streams import Gap, told
from vigil.record.episode import INTERRUPTED, SUFFIX
from vigil.rig import load_rig

SLOW = 0.9  # a camera below this share of the frame rate is named


@dataclass(frozen=True)
class Wanted:
    """What a data set is to hold, whatever its format.

    Attributes:
        size: side of the pictures [px], prepared as the policy sees them; None: as the cameras gave them.
        draw: draw the pictures of a simulated rig from the recorded state, instead of reading them.
        outcomes: only episodes that ended so; empty: all. An episode that was interrupted has the outcome "".
        task: text in place of the recorded one; empty: as recorded.
    """

    grid: Grid
    size: int | None = None
    draw: bool = False
    outcomes: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True)
class Prepared:
    """One episode, ready but for its pictures, which are read while they are written."""

    source: Source
    part: Part
    parts: int
    table: Table
    pictures: Pictures
    task: str
    facts: dict[str, Any]  # by the names of `layout.EPISODE_FACTS`

    @property
    def name(self) -> str:
        """For progress and reports."""
        name = self.source.facts["episode_id"]
        return name if self.parts == 1 else f"{name} part {self.part.number}"


def find_recordings(runs: Sequence[Path]) -> list[Path]:
    """Recordings at or below ``runs``, each once, in the order of their names.

    Raises:
        VigilError: a path does not exist, or there is no recording in any of them.
    """
    found: dict[Path, Path] = {}
    for run in runs:
        if not run.exists():
            raise VigilError(f"{run} does not exist: name a recording ({SUFFIX}), or a folder with some")
        for path in [run] if run.is_file() else sorted(run.rglob(f"*{SUFFIX}")):
            found.setdefault(path.resolve(), path)
    if not found:
        named = ", ".join(map(str, runs))
        raise VigilError(
            f"no recordings ({SUFFIX}) in {named}: `vigil up`, `vigil collect` and `vigil evaluate` write some"
        )
    return list(found.values())


def prepare(
    path: Path, wanted: Wanted, score_names: Sequence[str], done: Iterable[tuple[str, int]] = ()
) -> tuple[list[Prepared], int]:
    """The episodes that one recording makes, and how many frames more are ``done`` already (recording, part).

    Raises:
        VigilError: it makes none; says why, without naming the file.
    """
    source = read_source(path)
    outcome = source.facts["outcome"]
    if wanted.outcomes and outcome not in wanted.outcomes:
        raise VigilError(
            f"ended with outcome {outcome or 'none'}: only {', '.join(wanted.outcomes)} are wanted"
        )
    pictures = Drawn(source, wanted.size, _shapes(source)) if wanted.draw else Pictures(source, wanted.size)
    if not pictures.cameras:
        hint = ": draw them with --draw" if source.states is not None else ""
        raise VigilError(f"has no pictures{hint}")
    parts = resample(source, pictures.cameras, wanted.grid)
    done = set(done)
    left, ready = [], 0
    for part in parts:
        if (source.identity, part.number) in done:
            ready += len(part)
            continue
        table = make_table(source, part, score_names)
        facts = _facts(source, part, len(parts), table, wanted)
        task = wanted.task or source.facts["task"]
        left.append(Prepared(source, part, len(parts), table, pictures, task, facts))
    return left, ready


def _shapes(source: Source) -> dict[str, tuple[int, int]]:
    """Height and width of each camera of the rig that made the recording: nothing else tells of cameras not recorded."""
    rig = load_rig(source.facts["rig"])
    return {c.name: (c.height, c.width) for c in sorted(rig.cameras, key=lambda c: c.name)}


def _facts(source: Source, part: Part, parts: int, table: Table, wanted: Wanted) -> dict[str, Any]:
    facts, quality = source.facts, part.quality
    return {
        "x_outcome": facts["outcome"],
        "x_reason": facts["termination_reason"],
        "x_operator": facts["operator_id"],
        "x_perturbation": source.perturbation,
        "x_rig": facts["rig"],
        "x_bundle": source.bundle_hash,
        "x_recording": source.identity,
        "x_source": str(source.path),
        "x_part": part.number,
        "x_parts": parts,
        "x_started": facts["started"],
        "x_clock": facts["clock"],
        "x_start_ns": int(part.times[0]),
        "x_measured_fps": quality.measured_fps,
        "x_skew_median_s": quality.skew_median_s,
        "x_skew_max_s": quality.skew_max_s,
        "x_gap_frames": quality.gap_frames,
        "x_intervention_frames": int(table.intervention.sum()),
        "x_interventions": _rises(table.intervention),
        "x_alarms": _rises(table.alarm),
        "x_messages_dropped": int(facts["dropped"]),
        "x_marks": json.dumps(_marks(facts, part)),
        "x_labels": labels(source, part, parts, wanted.grid),
        "x_gaps": json.dumps([_gap_row(gap, part) for gap in part.gaps]),
        "x_cameras": json.dumps(
            {
                name: {"hz": rate, "repeated": quality.repeated[name], "skipped": quality.skipped[name]}
                for name, rate in quality.rates.items()
            }
        ),
    }


def labels(source: Source, part: Part, parts: int, grid: Grid) -> list[str]:
    """What a person has to know before training on an episode, in words; empty if nothing is odd."""
    found = list(source.labels)
    if source.facts["termination_reason"] == INTERRUPTED:
        found.append("interrupted: no outcome")
    found += told(part.gaps)
    if part.quality.gap_frames:
        what = {"hold": "last sample repeated", "nearest": "nearest sample taken"}.get(grid.gaps, "")
        found.append(f"{part.quality.gap_frames} frames in gaps: {what}")
    if parts > 1:
        found.append(f"part {part.number + 1} of {parts}: cut at gaps")
    for camera, rate in part.quality.rates.items():
        if rate < SLOW * grid.fps:
            found.append(
                f"camera {camera} delivered {rate:.4g} pictures per second, not {grid.fps}: pictures repeat"
            )
    return found


def _gap_row(gap: Gap, part: Part) -> dict[str, Any]:
    """For ``x_gaps``: times in s since the episode's first frame."""
    start = int(part.times[0])
    return {
        "stream": gap.stream,
        "kind": gap.kind,
        "from_s": round((gap.start - start) / 1e9, 6),
        "to_s": round((gap.end - start) / 1e9, 6),
        "discarded": gap.discarded,
        "back_s": round(gap.back_s, 6),
    }


def _marks(facts: Mapping[str, Any], part: Part) -> list[dict[str, Any]]:
    """Moments that somebody marked in this part: label, and time since the part's first frame [s]."""
    begin, end = int(part.times[0]), int(part.times[-1])
    found = []
    for mark in facts.get("marks", ()):  # older recordings have none
        at = facts["start_ns"] + round(mark["at_s"] * 1e9)
        if begin <= at <= end:
            found.append({"label": mark["label"], "s": round((at - begin) / 1e9, 3)})
    return found


def _rises(flags: np.ndarray) -> int:
    """How often it begins."""
    return int((np.diff(np.concatenate([[0], flags.astype(int)])) == 1).sum())


def summary(facts: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """An episode's line in the export's report."""
    kept = (
        "x_recording",
        "x_source",
        "x_part",
        "x_outcome",
        "x_measured_fps",
        "x_skew_median_s",
        "x_skew_max_s",
        "x_gap_frames",
    )
    line: dict[str, Any] = {name.removeprefix("x_"): facts[name] for name in (*kept, "x_labels")}
    return {
        **line,
        "frames": frames,
        "gaps": json.loads(facts["x_gaps"]),
        "cameras": json.loads(facts["x_cameras"]),
    }
