"""One recording as arrays: joints, setpoints, who was in control, verdicts, and when each camera exposed.

What a recording holds is read from the recording: columns from the arm's state, cameras from the topics. No rig file is
needed, so that recordings stay readable when the rig changes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.record.dataset.streams import Stream, make_stream
from vigil.record.reader import EpisodeReader, stamp_ns

CONTROLLING = ("POLICY", "OPERATOR")
IMAGE_TOPICS = ("/color/image_raw/compressed", "/color/image_raw")  # the former wins where both are recorded
_STAMP = struct.Struct("<iI")  # of a header, behind the four bytes that tell the encoding


@dataclass(frozen=True)
class Joints:
    """One topic of joint states; n samples of the columns it holds."""

    stream: Stream
    columns: tuple[str, ...]
    positions: np.ndarray  # float64 [n, columns], rad and m


@dataclass(frozen=True)
class Control:
    """The arm's state at every control tick; n samples, N columns."""

    stream: Stream
    commanded: np.ndarray  # float64 [n, N], setpoint sent at this tick; rad and m
    authority: np.ndarray  # object [n], HOLD, POLICY, OPERATOR or ESTOP


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
        joints=_joints(reader, columns),
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


def _joints(reader: EpisodeReader, columns: Sequence[str]) -> tuple[Joints, ...]:
    """Of every topic of joint states the columns that it is to give.

    A column that several topics have (two arms alike) is the one of the arm that its name begins with.
    """
    topics = [t for t, kind in reader.types.items() if kind == "sensor_msgs/msg/JointState" and reader.has(t)]
    rows = {topic: reader.columns(topic, ("header.stamp", "name", "position")) for topic in topics}
    wanted: dict[str, list[tuple[str, str]]] = {
        topic: [] for topic in topics
    }  # (column, name in the message)
    for column in columns:
        having = []
        for topic in topics:
            arm, names = topic.rsplit("/", 2)[-2], set(rows[topic]["name"][0])
            own = [n for n in names if column in (f"{arm}/{n}", f"{arm}_{n}")]
            having += [(topic, name) for name in own or ([column] if column in names else [])]
        if len(having) != 1:
            found = {topic: list(rows[topic]["name"][0]) for topic in topics}
            what = "no joint state has" if not having else "several joint states have"
            raise VigilError(f"{what} the column {column} of the arm; there are {found or 'none at all'}")
        topic, name = having[0]
        wanted[topic].append((column, name))
    return tuple(_of_topic(topic, rows[topic], picked) for topic, picked in wanted.items() if picked)


def _of_topic(topic: str, rows: dict[str, np.ndarray], picked: list[tuple[str, str]]) -> Joints:
    positions = np.full((len(rows["position"]), len(picked)), np.nan)
    orders: dict[tuple[str, ...], list[int]] = {}
    for i, names in enumerate(rows["name"]):
        order = tuple(names)
        if order not in orders:
            if lacking := [name for _, name in picked if name not in order]:
                raise VigilError(
                    f"{topic} loses {', '.join(lacking)} in mid-recording: it then has {list(order)}"
                )
            orders[order] = [order.index(name) for _, name in picked]
        positions[i] = rows["position"][i][orders[order]]
    # A sample with a hole in it is none: what is missing shows up as a gap.
    stream = make_stream(f"joint states {topic}", rows["header.stamp"], np.isfinite(positions).all(1))
    if not len(stream):
        raise VigilError(f"{topic} holds no finite joint state")
    return Joints(stream, tuple(column for column, _ in picked), positions[stream.index])


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
        sec, nanosec = _STAMP.unpack_from(data, 4)
        stamps.append(sec * 1_000_000_000 + nanosec)
    return make_stream(name, stamps)


def _perturbation(reader: EpisodeReader) -> str:
    if not reader.has("sim/task"):
        return ""
    return next((m.perturbation for _, m in reader.messages("sim/task")), "")


def _bundle_hash(reader: EpisodeReader) -> str:
    if not reader.has("policy/evidence"):
        return ""
    return next((m.bundle_hash for _, m in reader.messages("policy/evidence")), "")
