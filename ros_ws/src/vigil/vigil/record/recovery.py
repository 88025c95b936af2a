"""Completing what a killed recorder left."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vigil.errors import VigilError
from vigil.record.episode import INTERRUPTED, SUFFIX, EpisodeRecord, Mark, free_name, write_sidecar
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.record.writer import PART, Counts, begin_mcap, register, sync_folder


def recover_folder(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """Complete every unfinished recording in ``folder`` that nobody is writing; gives the finished files.

    ``NAME.mcap.part`` becomes ``NAME.interrupted.mcap``, without an outcome, with termination reason ``interrupted``.
    ``tell`` gets a line for each.
    """
    finished = []
    for part in sorted(folder.glob(f"*{SUFFIX}{PART}")):
        with _owned(part) as owned:
            if not owned:
                continue
            if f".{INTERRUPTED}" in part.name:
                part.unlink()  # a recovery that was itself interrupted: what it read from is still there
                continue
            try:
                finished.append(recover(part))
                tell(f"{part.name} was left unfinished: completed as {finished[-1].name}")
            except VigilError as error:
                tell(f"{part.name} was left unfinished and could not be completed: {error}")
    return finished


def recover(part: Path) -> Path:
    """Write everything that can be read of one unfinished recording into a finished one, and remove the former.

    Raises:
        VigilError: it is no recording, or the disk refuses; ``part`` is then left as it is.
    """
    reader = EpisodeReader(part)
    target = free_name(part.with_name(part.name.removesuffix(PART)), INTERRUPTED)
    growing = target.with_name(target.name + PART)
    try:
        with growing.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            mcap = begin_mcap(file)
            channels = {topic.name: register(mcap, topic) for topic in reader.topics}
            counts = Counts()
            for topic, log_time, publish_time, data in reader.raw():
                counts.written[topic] += 1
                mcap.add_message(channels[topic], log_time, data, publish_time, counts.written[topic])
            record = _record(reader, counts)
            if record is not None:
                for name, values in record.metadata().items():
                    mcap.add_metadata(name, values)
            mcap.finish()
            file.flush()
            os.fsync(file.fileno())
            growing.rename(target)
        sync_folder(target.parent)
        if record is not None:
            write_sidecar(target, record)
        part.unlink()
    except OSError as error:
        with suppress(OSError):
            growing.unlink()
        raise VigilError(f"cannot write {target}: {error.strerror or error}") from None
    return target


def _record(reader: EpisodeReader, counts: Counts) -> EpisodeRecord | None:
    if not reader.episode:
        return None  # killed before its first flush
    record = EpisodeRecord.model_validate(reader.episode)
    record.termination_reason = INTERRUPTED
    record.duration_s = max(reader.end - record.start_ns, 0) / 1e9
    record.recording_stopped = f"the recorder ended: {reader.damage}"
    record.count(counts, Counter())
    if reader.has("record/marks"):
        record.marks = [
            Mark(label=mark.label, at_s=(stamp_ns(mark.header.stamp) - record.start_ns) / 1e9)
            for _, mark in reader.messages("record/marks")
        ]
    return record


@contextmanager
def _owned(part: Path) -> Iterator[bool]:
    """Whether the file is nobody else's; it stays so inside the block."""
    try:
        file = part.open("rb")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
