"""What is known of one recorded episode beside its messages.

It is written twice: into the recording itself (metadata record ``vigil_episode``), and beside it as ``NAME.json``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vigil.errors import VigilError
from vigil.record.continuity import Continuity, labels_of
from vigil.record.writer import Counts

METADATA = "vigil_episode"
OUTCOMES = ("success", "failure", "intervened_success", "discarded")
GOOD = ("success", "intervened_success")  # outcomes of episodes that are worth imitating and comparing with
DISCARDED = "discarded"
INTERRUPTED = "interrupted"  # termination reason of an episode whose recorder ended first
PERTURBATION = "perturbation"  # what a mark without a label means
SUFFIX = ".mcap"
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ControlSpan(Strict):
    """A time during which one authority held the arm; in s since the episode's start."""

    authority: str
    event: str
    reason: str
    start_s: float
    end_s: float


class Mark(Strict):
    """A moment that somebody marked; ``at_s`` since the episode's start."""

    label: str
    at_s: float


class GapFacts(Strict):
    """A hole in a stream, see `vigil.record.dataset.streams.Gap` and `Continuity.gaps`; times since the episode's start."""

    kind: str
    from_s: float
    to_s: float
    discarded: int = Field(0, description="samples that an export leaves out, since their stamps are not new")
    back_s: float = Field(0.0, description="how far the clock was set back")


class TopicFacts(Strict):
    """What became of one topic's messages. ``dropped`` never reached the file, on whatever part of the way."""

    type: str
    stream: str = Field("", description="what its messages are called, where they ought to be steady")
    written: int = 0
    dropped: int = 0
    gaps: list[GapFacts] = Field(default_factory=list)


class JointFacts(Strict):
    """What one topic of joint states tells of the rig's columns, so that a recording can be read without the rig file."""

    topic: str = Field(description="relative to the rig")
    columns: tuple[str, ...]
    joints: tuple[str, ...] = Field(description="their names in the messages")
    scale: tuple[tuple[float, float], ...] = Field(
        description="factor and offset of each: rad or m = factor * position + offset"
    )


class EpisodeRecord(Strict):
    """One recorded episode. ``outcome`` is empty while it is open, and stays so if its recorder was killed."""

    episode_id: str
    rig: str
    task: str
    operator_id: str
    outcome: Literal["", "success", "failure", "intervened_success", "discarded"] = ""
    termination_reason: str = ""
    clock: Literal["system", "simulated"]
    started: str = Field(description="wall time, ISO 8601")
    start_ns: int = Field(description="rig's clock")
    duration_s: float = 0.0
    recording_stopped: str = Field("", description="why recording ended before the episode did")
    written: int = 0
    dropped: int = 0
    topics: dict[str, TopicFacts] = Field(default_factory=dict)
    joints: tuple[JointFacts, ...] = Field(
        (), description="empty in older recordings: columns are the joints' names"
    )
    labels: list[str] = Field(default_factory=list, description="holes in the streams, in words")
    control: list[ControlSpan] = Field(default_factory=list)
    marks: list[Mark] = Field(default_factory=list)

    def count(self, counts: Counts, lost: Mapping[str, int]) -> None:
        """Take over the final counts; ``lost`` are messages, by topic, that never arrived."""
        for name, facts in self.topics.items():
            facts.written = counts.written[name]
            facts.dropped = counts.dropped[name] + lost.get(name, 0)
        self.written = sum(facts.written for facts in self.topics.values())
        self.dropped = sum(facts.dropped for facts in self.topics.values())

    def note_gaps(self, continuity: Continuity) -> None:
        """Take over the holes in the streams."""
        holes = continuity.gaps(self.start_ns)
        for name, gaps in holes.items():
            self.topics[name].gaps = [
                GapFacts(
                    kind=gap.kind,
                    from_s=(gap.start - self.start_ns) / 1e9,
                    to_s=(gap.end - self.start_ns) / 1e9,
                    discarded=gap.discarded,
                    back_s=gap.back_s,
                )
                for gap in gaps
            ]
        self.labels = labels_of(holes)

    def metadata(self) -> dict[str, dict[str, str]]:
        """As an MCAP metadata record: the plain facts as text, and all of it as JSON."""
        plain = self.model_dump(exclude={"topics", "joints", "labels", "control", "marks"})
        return {METADATA: {**{k: str(v) for k, v in plain.items()}, "json": self.model_dump_json()}}


class ControlLog:
    """Collects who controlled the arm, from the states that the arm publishes."""

    def __init__(self, start_ns: int) -> None:
        self._start = start_ns
        self._spans: list[ControlSpan] = []
        self._transition: int | None = None

    def note(self, stamp: int, authority: str, event: str, reason: str, transition: int) -> None:
        """One state of the arm; ``stamp`` in ns, ``transition`` counts the changes of authority."""
        now = max((stamp - self._start) / 1e9, 0.0)
        if self._spans:
            self._spans[-1].end_s = max(now, self._spans[-1].end_s)
        if transition != self._transition:
            self._transition = transition
            self._spans.append(
                ControlSpan(authority=authority, event=event, reason=reason, start_s=now, end_s=now)
            )

    @property
    def spans(self) -> list[ControlSpan]:
        """In order, without gaps."""
        return self._spans


def choose_id(asked: str, now: float) -> str:
    """``asked`` if it makes a file name, a name of the time ``now`` (s since the epoch) if it is empty.

    Raises:
        VigilError: it would not make a file name.
    """
    if not asked:
        fraction = int(now % 1 * 1000)
        return time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{fraction:03d}"
    if not _ID.match(asked):
        raise VigilError(
            f"episode id {asked!r} makes no file name: use letters, digits, dashes and underscores, "
            "at most 100, beginning with a letter or digit"
        )
    return asked


def check_outcome(outcome: str) -> None:
    """VigilError unless ``outcome`` is one that an episode can end with."""
    if outcome not in OUTCOMES:
        raise VigilError(f"outcome {outcome!r} is unknown: choose one of {', '.join(OUTCOMES)}")


def free_name(path: Path, word: str) -> Path:
    """``path`` (``NAME.mcap``) with a word in its name that tells what it is, and a number if that is taken.

    ``discarded`` goes behind ``.mcap``, where nothing that looks for recordings finds it; any other word before.
    """
    number = 0
    while True:
        extra = f".{word}{number or ''}"
        name = f"{path.name}{extra}" if word == DISCARDED else f"{path.stem}{extra}{SUFFIX}"
        if not path.with_name(name).exists():
            return path.with_name(name)
        number += 1


def write_sidecar(recording: Path, record: EpisodeRecord) -> Path:
    """``NAME.json`` beside a recording; it appears whole or not at all.

    Raises:
        VigilError: the disk refuses.
    """
    path = recording.with_name(recording.name.replace(SUFFIX, "", 1) + ".json")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(record.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise VigilError(
            f"cannot write {path}: {error.strerror or error}; the recording holds the same"
        ) from None
    return path
