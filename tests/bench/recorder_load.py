"""What benches of the recorder share: publishers of all that a rig records, and the recorder as `vigil up` starts it.

The messages have the types, sizes and rates of a real run (taken from a recording of franka_sim), the pictures the noise
of a camera. Publishers note the stamp of every message they send, so that a recording can be compared with what was
sent, whatever the recorder says of itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import heapq
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pictures import SHAPE, as_jpeg, moving_scene

sys.path.insert(0, str(Path(__file__).parents[1]))

from vigil.bringup import dds_environment, environment, node_specs
from vigil.errors import VigilError
from vigil.record.cdr import MessageType
from vigil.record.definitions import full_definition
from vigil.record.reader import EpisodeReader
from vigil.record.topics import Source, sources
from vigil.rig import RigConfig, load_rig
from vigil.run.domains import reserve_domain
from vigil.run.session import command, derive_rig

VIEWS, FEW = 30, 8  # different pictures of each camera; of cameras beyond the first four
HZ = {
    "JointState": 100.0, "JointTrajectory": 100.0, "Float64MultiArray": 100.0, "ControlState": 100.0, "SimState": 100.0,
    "TeleopCommand": 20.0, "TaskState": 20.0, "ActionChunk": 5.0, "PolicyEvidence": 5.0, "FailureStatus": 5.0,
    "DiagnosticArray": 8.0,
}  # fmt: skip
BY_CAMERA = ("CameraInfo", "CompressedImage", "Image")
_STAMP, _NUMBER = struct.Struct("<iI"), struct.Struct("<d")
STAMP_AT, NUMBER_AT = 4, 20  # of a header; of the first number in a Float64MultiArray without layout
ANSWER = 2.0  # [s] after which a request is taken for lost, as to a server that was not discovered yet


def kind_of(source: Source) -> str:
    """The message type's short name."""
    return source.type_name.rsplit("/", 1)[-1]


def sent_at(source: Source, data: bytes) -> int:
    """When [ns] a recorded message was published, by what its publisher wrote into it."""
    if source.stamped:
        sec, nanosec = _STAMP.unpack_from(data, STAMP_AT)
        return sec * 1_000_000_000 + nanosec
    return int(_NUMBER.unpack_from(data, NUMBER_AT)[0])


def rig_for(folder: Path, images: str, cameras: int = 2, min_free_mb: int = 500) -> RigConfig:
    """franka_sim with so many cameras, recording into ``folder``."""
    rig = load_rig("franka_sim")
    listed = [camera.model_dump(mode="json", exclude_none=True) for camera in rig.cameras]
    extra = [{**listed[-1], "name": f"more{i}"} for i in range(cameras - len(listed))]
    record = {"directory": str(folder / "episodes"), "images": images, "min_free_mb": min_free_mb}
    return derive_rig(rig, folder, cameras=[*listed, *extra][:cameras], record=record)


