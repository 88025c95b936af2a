"""One recording as arrays: joints, setpoints, who was in control, verdicts, and when each camera exposed.

What a recording holds is read from the recording: columns from the arm's state, cameras from the topics. No rig file is
needed, so that recordings stay readable when the rig changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.record.cdr import stamp_of
from vigil.record.dataset.streams import Stream, make_stream
from vigil.record.reader import EpisodeReader, stamp_ns

CONTROLLING = ("POLICY", "OPERATOR", "BLENDED")
IMAGE_TOPICS = ("/color/image_raw/compressed", "/color/image_raw")  # the former wins where both are recorded


@dataclass(frozen=True)
class Joints:
    """One topic of joint states; n samples of the columns it holds."""

    topic: str
    stream: Stream
    columns: tuple[str, ...]
    positions: np.ndarray  # float64 [n, columns], rad and m


@dataclass(frozen=True)
class Control:
    """The arm's state at every control tick; n samples, N columns."""

    stream: Stream
    commanded: np.ndarray  # float64 [n, N], setpoint sent at this tick; rad and m
    authority: np.ndarray  # object [n], HOLD, POLICY, OPERATOR, ESTOP or BLENDED


@dataclass(frozen=True)
class Verdicts:
    """What the monitor said; n samples. A score that a sample has not is NaN."""

    stream: Stream
    names: tuple[str, ...]  # of the S scores, in order of appearance
    scores: np.ndarray  # float64 [n, S], raw
    windowed: np.ndarray  # float64 [n, S]
    thresholds: np.ndarray  # float64 [n, S]
    verdict: np.ndarray  # object [n]
    alarm: np.ndarray  # bool [n], latched


@dataclass
class Source:
    """One recording, all but its pictures.

    Attributes:
        reader: for the pictures.
        facts: what the recorder knows of the episode (`vigil.record.episode.EpisodeRecord`, as a mapping).
        columns: the arm's columns in the order of its state: of states and of actions.
        cameras: exposures of each camera whose pictures were recorded.
        perturbation: what was done to the scene; empty if the recording does not tell.
    """

    reader: EpisodeReader
    facts: dict[str, Any]
    columns: tuple[str, ...]
    joints: tuple[Joints, ...]
    control: Control
    verdicts: Verdicts
    cameras: dict[str, Stream]
    image_topics: dict[str, str]
    perturbation: str = ""
    bundle_hash: str = ""
    states: Stream | None = None  # of the simulated world; None where there is none
    labels: list[str] = field(default_factory=list)  # what is odd about the recording as a whole

    @property
    def path(self) -> Path:
        """The recording's file."""
        return self.reader.path

    @property
    def identity(self) -> str:
        """Names the recording whatever its file is called: rig, episode and time of its start."""
        return f"{self.facts['rig']}/{self.facts['episode_id']}/{self.facts['started']}"

    @property
    def has_control(self) -> bool:
        """Whether anybody ever had control."""
        return bool(np.isin(self.control.authority, CONTROLLING).any())

    def first_control(self) -> int:
        """Stamp [ns] at which somebody was given control.

        Raises:
            VigilError: nobody ever had it.
        """
        if not self.has_control:
            raise VigilError("nobody ever had control")
        return int(self.control.stream.stamps[np.isin(self.control.authority, CONTROLLING).argmax()])


def read_source(path: Path) -> Source:
    """Read one recording, finished or cut short.

    Raises:
        VigilError: it is no recording of an episode, or lacks joint states or the arm's state. The message does not
            name the file: the caller does.
    """
    reader = EpisodeReader(path)
    facts = reader.episode
    if not facts:
        raise VigilError(
            "holds no episode of a recorder: other MCAP file, or killed before its first half second"
        )
    if not reader.has("arm/state"):
        raise VigilError("has no message of arm/state: without setpoints there are no actions")
    control, columns = _control(reader)
    image_topics = _image_topics(reader)
    source = Source(
        reader=reader,
        facts=facts,
        columns=columns,
        joints=_joints(reader, columns, facts),
        control=control,
        verdicts=_verdicts(reader),
        cameras={c: _header_stream(reader, topic, f"camera {c}") for c, topic in image_topics.items()},
        image_topics=image_topics,
        perturbation=_perturbation(reader),
        bundle_hash=_bundle_hash(reader),
        states=_header_stream(reader, "sim/state", "simulation") if reader.has("sim/state") else None,
    )
    if reader.damage:
        source.labels.append(f"cut short: {reader.damage}")
    if facts.get("recording_stopped"):
        source.labels.append(f"recording stopped early: {facts['recording_stopped']}")
    if facts.get("dropped"):
        source.labels.append(f"{facts['dropped']} messages dropped while recording")
    return source


def _control(reader: EpisodeReader) -> tuple[Control, tuple[str, ...]]:
    rows = reader.columns("arm/state", ("header.stamp", "names", "commanded", "authority_name"))
    columns = tuple(rows["names"][0])
    if any(tuple(names) != columns for names in rows["names"]):
        raise VigilError("arm/state changes its columns in mid-recording")
    usable = np.isfinite(rows["commanded"]).all(1)
    stream = make_stream("arm state", rows["header.stamp"], usable)
    if not len(stream):
        raise VigilError("arm/state holds no finite setpoint")
    return Control(stream, rows["commanded"][stream.index], rows["authority_name"][stream.index]), columns


