"""MCAP files that survive a crash: written by a thread of their own, on the disk within half a second.

While it is open a recording is called ``NAME.mcap.part``. It becomes ``NAME.mcap`` when it is complete, so a file of
that name always is. What a killed process leaves is a ``.part`` whose whole chunks can be read (`vigil.record.reader`)
and completed (`vigil.record.recovery`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mcap.writer import CompressionType, Writer

from vigil.errors import VigilError
from vigil.scheduling import stand_back

PART = ".part"
FLUSH_PERIOD = 0.5  # s; a killed recorder loses at most this and what one fsync takes
CHUNK_BYTES = 1 << 20
QUEUE_BYTES = 128 << 20  # two raw 640x480 cameras fill this in 2.4 s
MEGABYTE = 1_000_000


def free_bytes(folder: Path) -> int:
    """Bytes free for this user on the disk that holds ``folder``."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Topic:
    """What a recording has to know of one topic; ``qos`` is YAML as rosbag2 stores it, may be empty."""

    name: str  # absolute
    type_name: str  # package/msg/Name
    definition: str  # full, see `vigil.record.definitions`
    qos: str = ""


@dataclass
class Counts:
    """Messages of each topic by what became of them."""

    written: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


class EpisodeWriter:
    """Writes one recording. `put` never blocks and never raises: what cannot be written is counted as dropped.

    Args:
        path: file to appear when complete, ``NAME.mcap``; its folder is made if needed.
        topics: what will be written.
        min_free: stop writing when fewer bytes are free on the disk.
        header: metadata records (name to keys and values) written first, for whoever finds an unfinished file.

    Raises:
        VigilError: the file exists, the disk is too full, or the folder cannot be written.

    Attributes:
        counts: what was written and dropped so far.
        stopped: why nothing is written any more; empty while all is well.
    """

    def __init__(
        self,
        path: Path,
        topics: list[Topic],
        *,
        min_free: int = 0,
        header: Mapping[str, Mapping[str, str]] | None = None,
        flush_period: float = FLUSH_PERIOD,
        queue_bytes: int = QUEUE_BYTES,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.path = path
        self.part = path.with_name(path.name + PART)
        self.counts = Counts()
        self.stopped = ""
        self._min_free, self._free = min_free, free
        self._flush_period, self._queue_bytes = flush_period, queue_bytes
        self._queue: deque[tuple[str, int, int, bytes]] = deque()
        self._queued = 0  # bytes
        self._news = threading.Condition()
        self._closing = self._broken = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check_new()
            self._file = self.part.open("xb")
            # Held until this process ends, however it ends: recovery leaves a file alone that is being written.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise VigilError(f"cannot record into {path.parent}: {error.strerror or error}") from None
        self._mcap = begin_mcap(self._file)
        for name, values in (header or {}).items():
            self._mcap.add_metadata(name, dict(values))
        self._channels = {topic.name: register(self._mcap, topic) for topic in topics}
        self._sequence: Counter[str] = Counter()
        self._mcap.flush()
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def put(self, topic: str, data: bytes, log_time: int, publish_time: int) -> bool:
        """Queue one serialised message (CDR); times in ns. False if it was dropped."""
        with self._news:
            if self._closing or self.stopped or self._queued + len(data) > self._queue_bytes:
                self.counts.dropped[topic] += 1
                return False
            self._queue.append((topic, log_time, publish_time, data))
            self._queued += len(data)
            # The writer wakes for its flush anyway; waking it for every message would cost more than writing.
            if self._queued > CHUNK_BYTES:
                self._news.notify()
        return True

    def finish(self, footer: Callable[[Counts], Mapping[str, Mapping[str, str]]]) -> Path:
        """Write what is queued and the metadata that ``footer`` makes of the final counts, and complete the file.

        Raises:
            VigilError: the disk refuses; what was written before stays readable in the ``.part`` file.
        """
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()
        try:
            if self._broken:
                raise VigilError(f"{self.stopped}; {self.part} has what was written before")
            for name, values in footer(self.counts).items():
                self._mcap.add_metadata(name, dict(values))
            self._mcap.finish()
            self._sync()
            os.rename(self.part, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise VigilError(
                f"{self.path.name} could not be completed: {error.strerror or error}; {self.part} has what was written"
            ) from None
        finally:
            with contextlib.suppress(OSError):  # a full disk refuses the last buffered bytes once more
                self._file.close()
        return self.path

    def _check_new(self) -> None:
        for taken in (self.path, self.part):
            if taken.exists():
                raise VigilError(
                    f"{taken} exists already: recordings are never overwritten, choose another name"
                )
        free = self._free(self.path.parent)
        if free < self._min_free:
            raise VigilError(f"no recording: {self._low(free)}")

    def _low(self, free: int) -> str:
        return (
            f"disk nearly full: {free / MEGABYTE:.0f} MB free in {self.path.parent}, "
            f"the rig asks for {self._min_free / MEGABYTE:.0f} MB (record.min_free_mb): free some space"
        )

    # The writer's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        stand_back()
        due = time.monotonic() + self._flush_period
        while True:
            with self._news:
                if not self._closing and self._queued <= CHUNK_BYTES:
                    self._news.wait(max(due - time.monotonic(), 0.0))
                closing, batch = self._closing, self._queue
                self._queue, self._queued = deque(), 0
            self._write(batch)
            if closing or time.monotonic() >= due:
                self._attempt(self._flush)
                due = time.monotonic() + self._flush_period
            if closing:
                return

    def _write(self, batch: deque[tuple[str, int, int, bytes]]) -> None:
        while batch:
            topic, log_time, publish_time, data = batch.popleft()
            if self.stopped or not self._attempt(self._add, topic, log_time, publish_time, data):
                with self._news:
                    self.counts.dropped[topic] += 1
            else:
                self.counts.written[topic] += 1

    def _add(self, topic: str, log_time: int, publish_time: int, data: bytes) -> None:
        self._sequence[topic] += 1
        self._mcap.add_message(self._channels[topic], log_time, data, publish_time, self._sequence[topic])

    def _flush(self) -> None:
        if self.stopped:
            return
        self._mcap.flush()
        self._sync()
        free = self._free(self.part.parent)
        if free < self._min_free:
            self.stopped = self._low(free)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> bool:
        try:
            action(*arguments)
        except OSError as error:
            self._broken = True  # a record may be half written: nothing may follow it
            self.stopped = f"disk error while writing {self.part}: {error.strerror or error}"
            return False
        return True


def begin_mcap(file: BinaryIO) -> Writer:
    """An MCAP writer in the profile of ROS 2. State compresses to a third; JPEG costs zstd next to nothing."""
    mcap = Writer(file, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD)
    mcap.start(profile="ros2", library="vigil")
    return mcap


def register(mcap: Writer, topic: Topic) -> int:
    """Number of the channel made for ``topic``."""
    schema = mcap.register_schema(topic.type_name, "ros2msg", topic.definition.encode())
    return mcap.register_channel(topic.name, "cdr", schema, {"offered_qos_profiles": topic.qos})


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
