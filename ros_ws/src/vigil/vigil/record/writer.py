"""MCAP files that survive a crash: written by a thread of their own, in the file within half a second.

While it is open a recording is called ``NAME.mcap.part``. It gets its final name when it is complete. What a killed
process leaves is a ``.part`` that any reader of MCAP opens (`vigil.record.sink`), without an index and the facts that are
known at the end; `vigil.record.recovery` completes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mcap.writer import CompressionType, Writer

from vigil.errors import VigilError
from vigil.record.reserve import Reserve
from vigil.record.sink import Sink

PART = ".part"
FLUSH_PERIOD = 0.5  # s; a killed recorder loses at most this
CHUNK_BYTES = 1 << 20  # above it a chunk is flushed before its time
LARGEST = 1 << 40  # never reached: chunks end by `Writer.flush` alone, and are then in the file
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
    """Messages of each topic by what became of them: those in the file, and those that never will be."""

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
        self._ended = threading.Event()
        self._sequence: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()  # in the chunk that is not in the file yet
        self._pending_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check_new()
            self._file = self.part.open("xb", buffering=0)
        except OSError as error:
            raise VigilError(f"cannot record into {path.parent}: {error.strerror or error}") from None
        self._reserve: Reserve | None = None
        try:
            # Held until this process ends, however it ends: recovery leaves a file alone that is being written.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._reserve = Reserve(path)
            self._sink = Sink(self._file)
            self._mcap = begin_mcap(self._sink)
            for name, values in (header or {}).items():
                self._mcap.add_metadata(name, dict(values))
            self._channels = {topic.name: register(self._mcap, topic) for topic in topics}
            self._mcap.flush()
        except OSError as error:
            if self._reserve is not None:
                self._reserve.release()
            self._file.close()
            self.part.unlink()
            raise VigilError(f"cannot record into {path.parent}: {error.strerror or error}") from None
        self._threads = [
            threading.Thread(target=work, name=f"{what} {path.name}", daemon=True)
            for what, work in (("write", self._run), ("sync", self._keep_synced))
        ]
        for thread in self._threads:
            thread.start()

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

    def finish(
        self, footer: Callable[[Counts], Mapping[str, Mapping[str, str]]], path: Path | None = None
    ) -> Path:
        """Write what is queued and the metadata that ``footer`` makes of the final counts, and complete the file.

        After an error of the disk the file has what was written before, and no index.

        Args:
            path: the name that it gets, if it is another.

        Raises:
            VigilError: the disk refuses even that; what was written before is in the ``.part`` file.
        """
        with self._news:
            self._closing = True
            self._news.notify()
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._reserve.release()
        try:
            self._complete(footer)
            os.fsync(self._file.fileno())
            target = path or self.path
            os.rename(self.part, target)
            sync_folder(target.parent)
        except OSError as error:
            raise VigilError(
                f"{self.path.name} could not be completed: {error.strerror or error}; {self.part} has what was written"
            ) from None
        finally:
            self._file.close()
        return target

    def _complete(self, footer: Callable[[Counts], Mapping[str, Mapping[str, str]]]) -> None:
        if not self._broken:
            try:
                for name, values in footer(self.counts).items():
                    self._mcap.add_metadata(name, dict(values))
                self._mcap.finish()
                self._sink.finish()
                return
            except OSError as error:
                self._fail(error)
        # The writer cannot go on, so there is no index; the facts may still find theirs, where the chunk that failed had begun.
        for name, values in footer(self.counts).items():
            self._sink.append_metadata(name, dict(values))

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

    # The writer's threads ---------------------------------------------------------------------------------------

    # In ordinary priority, by intention: a thread that stands back keeps Python's lock from the one that fetches messages
    # whenever other programs take the processor, and what a kill would lose then grows without bound.

    def _run(self) -> None:
        due = time.monotonic() + self._flush_period
        while True:
            with self._news:
                if not self._closing and self._queued <= CHUNK_BYTES:
                    self._news.wait(max(due - time.monotonic(), 0.0))
                closing, batch = self._closing, self._queue
                self._queue, self._queued = deque(), 0
            self._write(batch)
            if closing or time.monotonic() >= due:
                self._flush()
                due = time.monotonic() + self._flush_period
                self._check_space()
            if closing:
                return

    def _write(self, batch: deque[tuple[str, int, int, bytes]]) -> None:
        while batch:
            topic, log_time, publish_time, data = batch.popleft()
            if self.stopped:
                with self._news:
                    self.counts.dropped[topic] += 1
                continue
            self._sequence[topic] += 1
            self._mcap.add_message(self._channels[topic], log_time, data, publish_time, self._sequence[topic])
            self._pending[topic] += 1
            self._pending_bytes += len(data)
            if self._pending_bytes > CHUNK_BYTES:
                self._flush()

    def _flush(self) -> None:
        """Bring the chunk into the file, from where a kill of this process does not take it."""
        if self._broken:
            return
        try:
            self._mcap.flush()
            became = self.counts.written
        except OSError as error:
            self._fail(error)
            became = self.counts.dropped
        with self._news:
            became.update(self._pending)
        self._pending, self._pending_bytes = Counter(), 0

    def _check_space(self) -> None:
        if self.stopped:
            return
        try:
            free = self._free(self.part.parent)
        except OSError as error:
            self._fail(error)
            return
        if free < self._min_free:
            self.stopped = self._low(free)

    def _keep_synced(self) -> None:
        """Bring the file to the disk again and again, for the case of a power cut: nothing waits for a slow disk."""
        while not (self._ended.wait(self._flush_period) or self._broken):
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._broken = True
        self.stopped = self.stopped or f"disk error while writing {self.part}: {error.strerror or error}"


def begin_mcap(file: Sink) -> Writer:
    """An MCAP writer in the profile of ROS 2; a chunk ends where it is flushed.

    State compresses to a third; JPEG costs zstd next to nothing; noise of raw pictures leaves five sixths.
    """
    mcap = Writer(file, chunk_size=LARGEST, compression=CompressionType.ZSTD)
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