@contextmanager
def domain(rig: RigConfig) -> Iterator[None]:
    """A ROS domain of its own and the rig's environment, for this process and those that it starts.

    SIGTERM ends the block in order, too: no process stays behind.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reserved, others = reserve_domain(), dict(os.environ)
    os.environ.update(environment(rig, os.environ), ROS_DOMAIN_ID=str(reserved.number))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(others)
        reserved.release()


# Publishers, in processes of their own -------------------------------------------------------------------------


class Load:
    """Publishes all that ``rig`` records, pictures from one process and the rest from another, inside the block.

    Attributes:
        sources: what is published, by absolute name.
        published: after the block: stamps [ns] of all messages by topic, increasing.
    """

    def __init__(self, rig: RigConfig, folder: Path) -> None:
        self.sources = {_absolute(rig, s.name): s for s in sources(rig) if _rate(rig, s)}
        self.published: dict[str, np.ndarray] = {}
        self._rig, self._folder = rig, folder
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Load:
        for room in ("camera", "sim"):
            env = {**os.environ, **dds_environment(os.environ, local=True, room=room)}
            arguments = [sys.executable, __file__, str(self._rig.path), str(self._file(room)), room]
            self._running[room] = subprocess.Popen(
                arguments, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        for room, process in self._running.items():
            if process.stdout.readline().strip() != "publishing":
                raise VigilError(f"the publishers of {room} did not start")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.stdin.close()
        for room, process in self._running.items():
            process.wait(60)
            with np.load(self._file(room)) as kept:
                self.published.update({name: kept[f"s{i}"] for i, name in enumerate(kept["topics"].tolist())})

    def _file(self, room: str) -> Path:
        return self._folder / f"published_{room}.npz"


def publish(rig: RigConfig, out: Path, room: str) -> None:
    """Until standard input ends: what a process of ``room`` would publish; then the stamps as a file."""
    import rclpy
    from geometry_msgs.msg import TransformStamped

    from vigil.node import EVENTS, LATCHED, SENSOR, interfaces

    rclpy.init()
    node = rclpy.create_node(f"load_{room}", namespace=rig.namespace)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    kept = [
        node.create_publisher(TransformStamped, f"{camera.name}/extrinsics", LATCHED)
        for camera in rig.cameras
        if room == "camera"
    ]
    for publisher in kept:
        publisher.publish(TransformStamped())
    due, topics = [], []
    for source in sources(rig):
        rate = _rate(rig, source)
        if not rate or (kind_of(source) in BY_CAMERA) != (room == "camera"):
            continue
        package, kind, name = source.type_name.split("/")
        message = getattr(interfaces(package, kind, "a bench"), name)
        # Joint states and pictures come as sensors send them; what is reliable must not wait for a slow reader here.
        publisher = node.create_publisher(
            message, source.name, SENSOR if source.delivery == "sensor" else EVENTS
        )
        stamps = array("q")
        heapq.heappush(due, (time.monotonic() + 0.5 + len(topics) * 0.0011, len(topics)))
        views = VIEWS if len(topics) < 8 else FEW
        topics.append((source, publisher, _serialised(source, message, views), 1.0 / rate, stamps))
    print("publishing", flush=True)
    while not ended.is_set():
        at, number = heapq.heappop(due)
        source, publisher, variants, period, stamps = topics[number]
        time.sleep(max(at - time.monotonic(), 0.0))
        head, tail = variants[len(stamps) % len(variants)]
        now = time.time_ns()
        if source.stamped:
            written = _STAMP.pack(*divmod(now, 1_000_000_000))
        else:
            now -= now % 512  # a double tells no more
            written = _NUMBER.pack(now)
        publisher.publish(b"".join((head, written, tail)))
        stamps.append(now)
        heapq.heappush(
            due, (max(at + period, time.monotonic() - period), number)
        )  # what is late is not made up for
    names = [_absolute(rig, source.name) for source, *_ in topics]
    np.savez(out, topics=np.array(names), **{f"s{i}": np.array(t[4]) for i, t in enumerate(topics)})
    rclpy.shutdown()


def _absolute(rig: RigConfig, name: str) -> str:
    return name if name.startswith("/") else f"/{rig.namespace}/{name}"


def _rate(rig: RigConfig, source: Source) -> float:
    if kind_of(source) in BY_CAMERA:
        return rig.camera(source.name.split("/", 1)[0]).rate
    return HZ.get(kind_of(source), 0.0)


def _serialised(source: Source, message: type, views: int) -> list[tuple[bytes, bytes]]:
    """What stands before and after the stamp, of every variant of the message."""
    from rclpy.serialization import serialize_message

    known = MessageType(source.type_name, full_definition(source.type_name))
    at, size = (STAMP_AT, _STAMP.size) if source.stamped else (NUMBER_AT, _NUMBER.size)
    made = []
    for variant in _variants(source, message, views):
        data = serialize_message(variant)
        while not _is_one(known, data):  # it may leave bytes behind a message, which publishing does not
            data = data[:-4]
        made.append((data[:at], data[at + size :]))
    return made


def _is_one(known: MessageType, data: bytes) -> bool:
    try:
        known.decode(data)
    except VigilError:
        if len(data) < NUMBER_AT:
            raise
        return False
    return True


def _variants(source: Source, message: type, views: int) -> Iterator[Any]:
    kind, names = kind_of(source), [f"fr3_joint{i}" for i in range(1, 8)] + ["gripper"]
    seed = zlib.crc32(source.name.encode())
    rng = np.random.default_rng(seed)
    if kind in ("Image", "CompressedImage"):
        for picture in moving_scene(seed, views):
            data = picture.tobytes() if kind == "Image" else as_jpeg(picture)
            made = message(data=array("B", data))
            made.header.frame_id = "wrist_color_optical_frame"
            if kind == "Image":
                made.height, made.width, made.encoding, made.step = *SHAPE, "rgb8", 3 * SHAPE[1]
            else:
                made.format = "rgb8; jpeg compressed bgr8"
            yield made
        return
    for _ in range(8):
        some = rng.normal(size=4096)
        eight, seven = list(some[:8]), list(some[:7])
        if kind == "JointState":
            yield message(name=names, position=eight, velocity=eight, effort=eight)
        elif kind == "JointTrajectory":
            point = sys.modules["trajectory_msgs.msg"].JointTrajectoryPoint
            yield message(joint_names=names[:7], points=[point(positions=seven, velocities=seven)] * 8)
        elif kind == "Float64MultiArray":
            yield message(data=[0.0])
        elif kind == "ControlState":
            yield message(
                authority_name="POLICY",
                names=names,
                commanded=eight,
                measured=eight,
                first_step=eight,
                reason="engaged",
            )
        elif kind == "SimState":
            yield message(qpos=list(some[:22]), qvel=list(some[:20]))
        elif kind == "ActionChunk":
            yield message(bundle="franka_pick_place", names=names, horizon=16, positions=list(some[:128]))
        elif kind == "PolicyEvidence":
            samples, embedding = array("f", some), array("f", some[:128])
            yield message(names=names, k=32, horizon=16, samples=samples, embedding=embedding)
        else:
            yield message()


# The recorder --------------------------------------------------------------------------------------------------


class Recorder:
    """The recorder's node in a process of its own, with the command and environment that `vigil up` gives it.

    Attributes:
        process: what runs.
    """

    def __init__(self, rig: RigConfig, graph: Any, log: Path, name: str = "record") -> None:
        (spec,) = (spec for spec in node_specs(rig) if spec.room == "record")
        spec = dataclasses.replace(spec, name=name)
        env = {**os.environ, **dds_environment(os.environ, local=rig.sim is not None, room=spec.room)}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command(spec), env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._graph, self._namespace, self._name, self._log = graph, f"/{rig.namespace}", name, log

    def __enter__(self) -> Recorder:
        from support.live_node import wait_for

        if not (self._graph.configure(self._name) and self._graph.activate(self._name)):
            raise VigilError(f"the recorder refuses: {self._log.read_text()}")
        wait_for(self._served, what="the recorder's services are known")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait()

    def _served(self) -> bool:
        found = self._graph.node.get_service_names_and_types_by_node(self._name, self._namespace)
        return any(name.endswith("record/start") for name, _ in found)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def cpu_seconds(self) -> float:
        """Processor time that it has taken, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self, name: str) -> Any | None:
        """Begin an episode. None: the recorder died first."""
        from vigil_msgs.srv import StartEpisode

        request = StartEpisode.Request(episode_id=name)
        answer = self._call(StartEpisode, "record/start", request, done=f"episode {name} is open")
        if answer is not None and not answer.success and f"episode {name} is open" not in answer.message:
            raise VigilError(answer.message)
        return answer

    def end(self, outcome: str = "success") -> Any | None:
        """End the episode. None: the recorder died first."""
        from vigil_msgs.srv import EndEpisode

        return self._call(EndEpisode, "record/end", EndEpisode.Request(outcome=outcome))

    def _call(self, service: type, name: str, request: Any, done: str = "") -> Any | None:
        client = self._graph.node.create_client(service, name)
        try:
            while self.alive:
                if not client.wait_for_service(0.5):
                    continue
                future, until = client.call_async(request), time.monotonic() + ANSWER
                while self.alive and not future.done() and (time.monotonic() < until or not done):
                    time.sleep(0.002)
                if future.done():
                    return future.result()
            return None
        finally:
            self._graph.node.destroy_client(client)


def recorded(path: Path, found: dict[str, Source]) -> dict[str, np.ndarray]:
    """Stamps [ns] of what a recording holds, by topic, in file order."""
    stamps: dict[str, list[int]] = {name: [] for name in found}
    for topic, _, _, data in EpisodeReader(path).raw():
        if topic in found:
            stamps[topic].append(sent_at(found[topic], data))
    return {name: np.array(values, np.int64) for name, values in stamps.items()}


def missing(published: np.ndarray, kept: np.ndarray, begin: int, end: int, whole: bool = True) -> np.ndarray:
    """Stamps of messages published in [``begin``, ``end``] (ns) that are not in ``kept``.

    ``whole`` False: from the first one that came on, as of a topic that is subscribed only then.
    """
    if not whole and len(kept):
        begin = max(begin, int(kept[0]))
    wanted = published[(published >= begin) & (published <= end)]
    return wanted[~np.isin(wanted, kept)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Publishers for benches of the recorder; started by them.")
    parser.add_argument("rig", type=load_rig)
    parser.add_argument("out", type=Path)
    parser.add_argument("room", choices=("camera", "sim"))
    arguments = parser.parse_args()
    publish(arguments.rig, arguments.out, arguments.room)


if __name__ == "__main__":
    main()
