"""Holes in a recording are in the episode's own facts, in the words that an export uses."""

from __future__ import annotations

import numpy as np
import pytest

from support.cdr import control_state
from support.recordings import SECOND, set_back, silent
from vigil.record.continuity import Continuity
from vigil.record.definitions import full_definition
from vigil.record.reader import EpisodeReader
from vigil.record.session import Asked, RecordingSession
from vigil.record.writer import Topic
from vigil.rig import load_rig
from vigil.run.session import derive_rig

START = 1_000 * SECOND
STATE, ARM = "vigil_msgs/msg/ControlState", "/rig/arm/state"
CAMERA, JOINTS = "/rig/wrist/color/image_raw/compressed", "/rig/franka/joint_states"
STREAMS = {CAMERA: "camera wrist", JOINTS: "joint states", ARM: "arm state", "/rig/policy/chunk": ""}


def times(rate: float, seconds: float = 8.0) -> np.ndarray:
    return np.round(np.arange(0.0, seconds, 1.0 / rate) * SECOND).astype(np.int64)


def heard(**faults) -> Continuity:
    """Eight seconds of a camera, joint states and the arm's state, each with what went wrong with it."""
    continuity = Continuity(STREAMS)
    for topic, name, rate in ((CAMERA, "camera", 30.0), (JOINTS, "joints", 100.0), (ARM, "arm", 100.0)):
        stamps = faults.get(name, lambda t: t)(times(rate))
        for stamp in stamps[stamps >= 0].tolist():
            continuity.note(topic, START + stamp)
    continuity.note("/rig/policy/chunk", START)
    return continuity


def test_steady_streams_have_no_label():
    jitter = np.random.default_rng(0)
    continuity = heard(camera=lambda t: t + jitter.integers(0, 8_000_000, len(t)))
    assert continuity.labels(START) == []
    assert continuity.gaps(START) == {CAMERA: [], JOINTS: [], ARM: []}


@pytest.mark.parametrize(
    ("fault", "label"),
    [
        ({"camera": silent(2.0, 5.0)}, "camera wrist: silent for 3.0"),
        ({"joints": silent(2.0, 2.3)}, "joint states: silent for 0.3"),
        ({"camera": silent(6.0, 99.0)}, "camera wrist: nothing in the last 2.0"),
        ({"camera": silent(-1.0, 1.5)}, "camera wrist: nothing in the first 1.5"),
        ({"camera": silent(-1.0, 99.0)}, "camera wrist: nothing came"),
    ],
)
def test_a_hole_is_told_in_words(fault, label):
    (told,) = heard(**fault).labels(START)
    assert told.startswith(label)


def test_a_clock_that_is_set_back_is_told_of_every_stream():
    back = set_back(4.0, 0.5)
    labels = heard(camera=back, joints=back, arm=back).labels(START)
    assert [label.split(": ")[0] for label in labels] == ["camera wrist", "joint states", "arm state"]
    assert "clock set back by 0.490 s" in labels[1]


def test_a_stream_that_is_silent_now_is_told_while_it_is():
    continuity = heard(camera=silent(6.0, 99.0))
    assert continuity.labels(START, START + 6 * SECOND) == []
    assert continuity.labels(START, START + 8 * SECOND)[0].startswith("camera wrist: nothing in the last 2.0")


def test_the_facts_have_it(tmp_path):
    rig = derive_rig(
        load_rig("franka_sim"), tmp_path / "rig", record={"directory": str(tmp_path), "min_free_mb": 1}
    )
    recording = RecordingSession(
        rig,
        [Topic(ARM, STATE, full_definition(STATE))],
        Asked("one", "", ""),
        clock="system",
        now=START,
        control_topic=ARM,
        mark_topic="",
        streams={ARM: "arm state"},
    )
    for at in [*range(0, 2 * SECOND, 10_000_000), *range(3 * SECOND, 4 * SECOND, 10_000_000)]:
        recording.put(ARM, control_state(START + at, "HOLD"), START + at, START + at)
    assert recording.labels(START + 4 * SECOND) == ["arm state: silent for 1.010 s"]
    facts = EpisodeReader(recording.end("success", "", START + 4 * SECOND, {})).episode
    assert facts["labels"] == ["arm state: silent for 1.010 s"]
    (gap,) = facts["topics"][ARM]["gaps"]
    assert (gap["kind"], gap["from_s"], gap["to_s"]) == ("silent", 1.99, 3.0)
