"""The file under a recording: whole at every moment, whatever becomes of its writer and of the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader

from support.cdr import encode, header
from vigil.errors import VigilError
from vigil.record import writer as writer_module
from vigil.record.definitions import full_definition
from vigil.record.reader import UNFINISHED, EpisodeReader
from vigil.record.recovery import recover_folder
from vigil.record.sink import END_MARK
from vigil.record.writer import EpisodeWriter, Topic, begin_mcap, register

MARK, TOPIC = "vigil_msgs/msg/EpisodeMark", "/rig/record/marks"


def message(number: int) -> bytes:
    return encode(MARK, header=header(number), label="x" * 100)


def by_mcap(path: Path) -> list[int]:
    """Log times of all messages."""
    with path.open("rb") as file:
        return [m.log_time for _, _, m in make_reader(file, validate_crcs=True).iter_messages()]


def by_rosbags(path: Path) -> list[int]:
    """The same, by the messages' own stamps."""
    with AnyReader([path]) as reader:
        found = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    return [m.header.stamp.nanosec for m in found]


def everybody_reads(path: Path, expected: list[int]) -> None:
    """A file as it was left, under the name that other readers ask for."""
    named = path.with_name("as_left.mcap")
    named.write_bytes(path.read_bytes())
    reader = EpisodeReader(path)
    assert [at for _, at, _, _ in reader.raw()] == expected
    assert reader.damage == UNFINISHED
    assert by_mcap(named) == expected
    assert by_rosbags(named) == expected


def wait_until(condition) -> None:
    until = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_after_every_flush_the_file_is_one_that_everybody_reads(tmp_path):
    path = tmp_path / "e.mcap.part"
    with path.open("wb", buffering=0) as file:
        sink = writer_module.Sink(file)
        mcap = begin_mcap(sink)
        channel = register(mcap, Topic(TOPIC, MARK, full_definition(MARK)))
        mcap.flush()
        assert path.read_bytes().endswith(END_MARK)
        for number in range(12):
            mcap.add_message(channel, number, message(number), number)
            if number % 4 == 3:
                mcap.flush()
                everybody_reads(path, list(range(number + 1)))
        mcap.finish()
        assert not EpisodeReader(path).complete
        sink.finish()
    reader = EpisodeReader(path)
    assert reader.complete and reader.counts == {TOPIC: 12}


def test_a_slow_disk_does_not_keep_messages_from_the_file(tmp_path, monkeypatch):
    """What is in the file outlives a kill, whether or not the disk has it yet."""
    let_go, asked = threading.Event(), threading.Event()

    def never_ready(_: int) -> None:
        asked.set()
        let_go.wait(30)

    monkeypatch.setattr(os, "fsync", never_ready)
    recording = EpisodeWriter(
        tmp_path / "e.mcap", [Topic(TOPIC, MARK, full_definition(MARK))], flush_period=0.02
    )
    try:
        wait_until(asked.is_set)
        for number in range(30):
            recording.put(TOPIC, message(number), number, number)
        wait_until(lambda: EpisodeReader(recording.part).counts == {TOPIC: 30})
        assert recording.counts.written == {TOPIC: 30}
    finally:
        let_go.set()
    assert EpisodeReader(recording.finish(lambda _: {})).complete


UNTIL_REFUSED = """
import json, resource, sys, time
from pathlib import Path
from vigil.record.writer import EpisodeWriter, Topic
topics = [Topic("/rig/record/marks", "vigil_msgs/msg/EpisodeMark", sys.argv[2])]
recording = EpisodeWriter(Path(sys.argv[1]), topics, flush_period=0.2)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
number, noise = 0, bytes.fromhex(sys.stdin.read())
while not recording.stopped:
    head = bytes([0, 1, 0, 0]) + bytes(4) + number.to_bytes(4, "little") + bytes([1, 0, 0, 0, 0, 0, 0, 0])
    label = bytes(noise[(number * 7 + i) % len(noise)] % 26 + 97 for i in range(99)) + bytes(1)
    recording.put("/rig/record/marks", head + (100).to_bytes(4, "little") + label, number, number)
    number += 1
    time.sleep(0.0005)
path = recording.finish(lambda counts: {"told": {"written": str(counts.written.total()), "why": recording.stopped}})
print(json.dumps({"put": number, "written": recording.counts.written.total(),
                  "dropped": recording.counts.dropped.total(), "path": str(path)}))
"""


def test_a_disk_that_is_full_leaves_a_file_that_everybody_reads(tmp_path):
    """Refused by the kernel in the middle of a write; the facts find room where the refused chunk had begun."""
    noise = os.urandom(997).hex()
    arguments = [
        sys.executable,
        "-c",
        UNTIL_REFUSED,
        str(tmp_path / "e.mcap"),
        full_definition(MARK),
        "100000",
    ]
    done = subprocess.run(arguments, input=noise, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    path = Path(told["path"])
    assert path == tmp_path / "e.mcap"
    assert 0 < told["written"] < told["put"]
    assert told["written"] + told["dropped"] == told["put"]
    everybody_reads(path, list(range(told["written"])))
    facts = EpisodeReader(path).metadata["told"]
    assert facts["written"] == str(told["written"])
    assert "disk error" in facts["why"]


def test_a_disk_that_refuses_everything_is_reported(tmp_path):
    recording = EpisodeWriter(
        tmp_path / "e.mcap", [Topic(TOPIC, MARK, full_definition(MARK))], flush_period=0.02
    )
    handle = os.open("/dev/full", os.O_WRONLY)
    os.dup2(handle, recording._file.fileno())
    os.close(handle)
    for number in range(10):
        recording.put(TOPIC, message(number), number, number)
    wait_until(lambda: recording.stopped)
    assert "disk error while writing" in recording.stopped
    with pytest.raises(VigilError, match="No space left"):
        recording.finish(lambda _: {"note": {}})
    assert recording.counts.dropped.total() == 10 and not recording.counts.written.total()


def test_no_recording_begins_where_its_first_bytes_find_no_room(tmp_path):
    begin = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n" + UNTIL_REFUSED
    arguments = [sys.executable, "-c", begin, str(tmp_path / "e.mcap"), full_definition(MARK), "10"]
    done = subprocess.run(arguments, input="00", capture_output=True, text=True)
    assert "VigilError: cannot record into" in done.stderr
    assert not list(tmp_path.iterdir())


def test_room_is_kept_for_the_end_and_given_back(tmp_path):
    path = tmp_path / "e.mcap"
    recording = EpisodeWriter(path, [Topic(TOPIC, MARK, full_definition(MARK))])
    (reserve,) = tmp_path.glob("*.reserve")
    assert reserve.stat().st_blocks * 512 >= 1 << 20
    recover_folder(tmp_path, lambda _: None)
    assert reserve.exists(), "it is somebody's"
    recording.finish(lambda _: {})
    assert [file.name for file in tmp_path.iterdir()] == ["e.mcap"]
    orphan = tmp_path / "killed.mcap.reserve"
    orphan.write_bytes(bytes(10))
    recover_folder(tmp_path, lambda _: None)
    assert not orphan.exists()
