"""Reading recordings, finished or cut short, without ROS."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
import numpy as np
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Metadata, Schema
from mcap.writer import MCAP0_MAGIC

from vigil.errors import VigilError
from vigil.record.cdr import MessageType
from vigil.record.writer import Topic

_RECORD = struct.Struct("<BQ")  # opcode, length of what follows
_FOOTER = struct.Struct("<BQQQI")  # opcode, length, where summary and its offsets begin, checksum
UNFINISHED = "its writer did not finish it"
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_DAMAGE = (McapError, zstandard.ZstdError, struct.error, ValueError, EOFError, RuntimeError, MemoryError)


class EpisodeReader:
    """One recording (``.mcap`` or ``.mcap.part``), read from the front up to its end or to the damage.

    Topics may be named relative to the rig: ``sim/state`` finds ``/franka_sim/sim/state``.

    Raises:
        VigilError: the file is missing or is no MCAP file.

    Attributes:
        types: message type by (absolute) topic; topics without a message are listed too.
        counts: number of readable messages by topic.
        metadata: metadata records by name, a later one of the same name over the earlier.
        damage: why reading ended before the file's end mark; empty if the file is complete.
        start, end: log time of the first and of the last message [ns]; 0 without messages.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.damage = ""
        self.start = self.end = 0
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._decoders: dict[int, MessageType] = {}
        self._survey()

    @property
    def complete(self) -> bool:
        """The file was finished by its writer."""
        return not self.damage

    @property
    def episode(self) -> dict[str, Any]:
        """What the recorder knows of the episode (see `vigil.record.episode.EpisodeRecord`); empty for other recordings."""
        text = self.metadata.get("vigil_episode", {}).get("json")
        return json.loads(text) if text else {}

    @property
    def topics(self) -> list[Topic]:
        """Topics with their definitions, as the writer takes them."""
        found = []
        for channel in self._channels.values():
            schema = self._schemas[channel.schema_id]
            qos = channel.metadata.get("offered_qos_profiles", "")
            found.append(Topic(channel.topic, schema.name, schema.data.decode(), qos))
        return found

    def topic(self, name: str) -> str:
        """Absolute name of a topic given absolutely or relative to the rig.

        Raises:
            VigilError: no topic of this name, or several.
        """
        found = [topic for topic in self.types if topic == name] or [
            topic for topic in self.types if topic.endswith("/" + name.lstrip("/"))
        ]
        if len(found) != 1:
            why = f"several topics called {name}" if found else f"no topic {name}"
            raise VigilError(f"{self.path} has {why}; it has {', '.join(sorted(self.types)) or 'none'}")
        return found[0]

    def has(self, name: str) -> bool:
        """True if the topic holds at least one message."""
        return any(
            count and (topic == name or topic.endswith("/" + name.lstrip("/")))
            for topic, count in self.counts.items()
        )

    def raw(self, topics: Iterable[str] | None = None) -> Iterator[tuple[str, int, int, bytes]]:
        """(topic, log time, publish time, serialised message) in file order, times in ns; all topics by default."""
        wanted = None if topics is None else {self.topic(name) for name in topics}
        for channel, log_time, publish_time, data in self._messages(wanted):
            yield self._channels[channel].topic, log_time, publish_time, bytes(data)

    def messages(self, topic: str) -> Iterator[tuple[int, Any]]:
        """(log time in ns, message) of one topic in file order; see `vigil.record.cdr` for the objects."""
        for channel, log_time, _, data in self._messages({self.topic(topic)}):
            yield log_time, self._decoder(channel).decode(bytes(data))

    def columns(self, topic: str, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Fields of one topic as arrays with one row per message.

        Args:
            fields: names, dotted for nested ones (``header.stamp`` gives ns as int64). Sequences of numbers must have
                the same length in all messages. Text becomes an object array.

        Returns:
            The arrays by field, and ``log_time`` (int64, ns).

        Raises:
            VigilError: no such topic or field, or a sequence whose length changes.
        """
        rows: dict[str, list[Any]] = {field: [] for field in fields}
        times: list[int] = []
        for log_time, message in self.messages(topic):
            times.append(log_time)
            for field, column in rows.items():
                column.append(self._value(topic, message, field))
        arrays = {field: self._stack(topic, field, column) for field, column in rows.items()}
        return {"log_time": np.array(times, np.int64), **arrays}

    # Inside -----------------------------------------------------------------------------------------------------

    def _value(self, topic: str, message: Any, field: str) -> Any:
        for part in field.split("."):
            if not hasattr(message, part):
                raise VigilError(f"{self.path}: messages of {topic} have no {field}")
            message = getattr(message, part)
        return stamp_ns(message) if hasattr(message, "nanosec") else message

    def _stack(self, topic: str, field: str, column: list[Any]) -> np.ndarray:
        if column and isinstance(column[0], str | list):
            array = np.empty(len(column), object)
            array[:] = column
            return array
        try:
            return np.array(column)
        except ValueError:
            raise VigilError(f"{self.path}: {field} of {topic} changes its length between messages") from None

    def _decoder(self, channel: int) -> MessageType:
        if channel not in self._decoders:
            schema = self._schemas[self._channels[channel].schema_id]
            if schema.encoding != "ros2msg" or self._channels[channel].message_encoding != "cdr":
                raise VigilError(
                    f"{self.path}: {self._channels[channel].topic} is {schema.encoding} in "
                    f"{self._channels[channel].message_encoding}, readable is ros2msg in cdr"
                )
            self._decoders[channel] = MessageType(schema.name, schema.data.decode())
        return self._decoders[channel]

    def _survey(self) -> None:
        first = True
        for channel, log_time, _, _ in self._messages(None):
            topic = self._channels[channel].topic
            self.counts[topic] = self.counts.get(topic, 0) + 1
            self.start = log_time if first else min(self.start, log_time)
            self.end = log_time if first else max(self.end, log_time)
            first = False

    def _messages(self, wanted: set[str] | None) -> Iterator[tuple[int, int, int, memoryview]]:
        """(channel, log time, publish time, data) of the wanted topics; notes everything else that comes by."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise VigilError(f"cannot read {self.path}: {error.strerror or error}") from None
        with file:
            if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
                raise VigilError(f"{self.path} is no MCAP file")
            try:
                for opcode, content in _records(file):
                    if opcode == Opcode.CHUNK:
                        yield from self._scan(_unpack(content), wanted)
                    elif opcode == Opcode.METADATA:
                        record = Metadata.read(ReadDataStream(BytesIO(content)))
                        self.metadata[record.name] = record.metadata
                    elif opcode == Opcode.DATA_END:
                        self.damage = _at_the_end(file)
                        return
                    elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
                        yield from self._scan(_RECORD.pack(opcode, len(content)) + content, wanted)
                self.damage = UNFINISHED
            except _DAMAGE as error:
                self.damage = f"damaged after {file.tell()} bytes: {error or type(error).__name__}"

    def _scan(self, data: bytes, wanted: set[str] | None) -> Iterator[tuple[int, int, int, memoryview]]:
        view, at, end = memoryview(data), 0, len(data)
        channels = self._channels
        while at < end:
            opcode, length = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            if at + length > end:
                raise EOFError("a record is longer than its chunk")
            if opcode == Opcode.MESSAGE:
                channel, _, log_time, publish_time = _MESSAGE.unpack_from(data, at)
                if channel not in channels:
                    raise ValueError(f"message of an unknown channel {channel}")
                if wanted is None or channels[channel].topic in wanted:
                    yield channel, log_time, publish_time, view[at + _MESSAGE.size : at + length]
            elif opcode == Opcode.SCHEMA:
                schema = Schema.read(ReadDataStream(BytesIO(view[at : at + length])))
                self._schemas[schema.id] = schema
            elif opcode == Opcode.CHANNEL:
                channel = Channel.read(ReadDataStream(BytesIO(view[at : at + length])))
                channels[channel.id] = channel
                schema = self._schemas.get(channel.schema_id)
                self.types[channel.topic] = schema.name if schema else ""
            at += length


def stamp_ns(stamp: Any) -> int:
    """A message's ``builtin_interfaces/Time`` in ns."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Whole records of a file; ends quietly where the last one is cut."""
    while True:
        head = file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            return
        opcode, length = _RECORD.unpack(head)
        if opcode == Opcode.MESSAGE_INDEX:
            file.seek(length, 1)
            continue
        content = file.read(length)
        if len(content) < length:
            return
        yield opcode, content


def _at_the_end(file: BinaryIO) -> str:
    """What is wrong with the end of a file; empty if its writer finished it."""
    file.seek(-(_FOOTER.size + len(MCAP0_MAGIC)), 2)
    opcode, _, summary, _, _ = _FOOTER.unpack(file.read(_FOOTER.size))
    if opcode != Opcode.FOOTER or file.read() != MCAP0_MAGIC:
        return "its end mark is missing"
    return "" if summary else UNFINISHED


def _unpack(content: bytes) -> bytes:
    chunk = Chunk.read(ReadDataStream(BytesIO(content)))
    if chunk.compression == "zstd":
        data = zstandard.decompress(chunk.data, chunk.uncompressed_size)
    elif chunk.compression == "lz4":
        data = lz4.frame.decompress(chunk.data)
    elif chunk.compression == "":
        data = chunk.data
    else:
        raise ValueError(f"unknown compression {chunk.compression!r}")
    if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise ValueError("checksum of a chunk is wrong")
    return data
