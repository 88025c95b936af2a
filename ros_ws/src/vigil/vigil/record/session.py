"""One episode while it is recorded: its file, its counts, and what is known of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vigil.errors import VigilError
from vigil.joints import joint_sources
from vigil.record.cdr import MessageType, stamp_of
from vigil.record.continuity import Continuity
from vigil.record.episode import (
    DISCARDED,
    INTERRUPTED,
    PERTURBATION,
    SUFFIX,
    ControlLog,
    EpisodeRecord,
    JointFacts,
    Mark,
    TopicFacts,
    choose_id,
    free_name,
    write_sidecar,
)
from vigil.record.writer import MEGABYTE, Counts, EpisodeWriter, Topic, free_bytes
from vigil.rig import RigConfig, resolve

UNDERWAY = 500_000_000  # [ns] younger than this a message may be on its way


@dataclass(frozen=True)
class Asked:
    """What the operator said about the episode to be recorded."""

    episode_id: str
    task: str
    operator_id: str


class RecordingSession:
    """One open episode.

    Args:
        control_topic: absolute name of the arm's state, from which the source of control is noted.
        mark_topic: absolute name of the topic of moments that somebody marks.
        streams: names of the streams that ought to be steady, by topic; their messages begin with a header.

    Raises:
        VigilError: the id makes no file name or is taken, or the disk is too full.

    Attributes:
        record: what is known of the episode.
        warning: what went wrong beside the recording; empty if nothing did.
    """

    def __init__(
        self,
        rig: RigConfig,
        topics: list[Topic],
        asked: Asked,
        *,
        clock: Literal["system", "simulated"],
        now: int,
        control_topic: str,
        mark_topic: str,
        streams: Mapping[str, str] | None = None,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.warning = ""
        wall = time.time()
        self.record = EpisodeRecord(
            episode_id=choose_id(asked.episode_id, wall),
            rig=rig.name,
            task=asked.task or rig.task,
            operator_id=asked.operator_id,
            clock=clock,
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(wall)),
            start_ns=now,
            topics={
                topic.name: TopicFacts(type=topic.type_name, stream=(streams or {}).get(topic.name, ""))
                for topic in topics
            },
            joints=tuple(
                JointFacts(topic=s.topic, columns=s.columns, joints=s.joints, scale=s.scale)
                for s in joint_sources(rig)
            ),
        )
        self._writer = EpisodeWriter(
            resolve(rig.record.directory) / f"{self.record.episode_id}{SUFFIX}",
            topics,
            min_free=rig.record.min_free_mb * MEGABYTE,
            header=self.record.metadata(),
            free=free,
        )
        self._continuity = Continuity(streams or {})
        self._control = ControlLog(now)
        self._control_topic, self._mark_topic = control_topic, mark_topic
        self._types = {
            topic.name: MessageType(topic.type_name, topic.definition)
            for topic in topics
            if topic.name in (control_topic, mark_topic)
        }

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._writer.part

    @property
    def stopped(self) -> str:
        """Why nothing is recorded any more, although the episode goes on; empty while all is well."""
        return self._writer.stopped

    def labels(self, now: int) -> list[str]:
        """Holes in the streams up to ``now`` [ns], in words."""
        return self._continuity.labels(self.record.start_ns, now - UNDERWAY)

    @property
    def counts(self) -> Counts:
        """Messages written, and dropped by the writer, so far."""
        return self._writer.counts

    def put(self, topic: str, data: bytes, log_time: int, publish_time: int) -> None:
        """Record one message; times in ns."""
        self._writer.put(topic, data, log_time, publish_time)
        if self.record.topics[topic].stream:
            self._continuity.note(topic, stamp_of(data))
        if topic not in self._types:
            return
        message = self._types[topic].decode(data)
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        if topic == self._mark_topic:
            at = (stamp - self.record.start_ns) / 1e9
            self.record.marks.append(Mark(label=message.label or PERTURBATION, at_s=at))
        else:
            self._control.note(
                stamp, message.authority_name, message.event, message.reason, message.transition
            )

    def end(self, outcome: str, reason: str, now: int, lost: Mapping[str, int]) -> Path:
        """Complete the episode; gives the finished file.

        Args:
            outcome: one of `OUTCOMES`.
            lost: messages, by topic, that never arrived.

        Raises:
            VigilError: the disk refuses.
        """
        return self._finish(outcome, reason, now, lost, DISCARDED if outcome == DISCARDED else "")

    def interrupt(self, now: int, lost: Mapping[str, int]) -> Path:
        """Complete the episode without an outcome: its recorder is asked to end.

        Raises:
            VigilError: the disk refuses.
        """
        return self._finish("", INTERRUPTED, now, lost, INTERRUPTED)

    def _finish(self, outcome: str, reason: str, now: int, lost: Mapping[str, int], word: str) -> Path:
        """``word``: in the file's name, telling what it is."""

        def footer(counts: Counts) -> Mapping[str, Mapping[str, str]]:
            self.record.recording_stopped = self._writer.stopped
            self.record.count(counts, lost)
            return self.record.metadata()

        self.record.outcome = outcome
        self.record.termination_reason = reason
        self.record.duration_s = max(now - self.record.start_ns, 0) / 1e9
        self.record.control = self._control.spans
        self.record.note_gaps(self._continuity)
        path = self._writer.path
        path = self._writer.finish(footer, free_name(path, word) if word else path)
        try:
            write_sidecar(path, self.record)
        except VigilError as error:  # the recording is complete without it
            self.warning = str(error)
        return path
