"""Episodes: names, outcomes, who was in control, what got lost, and what a killed recorder leaves."""

from __future__ import annotations

import fcntl
import json
import shutil
from time import monotonic as time_now

import pytest

from support.cdr import control_state, encode, header
from vigil.bringup import node_specs
from vigil.errors import VigilError
from vigil.record.definitions import full_definition
from vigil.record.episode import ControlLog, check_outcome, choose_id, free_name
from vigil.record.gaps import GapCounter
from vigil.record.reader import EpisodeReader
from vigil.record.recovery import recover_folder
from vigil.record.session import Asked, RecordingSession
from vigil.record.topics import BURST, advice_on_buffers, qos_yaml, sources
from vigil.record.writer import Topic
from vigil.rig import load_rig, root
from vigil.run.session import derive_rig

STATE = "vigil_msgs/msg/ControlState"
ARM = "/rig/arm/state"
MARK, MARKS = "vigil_msgs/msg/EpisodeMark", "/rig/record/marks"
SECOND = 1_000_000_000


def state(stamp: int, authority: str, transition: int) -> bytes:
    return control_state(
        stamp, authority, reason=f"because {transition}", transition=transition, event="event"
    )


@pytest.fixture
def rig(tmp_path):
    return derive_rig(
        load_rig("franka_sim"),
        tmp_path / "rig",
        record={"directory": str(tmp_path / "out"), "min_free_mb": 1},
    )


def session(rig, name: str = "one", **options) -> RecordingSession:
    return RecordingSession(
        rig,
        [Topic(ARM, STATE, full_definition(STATE)), Topic(MARKS, MARK, full_definition(MARK))],
        Asked(name, "", "somebody"),
        clock="system",
        now=100 * SECOND,
        control_topic=ARM,
        mark_topic=MARKS,
        streams={ARM: "arm state"},
        **options,
    )


def fill(recording: RecordingSession) -> None:
    for i in range(300):
        stamp = 100 * SECOND + i * 10_000_000
        authority, transition = ("HOLD", 1) if i < 100 else ("POLICY", 2) if i < 250 else ("HOLD", 3)
        recording.put(ARM, state(stamp, authority, transition), stamp, stamp)


def test_a_recording_says_which_joint_is_which_column(rig):
    recording = session(rig)
    told = recording.record.joints
    assert tuple(column for facts in told for column in facts.columns) == rig.columns
    assert [facts.topic for facts in told] == ["franka/joint_states"]
    path = recording.interrupt(101 * SECOND, {})
    read = EpisodeReader(path).episode["joints"]
    assert read[0]["joints"][-1] == "gripper"
    assert read[0]["scale"] == [[1.0, 0.0]] * len(rig.columns)


def mark(recording: RecordingSession, stamp: int, label: str) -> None:
    recording.put(MARKS, encode(MARK, header=header(stamp), label=label), stamp, stamp)


