"""Small recordings made without ROS, with whatever went wrong on the way, for tests of what reads them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

import cv2
import numpy as np

from support.cdr import control_state, encode, header
from vigil.record.definitions import full_definition
from vigil.record.episode import ControlSpan, EpisodeRecord, JointFacts, Mark, TopicFacts
from vigil.record.writer import EpisodeWriter, Topic

COLUMNS = ("fr3_joint1", "fr3_joint2", "gripper")
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND  # ns, of the first sample
HEIGHT, WIDTH = 48, 64
BITS = 12  # of the number that a picture shows
TYPES = {
    "franka/joint_states": "sensor_msgs/msg/JointState",
    "arm/state": "vigil_msgs/msg/ControlState",
    "monitor/status": "vigil_msgs/msg/FailureStatus",
    "sim/task": "vigil_msgs/msg/TaskState",
}

# From a stream's true times [ns since START] to the stamps it writes; the same length, or -1 for a sample that is lost.
Fault = Callable[[np.ndarray], np.ndarray]


@dataclass
class Script:
    """What happens in a recording. Times in s since its start, rates in Hz."""

    seconds: float = 3.0
    cameras: Mapping[str, float] = field(default_factory=lambda: {"scene": 30.0, "wrist": 30.0})
    phase: Mapping[str, float] = field(default_factory=dict)  # of a camera [s]
    authority: tuple[tuple[float, str], ...] = ((0.2, "HOLD"), (1e9, "POLICY"))  # until when, and who
    alarm_at: float | None = None
    faults: Mapping[str, Fault] = field(default_factory=dict)  # by camera, or joints, arm, monitor
    outcome: str = "success"
    reason: str = "task_success"
    operator: str = "anna"
    perturbation: str = "none"
    marks: tuple[tuple[float, str], ...] = ()
    task: str = "put the cube on the tray"
    scores: tuple[str, ...] = ("rnd", "ace")
    shape: tuple[int, int] = (HEIGHT, WIDTH)
    columns: tuple[str, ...] = COLUMNS
    joints: tuple[JointFacts, ...] = ()  # what the recorder says of joint states
    joint_names: tuple[str, ...] = ()  # in joint states; the columns' own by default


def silent(start: float, end: float) -> Fault:
    """Nothing between two times."""
    return lambda t: np.where((t >= start * SECOND) & (t < end * SECOND), -1, t)


def set_back(at: float, by: float) -> Fault:
    """The clock is set back by so much at a time."""
    return lambda t: np.where(t >= at * SECOND, t - round(by * SECOND), t)


def number_picture(number: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A picture that shows a number, in blocks that survive compression: uint8 [height, width, 3]."""
    bits = np.array([(number >> i) & 1 for i in range(BITS)], np.uint8).reshape(3, 4)
    blocks = np.kron(bits, np.ones((shape[0] // 3, shape[1] // 4), np.uint8))
    return np.repeat(blocks[..., None], 3, axis=2) * 200 + 20


def number_shown(rgb: np.ndarray) -> int:
    """The number that a picture of `number_picture` shows, of whatever size."""
    height, width = rgb.shape[0] // 3, rgb.shape[1] // 4
    return sum(
        int(rgb[r * height + height // 2, c * width + width // 2].mean() > 120) << (4 * r + c)
        for r in range(3)
        for c in range(4)
    )


def joint_values(seconds: np.ndarray | float, columns: int = len(COLUMNS)) -> np.ndarray:
    """True joint positions at some time; [..., columns]."""
    return np.stack([np.sin(np.asarray(seconds) * (i + 1)) for i in range(columns)], -1)


def record(
    path: Path, script: Script | None = None, jpegs: Callable[[str, int], bytes] | None = None
) -> Path:
    """Write the recording that ``script`` describes to ``path``.

    Args:
        jpegs: the picture of a camera by its number; by default one that shows its number.
    """
    script = script or Script()
    topics = [Topic(f"/rig/{name}", kind, full_definition(kind)) for name, kind in TYPES.items()]
    kind = "sensor_msgs/msg/CompressedImage"
    for camera in script.cameras:
        topics.append(Topic(_image(camera), kind, full_definition(kind)))
    facts = EpisodeRecord(
        episode_id=path.stem,
        rig="rig",
        task=script.task,
        operator_id=script.operator,
        outcome=script.outcome,
        termination_reason=script.reason,
        clock="system",
        started="2026-01-01T00:00:00+0000",
        start_ns=START,
        duration_s=script.seconds,
        topics={topic.name: TopicFacts(type=topic.type_name) for topic in topics},
        joints=script.joints,
        marks=[Mark(label=label, at_s=at) for at, label in script.marks],
        control=[
            ControlSpan(authority="POLICY", event="engage", reason="", start_s=0.2, end_s=script.seconds)
        ],
    )
    writer = EpisodeWriter(path, topics, header=facts.metadata(), flush_period=60.0)
    sources = [_joints(script), _arm(script), _monitor(script), _task(script)]
    sources += [_camera(script, camera, jpegs) for camera in script.cameras]
    for at, topic, data in heapq.merge(*sources, key=lambda m: m[0]):
        while not writer.put(topic, data, START + at, START + at):
            sleep(0.02)  # its queue is full
    return writer.finish(lambda counts: facts.metadata())


def _image(camera: str) -> str:
    return f"/rig/{camera}/color/image_raw/compressed"


def _times(script: Script, rate: float, phase: float, name: str) -> list[tuple[int, int]]:
    """(true time, stamp) of every sample that is not lost; ns since START."""
    count = int((script.seconds - phase) * rate + 1e-9) + 1
    true = np.round((phase + np.arange(count) / rate) * SECOND).astype(np.int64)
    stamps = script.faults[name](true) if name in script.faults else true
    return [(int(t), int(s)) for t, s in zip(true, stamps, strict=True) if s >= 0]


def _joints(script: Script) -> Iterator[tuple[int, str, bytes]]:
    kind = TYPES["franka/joint_states"]
    # Not in the order of the arm's columns, and one joint more: columns go by name.
    names = ["extra", *reversed(script.joint_names or script.columns)]
    for at, stamp in _times(script, 100.0, 0.0, "joints"):
        position = np.array([9.0, *joint_values(at / SECOND, len(script.columns))[::-1]])
        data = encode(
            kind,
            header=header(START + stamp),
            name=names,
            position=position,
            velocity=position,
            effort=position,
        )
        yield at, "/rig/franka/joint_states", data


def authority_at(script: Script, seconds: float) -> str:
    """Who has control at a time."""
    return next(name for until, name in script.authority if seconds < until)


def _arm(script: Script) -> Iterator[tuple[int, str, bytes]]:
    zero = np.zeros(len(script.columns))
    for at, stamp in _times(script, 100.0, 0.0, "arm"):
        data = control_state(
            START + stamp,
            authority_at(script, at / SECOND),
            first_step=zero,
            names=list(script.columns),
            commanded=joint_values(at / SECOND, len(script.columns)) + 10.0,
            measured=zero,
            ready=True,
        )
        yield at, "/rig/arm/state", data


def _monitor(script: Script) -> Iterator[tuple[int, str, bytes]]:
    kind = TYPES["monitor/status"]
    for tick, (at, stamp) in enumerate(_times(script, 5.0, 0.4, "monitor")):
        alarm = script.alarm_at is not None and at >= script.alarm_at * SECOND
        data = encode(
            kind,
            header=header(START + stamp),
            tick=tick,
            verdict=3 if alarm else 0,
            verdict_name="ALARM" if alarm else "NOMINAL",
            alarm=alarm,
            reason="",
            score_names=list(script.scores),
            score_kinds=np.zeros(len(script.scores), np.uint8),
            scores=np.arange(len(script.scores)) + tick / 100.0,
            windowed=np.arange(len(script.scores)) + tick / 10.0,
            thresholds=np.arange(len(script.scores)) + 5.0,
            computation_time=0.001,
        )
        yield at + 30_000_000, "/rig/monitor/status", data  # known a little after what it is about


def _task(script: Script) -> Iterator[tuple[int, str, bytes]]:
    kind = TYPES["sim/task"]
    data = encode(
        kind, header=header(START), scene=1, task=script.task, phase="approach", contact=False, grasped=False,
        success=False, failure=False, failure_reason="", elapsed=0.0, perturbation=script.perturbation,
        perturbation_active=False,
    )  # fmt: skip
    yield 0, "/rig/sim/task", data


def _camera(
    script: Script, camera: str, jpegs: Callable[[str, int], bytes] | None
) -> Iterator[tuple[int, str, bytes]]:
    """Pictures by their number, in which lost ones count."""
    rate = script.cameras[camera]
    phase = script.phase.get(camera, 0.0)
    for at, stamp in _times(script, rate, phase, camera):
        number = round((at / SECOND - phase) * rate)
        jpeg = jpegs(camera, number) if jpegs else _numbered(number, script.shape)
        data = encode(
            "sensor_msgs/msg/CompressedImage",
            header=header(START + stamp),
            format="rgb8; jpeg compressed bgr8",
            data=np.frombuffer(jpeg, np.uint8),
        )
        yield at, _image(camera), data


def _numbered(number: int, shape: tuple[int, int]) -> bytes:
    rgb = number_picture(number, shape)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1].tobytes()
