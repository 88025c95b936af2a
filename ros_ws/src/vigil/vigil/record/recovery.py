"""Completing what a killed recorder left."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcap.exceptions import McapError
from mcap.reader import make_reader
from pydantic import ValidationError

from vigil.errors import VigilError
from vigil.record.cdr import stamp_of
from vigil.record.continuity import Continuity
from vigil.record.episode import (
    DISCARDED,
    INTERRUPTED,
    METADATA,
    SUFFIX,
    ControlLog,
    EpisodeRecord,
    Mark,
    free_name,
    write_sidecar,
)
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.record.reserve import SUFFIX as RESERVE
from vigil.record.sink import Sink
from vigil.record.writer import CHUNK_BYTES, PART, Counts, begin_mcap, register, sync_folder


def recover_folder(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """Complete every unfinished recording in ``folder`` that nobody is writing; gives the finished files.

    ``NAME.mcap.part`` becomes ``NAME.interrupted.mcap``, without an outcome, with termination reason ``interrupted``; or
    what it was to become, if its recorder was killed between its last byte and its new name. Facts that a kill left without
    their file beside the recording get it. ``tell`` gets a line for each.
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
    for reserve in folder.glob(f"*{SUFFIX}{RESERVE}"):
        with _owned(reserve) as owned:
            if owned:
                reserve.unlink()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if not path.with_suffix(".json").exists() and (record := _facts_inside(path)) is not None:
            write_sidecar(path, record)
    return finished


def recover(part: Path) -> Path:
    """Write everything that can be read of one unfinished recording into a finished one, and remove the former.

    Raises:
        VigilError: it is no recording, or the disk refuses; ``part`` is then left as it is.
    """
    reader = EpisodeReader(part)
    path = part.with_name(part.name.removesuffix(PART))
    if reader.complete and reader.episode:
        return _give_name(part, path, EpisodeRecord.model_validate(reader.episode))
    target = free_name(path, INTERRUPTED)
    growing = target.with_name(target.name + PART)
    try:
        with growing.open("wb", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            sink = Sink(file)
            mcap = begin_mcap(sink)
            channels = {topic.name: register(mcap, topic) for topic in reader.topics}
            counts, pending = Counts(), 0
            for topic, log_time, publish_time, data in reader.raw():
                counts.written[topic] += 1
                mcap.add_message(channels[topic], log_time, data, publish_time, counts.written[topic])
                pending += len(data)
                if pending > CHUNK_BYTES:
                    mcap.flush()
                    pending = 0
            record = _record(reader, counts)
            if record is not None:
                for name, values in record.metadata().items():
                    mcap.add_metadata(name, values)
            mcap.finish()
            sink.finish()
            os.fsync(file.fileno())
            growing.rename(target)
        sync_folder(target.parent)
        if record is not None:
            write_sidecar(target, record)
        part.unlink()
    except OSError as error:
        with suppress(OSError):
            growing.unlink()
        raise VigilError(
            f"cannot write {target}: {error.strerror or error}; {part} is readable as it is"
        ) from None
    return target


def _give_name(part: Path, path: Path, record: EpisodeRecord) -> Path:
    """What remained to be done for a recording that is complete."""
    word = DISCARDED if record.outcome == DISCARDED else "" if record.outcome else INTERRUPTED
    target = free_name(path, word) if word else path
    try:
        part.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise VigilError(f"cannot rename {part}: {error.strerror or error}") from None
    write_sidecar(target, record)
    return target


def _facts_inside(path: Path) -> EpisodeRecord | None:
    """What a finished recording says of its episode, by its index alone; None for any other file."""
    try:
        with path.open("rb") as file:
            found = [m.metadata for m in make_reader(file).iter_metadata() if m.name == METADATA]
        return EpisodeRecord.model_validate_json(found[-1]["json"]) if found else None
    except (OSError, McapError, KeyError, ValidationError):
        return None


def _record(reader: EpisodeReader, counts: Counts) -> EpisodeRecord | None:
    if not reader.episode:
        return None  # killed before its first flush
    record = EpisodeRecord.model_validate(reader.episode)
    record.termination_reason = INTERRUPTED
    record.duration_s = max(reader.end - record.start_ns, 0) / 1e9
    record.recording_stopped = f"the recorder ended: {reader.damage}"
    record.count(counts, Counter())
    continuity = Continuity({name: facts.stream for name, facts in record.topics.items()})
    steady = [name for name, facts in record.topics.items() if facts.stream and reader.has(name)]
    for name, _, _, data in reader.raw(steady):
        continuity.note(name, stamp_of(data))
    record.note_gaps(continuity)
    if reader.has("arm/state"):
        control = ControlLog(record.start_ns)
        for _, state in reader.messages("arm/state"):
            control.note(
                stamp_ns(state.header.stamp),
                state.authority_name,
                state.event,
                state.reason,
                state.transition,
            )
        record.control = control.spans
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
