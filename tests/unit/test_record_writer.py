"""Recordings: what is put in comes out, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader

from support.cdr import encode, header
from vigil.errors import VigilError
from vigil.record.definitions import full_definition
from vigil.record.reader import EpisodeReader
from vigil.record.writer import EpisodeWriter, Topic

JOINTS = "sensor_msgs/msg/JointState"
NAMES = [f"fr3_joint{i}" for i in range(1, 8)] + ["gripper"]
TOPIC = "/rig/franka/joint_states"


def topic(name: str = TOPIC, type_name: str = JOINTS) -> Topic:
    return Topic(name, type_name, full_definition(type_name))


def joint_state(stamp: int) -> bytes:
    values = np.arange(8.0) + stamp
    return encode(JOINTS, header=header(stamp), name=NAMES, position=values, velocity=values, effort=values)


def no_footer(_) -> dict:
    return {}


def record(path: Path, messages: int, **options) -> EpisodeWriter:
    writer = EpisodeWriter(path, [topic()], **options)
    for i in range(messages):
        assert writer.put(TOPIC, joint_state(i * 10_000_000), i * 10_000_000 + 5, i * 10_000_000)
    return writer


def test_what_is_written_is_read(tmp_path):
    path = record(tmp_path / "e.mcap", 300).finish(lambda c: {"note": {"written": str(c.written.total())}})
    reader = EpisodeReader(path)
    assert reader.complete
    assert reader.counts == {TOPIC: 300}
    assert reader.types == {TOPIC: JOINTS}
    assert reader.metadata["note"] == {"written": "300"}
    assert (reader.start, reader.end) == (5, 299 * 10_000_000 + 5)
    stamp, message = list(reader.messages("franka/joint_states"))[7]
    assert stamp == 70_000_005
    assert message.name == NAMES
    assert message.header.stamp.nanosec == 70_000_000
    np.testing.assert_array_equal(message.position, np.arange(8.0) + 70_000_000)
    assert [raw[3] for raw in reader.raw()][7] == joint_state(70_000_000)
    assert not list(tmp_path.glob("*.part"))


def test_columns(tmp_path):
    path = record(tmp_path / "e.mcap", 50).finish(no_footer)
    columns = EpisodeReader(path).columns("joint_states", ("header.stamp", "position", "name"))
    assert columns["position"].shape == (50, 8)
    np.testing.assert_array_equal(columns["header.stamp"], np.arange(50) * 10_000_000)
    np.testing.assert_array_equal(columns["log_time"], np.arange(50) * 10_000_000 + 5)
    assert columns["name"][3] == NAMES


def test_a_common_reader_reads_it(tmp_path):
    path = record(tmp_path / "e.mcap", 20).finish(no_footer)
    with path.open("rb") as file:
        reader = make_reader(file)
        assert reader.get_header().profile == "ros2"
        rows = list(reader.iter_messages())
        assert len(rows) == 20
        schema, channel, message = rows[4]
        assert (schema.name, schema.encoding, channel.message_encoding) == (JOINTS, "ros2msg", "cdr")
        assert "MSG: std_msgs/Header" in schema.data.decode()
        assert message.data == joint_state(40_000_000)
        assert reader.get_summary().statistics.message_count == 20


@pytest.fixture(scope="module")
def many_chunks(tmp_path_factory) -> Path:
    """A recording of 200 messages in many chunks, log times 0, 1, 2 ..."""
    writer = EpisodeWriter(tmp_path_factory.mktemp("whole") / "e.mcap", [topic()], flush_period=0.005)
    for i in range(200):
        writer.put(TOPIC, joint_state(i), i, i)
        time.sleep(0.001)
    return writer.finish(no_footer)


@pytest.mark.parametrize("cut", [0.99, 0.7, 0.4, 0.1])
def test_a_cut_file_is_read_up_to_the_cut(many_chunks, tmp_path, cut):
    data = many_chunks.read_bytes()
    part = tmp_path / "cut.mcap.part"
    part.write_bytes(data[: int(len(data) * cut)])
    reader = EpisodeReader(part)
    assert not reader.complete
    times = [stamp for stamp, _ in reader.messages(TOPIC)] if reader.counts else []
    assert times == list(range(len(times)))
    assert len(times) > 200 * (cut - 0.35)  # the index and the summary at the end hold no messages


def test_a_flipped_byte_ends_the_reading_there(many_chunks, tmp_path):
    with many_chunks.open("rb") as file:
        chunks = make_reader(file).get_summary().chunk_indexes
    broken = chunks[len(chunks) // 2]
    data = bytearray(many_chunks.read_bytes())
    data[broken.chunk_start_offset + broken.chunk_length - 20] ^= 0xFF
    path = tmp_path / "e.mcap"
    path.write_bytes(data)
    reader = EpisodeReader(path)
    times = [stamp for stamp, _ in reader.messages(TOPIC)]
    assert times == list(range(len(times)))
    assert 0 < len(times) < 200
    assert "damaged" in reader.damage


WRITE_FOR_EVER = """
import sys, time
from pathlib import Path
from vigil.record.writer import EpisodeWriter, Topic
writer = EpisodeWriter(Path(sys.argv[1]), [Topic("/t", "std_msgs/msg/String", "string data")])
while True:
    now = time.time_ns()
    writer.put("/t", bytes(100), now, now)
    print(now, flush=True)
    time.sleep(0.005)