def test_marked_moments_are_kept_with_the_episode_even_if_its_recorder_is_killed(rig, tmp_path):
    recording = session(rig)
    mark(recording, 100 * SECOND + SECOND // 2, "")
    mark(recording, 102 * SECOND, "second cube added")
    expected = [
        {"label": "perturbation", "at_s": 0.5},
        {"label": "second cube added", "at_s": 2.0},
    ]
    path = recording.end("success", "", 103 * SECOND, {})
    assert EpisodeReader(path).episode["marks"] == expected

    killed = session(rig, "two")
    mark(killed, 101 * SECOND, "perturbation")
    left, until = tmp_path / "out" / "three.mcap.part", time_now() + 10.0
    while True:  # what a killed recorder leaves is what has reached the disk
        shutil.copy(killed.path, left)
        if EpisodeReader(left).has("record/marks"):
            break
        assert time_now() < until, "flushed at least once a second"
    killed.interrupt(101 * SECOND, {})
    (recovered,) = recover_folder(tmp_path / "out", lambda text: None)
    assert EpisodeReader(recovered).episode["marks"] == [{"label": "perturbation", "at_s": 1.0}]


def test_an_episode_tells_who_was_in_control_and_what_got_lost(rig, tmp_path):
    recording = session(rig)
    fill(recording)
    path = recording.end("success", "task_success", 103 * SECOND, {ARM: 2})
    facts = EpisodeReader(path).episode
    assert facts == json.loads((tmp_path / "out" / "one.json").read_text())
    assert (facts["outcome"], facts["termination_reason"]) == ("success", "task_success")
    assert (facts["task"], facts["operator_id"], facts["duration_s"]) == (rig.task, "somebody", 3.0)
    told = {"type": STATE, "stream": "arm state", "written": 300, "dropped": 2, "gaps": []}
    assert facts["topics"][ARM] == told
    assert (facts["written"], facts["dropped"]) == (300, 2)
    spans = [(s["authority"], s["start_s"], s["end_s"]) for s in facts["control"]]
    assert spans == [("HOLD", 0.0, 1.0), ("POLICY", 1.0, 2.5), ("HOLD", 2.5, 2.99)]


def test_a_discarded_episode_is_no_recording_any_more(rig, tmp_path):
    for expected in ("one.mcap.discarded", "one.mcap.discarded1"):
        path = session(rig).end("discarded", "operator_stop", 101 * SECOND, {})
        assert path.name == expected
    assert not list((tmp_path / "out").glob("*.mcap"))
    assert json.loads((tmp_path / "out" / "one.discarded.json").read_text())["outcome"] == "discarded"


def test_a_full_disk_is_noted_in_the_episode(rig):
    free = [10_000_000]
    recording = session(rig, free=lambda _: free[0])
    free[0] = 0
    while not recording.stopped:
        pass
    path = recording.end("success", "", 101 * SECOND, {})
    assert "disk nearly full" in EpisodeReader(path).episode["recording_stopped"]


@pytest.fixture
def killed(rig, tmp_path):
    """What a recorder leaves that is killed after three seconds, without its last bytes."""
    recording = session(rig)
    fill(recording)
    recording.end("success", "", 103 * SECOND, {})
    whole = (tmp_path / "out" / "one.mcap").read_bytes()
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    part = tmp_path / "out" / "one.mcap.part"
    part.write_bytes(whole[: len(whole) // 2])
    return part


def test_an_unfinished_recording_is_completed(killed):
    told: list[str] = []
    before = [data for *_, data in EpisodeReader(killed).raw()]
    (finished,) = recover_folder(killed.parent, told.append)
    assert finished.name == "one.interrupted.mcap"
    assert not killed.exists()
    reader = EpisodeReader(finished)
    assert reader.complete
    assert [data for *_, data in reader.raw()] == before
    facts = reader.episode
    assert (facts["outcome"], facts["termination_reason"]) == ("", "interrupted")
    assert facts["topics"][ARM]["written"] == len(before)
    assert facts["control"][0] == {
        "authority": "HOLD", "event": "event", "reason": "because 1", "start_s": 0.0, "end_s": 1.0
    }  # fmt: skip
    assert facts["topics"][ARM]["stream"] == "arm state"
    assert "completed as one.interrupted.mcap" in told[0]
    assert json.loads(finished.with_suffix(".json").read_text()) == facts


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (lambda r: r.end("success", "done", 103 * SECOND, {}), "one.mcap"),
        (lambda r: r.end("discarded", "", 103 * SECOND, {}), "one.mcap.discarded"),
        (lambda r: r.interrupt(103 * SECOND, {}), "one.interrupted.mcap"),
    ],
)
def test_a_recorder_killed_after_its_last_byte_leaves_what_it_meant_to(rig, tmp_path, end, name):
    recording = session(rig)
    fill(recording)
    path = end(recording)
    facts, whole = EpisodeReader(path).episode, path.read_bytes()
    for file in path.parent.iterdir():
        file.unlink()
    path.with_name("one.mcap.part").write_bytes(whole)
    (finished,) = recover_folder(path.parent, lambda text: None)
    assert finished.name == name
    assert finished.read_bytes() == whole
    assert not path.with_name("one.mcap.part").exists()
    assert json.loads((path.parent / (name.replace(".mcap", "", 1) + ".json")).read_text()) == facts


def test_facts_that_a_kill_left_without_their_file_get_it(rig, tmp_path):
    recording = session(rig)
    fill(recording)
    path = recording.end("success", "done", 103 * SECOND, {})
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").unlink()
    path.with_name("other.mcap").write_bytes(b"no recording")
    assert recover_folder(path.parent, lambda text: None) == []
    assert json.loads(path.with_suffix(".json").read_text()) == facts
    assert not path.with_name("other.json").exists()


def test_a_recording_that_is_being_written_is_left_alone(killed):
    with killed.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert recover_folder(killed.parent, print) == []
    assert killed.exists()


def test_an_interrupted_recovery_starts_anew(killed):
    leftover = killed.with_name("one.interrupted.mcap.part")
    leftover.write_bytes(b"half")
    assert [path.name for path in recover_folder(killed.parent, print)] == ["one.interrupted.mcap"]
    assert not leftover.exists()


def test_rubbish_is_told_and_left(tmp_path):
    (tmp_path / "one.mcap.part").write_bytes(b"no recording")
    told: list[str] = []
    assert recover_folder(tmp_path, told.append) == []
    assert "could not be completed" in told[0]
    assert (tmp_path / "one.mcap.part").exists()


def test_names_and_outcomes():
    assert choose_id("demo_000001", 0.0) == "demo_000001"
    assert len(choose_id("", 1e9)) == len("20010909-014640-000")
    for bad in ("../up", "a b", ".hidden", "a" * 101, "dot.ted"):
        with pytest.raises(VigilError, match="makes no file name"):
            choose_id(bad, 0.0)
    check_outcome("intervened_success")
    with pytest.raises(VigilError, match="choose one of"):
        check_outcome("")


def test_marked_names_never_collide(tmp_path):
    path = tmp_path / "one.mcap"
    assert free_name(path, "interrupted").name == "one.interrupted.mcap"
    free_name(path, "interrupted").touch()
    assert free_name(path, "interrupted").name == "one.interrupted1.mcap"


def test_spans_have_no_gaps():
    log = ControlLog(0)
    for stamp, name, transition in ((0, "HOLD", 1), (5, "POLICY", 2), (7, "POLICY", 2), (9, "HOLD", 3)):
        log.note(stamp * SECOND, name, "e", "r", transition)
    assert [(s.start_s, s.end_s) for s in log.spans] == [(0, 5), (5, 9), (9, 9)]


def test_gaps_in_sequence_numbers_are_losses():
    gaps = GapCounter()
    for number in (5, 6, 9, 10):
        gaps.note("t", number)
    gaps.note("t", None)
    assert gaps.lost == {"t": 2}
    gaps.note("t", 1)  # another publisher
    gaps.note("t", 2)
    gaps.forget("t")
    gaps.note("t", 50)
    assert gaps.lost == {"t": 2}
    gaps.restart()
    assert gaps.lost.total() == 0


def test_the_rig_says_what_is_recorded(rig):
    names = {source.name for source in sources(rig)}
    assert {
        "franka/joint_states",
        "franka/fr3_arm_controller/joint_trajectory",
        "sim/state",
        "arm/state",
    } <= names
    assert "wrist/color/image_raw/compressed" in names
    assert all(full_definition(source.type_name) for source in sources(rig))
    bare = rig.model_copy(update={"record": rig.record.model_copy(update={"images": "none"})})
    assert not any(source.image for source in sources(bare))
    raw = rig.model_copy(update={"record": rig.record.model_copy(update={"images": "raw"})})
    assert "scene/color/image_raw" in {source.name for source in sources(raw)}
    wrist, scene = rig.cameras
    deep = rig.model_copy(update={"cameras": (wrist.model_copy(update={"depth": True}), scene)})
    added = {source.name for source in sources(deep)} - names
    assert added == {"wrist/aligned_depth_to_color/image_raw"}
    assert {s.name: s.parameters.get("depth") for s in node_specs(deep) if s.room == "camera"} == {
        "camera_wrist": True,
        "camera_scene": False,
    }
    assert "reliability: best_effort" in qos_yaml(sources(rig)[0])


def test_a_kernel_with_small_sockets_is_told_before_raw_pictures_are_lost(tmp_path):
    limit = tmp_path / "rmem_max"
    limit.write_text("212992\n")
    assert "sudo sysctl -w net.core.rmem_max=4194304" in advice_on_buffers(limit)
    limit.write_text("4194304\n")
    assert advice_on_buffers(limit) == ""
    assert advice_on_buffers(tmp_path / "none") == ""
    for profile in (root() / "launch" / "dds").glob("*.xml"):
        assert f"<receiveBufferSize>{BURST}</receiveBufferSize>" in profile.read_text()