@dataclass(frozen=True)
class _Column:
    """Where a column of the arm is told: rad or m = factor * position + offset."""

    column: str
    joint: str
    factor: float = 1.0
    offset: float = 0.0


def _joints(reader: EpisodeReader, columns: Sequence[str], facts: dict[str, Any]) -> tuple[Joints, ...]:
    """Of every topic of joint states the columns that it tells."""
    told = _as_recorded(reader, facts) if facts.get("joints") else _by_name(reader, columns)
    if lacking := [name for name in columns if not any(c.column == name for t in told.values() for c in t)]:
        found = {t: list(_first_names(reader, t)) for t in _joint_topics(reader)}
        raise VigilError(
            f"no joint state has the column {lacking[0]} of the arm; there are {found or 'none at all'}"
        )
    return tuple(_of_topic(reader, topic, picked) for topic, picked in told.items() if picked)


def _joint_topics(reader: EpisodeReader) -> list[str]:
    return [t for t, kind in reader.types.items() if kind == "sensor_msgs/msg/JointState" and reader.has(t)]


def _first_names(reader: EpisodeReader, topic: str) -> Sequence[str]:
    return next(message.name for _, message in reader.messages(topic))


def _as_recorded(reader: EpisodeReader, facts: dict[str, Any]) -> dict[str, list[_Column]]:
    """As the recorder has noted it: the rig's own names, and how a gripper's joint becomes a width."""
    told: dict[str, list[_Column]] = {}
    for given in facts["joints"]:
        if reader.has(given["topic"]):
            rows = zip(given["columns"], given["joints"], given["scale"], strict=True)
            told[reader.topic(given["topic"])] = [
                _Column(column, joint, *scale) for column, joint, scale in rows
            ]
    return told


def _by_name(reader: EpisodeReader, columns: Sequence[str]) -> dict[str, list[_Column]]:
    """Of a recording that does not tell: columns are the joints' names, each in one topic."""
    told: dict[str, list[_Column]] = {}
    for topic in _joint_topics(reader):
        names = set(_first_names(reader, topic))
        told[topic] = [_Column(name, name) for name in columns if name in names]
    for name in columns:
        having = [topic for topic, picked in told.items() if any(c.column == name for c in picked)]
        if len(having) > 1:
            raise VigilError(f"several joint states have the column {name} of the arm: {', '.join(having)}")
    return told


def _of_topic(reader: EpisodeReader, topic: str, picked: Sequence[_Column]) -> Joints:
    rows = reader.columns(topic, ("header.stamp", "name", "position"))
    positions = np.full((len(rows["position"]), len(picked)), np.nan)
    orders: dict[tuple[str, ...], list[int]] = {}
    for i, names in enumerate(rows["name"]):
        order = tuple(names)
        if order not in orders:
            if lacking := [c.joint for c in picked if c.joint not in order]:
                raise VigilError(f"{topic} has no {', '.join(lacking)}; it has {', '.join(order)}")
            orders[order] = [order.index(c.joint) for c in picked]
        positions[i] = rows["position"][i][orders[order]]
    positions = positions * [c.factor for c in picked] + [c.offset for c in picked]
    # A sample with a hole in it is none: what is missing shows up as a gap.
    stream = make_stream(f"joint states {topic}", rows["header.stamp"], np.isfinite(positions).all(1))
    if not len(stream):
        raise VigilError(f"{topic} holds no finite joint state")
    return Joints(topic, stream, tuple(c.column for c in picked), positions[stream.index])


def _verdicts(reader: EpisodeReader) -> Verdicts:
    messages = [m for _, m in reader.messages("monitor/status")] if reader.has("monitor/status") else []
    stream = make_stream("monitor", [stamp_ns(m.header.stamp) for m in messages])
    messages = [messages[i] for i in stream.index]
    names = tuple(dict.fromkeys(name for m in messages for name in m.score_names))
    table = {
        what: np.full((len(messages), len(names)), np.nan) for what in ("scores", "windowed", "thresholds")
    }
    for row, message in enumerate(messages):
        place = [names.index(name) for name in message.score_names]
        for what, values in table.items():
            values[row, place] = getattr(message, what)
    return Verdicts(
        stream,
        names,
        **table,
        verdict=np.array([m.verdict_name for m in messages], object),
        alarm=np.array([m.alarm for m in messages], bool),
    )


def _image_topics(reader: EpisodeReader) -> dict[str, str]:
    """Topic by camera, for every camera that the recorder listened to; in alphabetical order."""
    found: dict[str, str] = {}
    for ending in reversed(IMAGE_TOPICS):
        for topic in reader.types:
            if topic.endswith(ending):
                found[topic.removesuffix(ending).rsplit("/", 1)[-1]] = topic
    return dict(sorted(found.items()))


def _header_stream(reader: EpisodeReader, topic: str, name: str) -> Stream:
    """Header stamps alone, without decoding what follows them."""
    stamps = []
    for _, _, _, data in reader.raw([topic]):
        stamps.append(stamp_of(data))
    return make_stream(name, stamps)


def _perturbation(reader: EpisodeReader) -> str:
    if not reader.has("sim/task"):
        return ""
    return next((m.perturbation for _, m in reader.messages("sim/task")), "")


def _bundle_hash(reader: EpisodeReader) -> str:
    if not reader.has("policy/evidence"):
        return ""
    return next((m.bundle_hash for _, m in reader.messages("policy/evidence")), "")