"""


def test_a_killed_writer_loses_less_than_a_second(tmp_path):
    path = tmp_path / "e.mcap"
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        put = [int(process.stdout.readline()) for _ in range(400)]
        os.kill(process.pid, signal.SIGKILL)
        put += [int(line) for line in process.stdout]
    reader = EpisodeReader(path.with_name("e.mcap.part"))
    assert not reader.complete
    assert put[-1] - reader.end < 1_000_000_000
    kept = [log_time for _, log_time, _, _ in reader.raw()]
    assert kept == put[: len(kept)]


def test_a_full_queue_drops_and_counts(tmp_path):
    writer = EpisodeWriter(tmp_path / "e.mcap", [topic()], queue_bytes=10_000, flush_period=60.0)
    taken = [writer.put(TOPIC, bytes(1000), i, i) for i in range(25)]
    assert taken == [True] * 10 + [False] * 15
    writer.finish(no_footer)
    assert writer.counts.dropped == {TOPIC: 15}
    assert writer.counts.written == {TOPIC: 10}


def test_a_nearly_full_disk_ends_the_writing_and_what_was_written_is_readable(tmp_path):
    left = [10_000_000]
    writer = EpisodeWriter(
        tmp_path / "e.mcap", [topic()], min_free=5_000_000, free=lambda _: left[0], flush_period=0.02
    )
    for i in range(10):
        writer.put(TOPIC, joint_state(i), i, i)
    left[0] = 4_000_000
    until = time.monotonic() + 10
    while not writer.stopped:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert "disk nearly full: 4 MB free" in writer.stopped
    assert not writer.put(TOPIC, joint_state(99), 99, 99)
    path = writer.finish(no_footer)
    assert EpisodeReader(path).counts == {TOPIC: 10}
    assert writer.counts.dropped == {TOPIC: 1}


def test_no_start_on_a_full_disk_or_over_another_recording(tmp_path):
    with pytest.raises(VigilError, match="disk nearly full"):
        EpisodeWriter(tmp_path / "e.mcap", [topic()], min_free=2_000_000, free=lambda _: 1_000_000)
    assert not list(tmp_path.iterdir())
    record(tmp_path / "e.mcap", 1).finish(no_footer)
    with pytest.raises(VigilError, match="exists already"):
        EpisodeWriter(tmp_path / "e.mcap", [topic()])


def test_unreadable_paths_and_unknown_topics_say_so(tmp_path):
    with pytest.raises(VigilError, match="cannot read"):
        EpisodeReader(tmp_path / "none.mcap")
    (tmp_path / "text.mcap").write_text("not an MCAP file")
    with pytest.raises(VigilError, match="no MCAP file"):
        EpisodeReader(tmp_path / "text.mcap")
    path = record(tmp_path / "e.mcap", 1).finish(no_footer)
    with pytest.raises(VigilError, match="no topic nothing; it has /rig/franka/joint_states"):
        list(EpisodeReader(path).messages("nothing"))
    with pytest.raises(VigilError, match="have no colour"):
        EpisodeReader(path).columns(TOPIC, ["colour"])


def test_definitions_of_missing_packages_say_so():
    with pytest.raises(VigilError, match="install the package nothing_msgs"):
        full_definition("nothing_msgs/msg/None")
    with pytest.raises(VigilError, match="package/msg/Name"):
        full_definition("None")
