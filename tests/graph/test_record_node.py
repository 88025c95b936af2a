"""The recorder over real DDS: what real publishers send is in the file, whatever becomes of the recorder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import pytest
from geometry_msgs.msg import TransformStamped
from lifecycle_msgs.srv import GetState
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, JointState
from vigil_msgs.msg import ControlState, EpisodeState
from vigil_msgs.srv import EndEpisode, MarkEpisode, StartEpisode

from support.live_node import graph, process, wait_for
from vigil.node import LATCHED, SENSOR, to_stamp
from vigil.record.reader import EpisodeReader
from vigil.rig import load_rig
from vigil.run.session import derive_rig

NAMESPACE = "record_test"
NAMES = [f"fr3_joint{i}" for i in range(1, 8)] + ["gripper"]
JPEG = bytes(range(256)) * 240  # as large as a 640x480 picture at quality 85


class World:
    """Publishes what a rig would: 100 Hz joint states and arm states, two cameras at 30 Hz."""

    def __init__(self, node) -> None:
        self._node = node
        self._joints = node.create_publisher(JointState, "franka/joint_states", SENSOR)
        self._arm = node.create_publisher(ControlState, "arm/state", LATCHED)
        self._cameras = [
            node.create_publisher(CompressedImage, f"{name}/color/image_raw/compressed", SENSOR)
            for name in ("wrist", "scene")
        ]
        extrinsics = node.create_publisher(TransformStamped, "wrist/extrinsics", LATCHED)
        extrinsics.publish(TransformStamped(child_frame_id="wrist_color_optical_frame"))
        self._extrinsics = extrinsics
        self.sent: list[int] = []  # stamps of joint states
        self.last: JointState | None = None
        self.authority = ("HOLD", 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> World:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due, tick = time.monotonic(), 0
        image = CompressedImage(format="rgb8; jpeg compressed bgr8", data=array("B", JPEG))
        while not self._stop.is_set():
            now = time.time_ns()
            joints = JointState(name=NAMES, position=[0.1 * i for i in range(8)])
            joints.header.stamp = to_stamp(now)
            self._joints.publish(joints)
            self.sent.append(now)
            self.last = joints
            name, transition = self.authority
            state = ControlState(authority_name=name, transition=transition, event="test", reason="a test")
            state.header.stamp = joints.header.stamp
            self._arm.publish(state)
            if tick % 3 == 0:
                image.header.stamp = joints.header.stamp
                for camera in self._cameras:
                    camera.publish(image)
            tick += 1
            due += 0.01
            time.sleep(max(due - time.monotonic(), 0.0))


@pytest.fixture
def rig(tmp_path):
    return derive_rig(
        load_rig("franka_sim"),
        tmp_path / "rig",
        record={"directory": str(tmp_path / "out"), "min_free_mb": 1},
    )


@pytest.fixture
def recorder(rig, tmp_path):
    """A client's graph, and the active recorder's process."""
    with (
        graph(NAMESPACE) as client,
        process("vigil.record.node", "record", NAMESPACE, tmp_path / "log", rig=rig.path) as running,
    ):
        assert client.configure("record")
        assert client.activate("record")
        yield client, running


def start(client, name: str = "one") -> str:
    answer = client.call(
        StartEpisode, "record/start", StartEpisode.Request(episode_id=name, operator_id="me")
    )
    assert answer.success, answer.message
    return answer.path


def end(client, outcome: str = "success", reason: str = "task_success"):
    request = EndEpisode.Request(outcome=outcome, termination_reason=reason)
    return client.call(EndEpisode, "record/end", request)


def test_an_episode_holds_what_was_published(recorder, rig):
    client, _ = recorder
    states = client.collect(EpisodeState, "record/episode", LATCHED)
    with World(client.node) as world:
        wait_for(lambda: len(world.sent) > 30)
        start(client)
        first = len(world.sent)
        wait_for(lambda: len(world.sent) > first + 100)
        answer = client.call(MarkEpisode, "record/mark", MarkEpisode.Request())
        assert answer.success, answer.message
        wait_for(lambda: states and any("perturbation at" in mark for mark in states[-1].marks))
        world.authority = ("POLICY", 2)
        wait_for(lambda: len(world.sent) > first + 200)
        last = len(world.sent)
        answer = end(client)
        assert answer.success, answer.message
    path = Path(answer.path)
    assert path == Path(rig.record.directory) / "one.mcap"
    reader = EpisodeReader(path)
    assert reader.complete

    stamps = reader.columns("franka/joint_states", ["header.stamp"])["header.stamp"].tolist()
    sent = world.sent[first + 2 : last - 2]
    assert [s for s in stamps if sent[0] <= s <= sent[-1]] == sent
    raw = next(data for topic, _, _, data in reader.raw(["franka/joint_states"]))
    message = JointState(name=NAMES, position=[0.1 * i for i in range(8)])
    message.header.stamp = to_stamp(stamps[0])
    assert deserialize_message(raw, JointState) == message

    delays = [
        at - stamp for (at, _), stamp in zip(reader.messages("franka/joint_states"), stamps, strict=True)
    ]
    assert sorted(delays)[len(delays) // 2] < 5_000_000  # the time of reception, not of fetching
    assert min(delays) > 0
    assert reader.counts[f"/{NAMESPACE}/wrist/color/image_raw/compressed"] > 40
    assert reader.counts[f"/{NAMESPACE}/wrist/extrinsics"] == 1

    facts = reader.episode
    assert facts["outcome"] == "success"
    assert (facts["task"], facts["operator_id"], facts["dropped"]) == (rig.task, "me", 0)
    (mark,) = facts["marks"]
    assert mark["label"] == "perturbation" and 0.0 < mark["at_s"] < facts["duration_s"]
    assert [span["authority"] for span in facts["control"]] == ["HOLD", "POLICY"]
    assert facts == json.loads(path.with_name("one.json").read_text())

    wait_for(lambda: states and states[-1].outcome == "success")
    assert not states[-1].recording
    assert any(state.recording and state.episode_id == "one" for state in states)


def test_a_common_reader_reads_it(recorder):
    client, _ = recorder
    with World(client.node) as world:
        start(client)
        wait_for(lambda: len(world.sent) > 50)
        path = end(client).path
    with open(path, "rb") as file:
        reader = make_reader(file)
        assert reader.get_header().profile == "ros2"
        topics = {channel.topic for _, channel, _ in reader.iter_messages()}
        names = {schema.name for schema in reader.get_summary().schemas.values()}
    assert f"/{NAMESPACE}/arm/state" in topics
    assert {"sensor_msgs/msg/JointState", "vigil_msgs/msg/ControlState"} <= names


def test_refusals_are_told(recorder):
    client, _ = recorder
    assert "no episode is open" in end(client).message
    answer = client.call(MarkEpisode, "record/mark", MarkEpisode.Request())
    assert not answer.success and "nothing to mark" in answer.message
    start(client)
    answer = client.call(StartEpisode, "record/start", StartEpisode.Request(episode_id="two"))
    assert not answer.success
    assert "episode one is open" in answer.message
    answer = end(client, "splendid")
    assert not answer.success
    assert "choose one of success, failure" in answer.message
    assert end(client).success
    for name, expected in (("one", "exists already"), ("../one", "makes no file name")):
        answer = client.call(StartEpisode, "record/start", StartEpisode.Request(episode_id=name))
        assert not answer.success
        assert expected in answer.message


def test_a_discarded_episode_is_marked(recorder, rig):
    client, _ = recorder
    start(client)
    path = Path(end(client, "discarded", "operator_stop").path)
    assert path.name == "one.mcap.discarded"
    assert not list(Path(rig.record.directory).glob("*.mcap"))
    assert EpisodeReader(path).episode["outcome"] == "discarded"
    start(client)  # the name is free again


def test_an_episode_open_at_the_end_is_kept(rig, tmp_path):
    with graph(NAMESPACE) as client:
        with process("vigil.record.node", "record", NAMESPACE, tmp_path / "log", rig=rig.path):
            assert client.configure("record")
            assert client.activate("record")
            start(client)
        kept = Path(rig.record.directory) / "one.interrupted.mcap"
        wait_for(kept.exists)
        assert EpisodeReader(kept).episode["termination_reason"] == "interrupted"


def test_a_killed_recorder_loses_less_than_a_second(rig, tmp_path):
    folder = Path(rig.record.directory)
    with graph(NAMESPACE) as client, World(client.node) as world:
        command = [sys.executable, "-m", "vigil.record.node", "--ros-args", "-r", f"__ns:=/{NAMESPACE}"]
        command += ["-r", "__node:=record", "-p", f"rig:={rig.path}"]
        with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as killed:
            try:
                assert client.configure("record")
                assert client.activate("record")
                part = Path(start(client))
                begun = len(world.sent)
                wait_for(lambda: len(world.sent) > begun + 230)
            finally:
                killed.send_signal(signal.SIGKILL)
            at = time.time_ns()
        stamps = EpisodeReader(part).columns("franka/joint_states", ["header.stamp"])["header.stamp"]
        assert at - stamps[-1] < 1_000_000_000
        # The next recorder completes it.
        with process("vigil.record.node", "record2", NAMESPACE, tmp_path / "log2", rig=rig.path):
            assert client.configure("record2")
            recovered = folder / "one.interrupted.mcap"
            wait_for(lambda: recovered.with_suffix(".json").exists() and not part.exists())
            assert (
                client.call(GetState, "record2/get_state", GetState.Request()).current_state.label
                == "inactive"
            )
    reader = EpisodeReader(recovered)
    assert reader.complete
    kept = reader.columns("franka/joint_states", ["header.stamp"])["header.stamp"]
    assert kept.tolist() == stamps.tolist()
    assert reader.episode["termination_reason"] == "interrupted"
    assert reader.episode["topics"][f"/{NAMESPACE}/franka/joint_states"]["written"] == len(kept)


def test_cost(recorder):
    """Two cameras and 200 small messages a second."""
    client, running = recorder
    with World(client.node) as world:
        start(client)

        def used() -> float:
            fields = Path(f"/proc/{running.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        wait_for(lambda: len(world.sent) > 50)
        before, begun = used(), time.monotonic()
        wait_for(lambda: len(world.sent) > 550)
        share = (used() - before) / (time.monotonic() - begun)
        path = end(client).path
    print(f"{share:.1%} of one core")
    assert EpisodeReader(path).episode["dropped"] == 0
    assert share < 0.35
