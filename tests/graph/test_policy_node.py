"""The policy node over real DDS, with a tiny bundle that the real runtime runs."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from array import array
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from vigil_msgs.msg import ActionChunk, ControlState, PolicyEvidence
from vigil_msgs.srv import LoadPolicy, SwitchTask
from visualization_msgs.msg import ImageMarker

from support.live_node import graph, process, wait_for
from support.tiny_bundle import COLUMNS, HORIZON, NOISE_GAIN, START_FILE, write_tiny_bundle
from vigil.node import COMMAND, EVENTS, EVIDENCE, LATCHED, SENSOR, nanoseconds, to_stamp
from vigil.policy.bundle import file_hash, load_bundle
from vigil.policy.spec import LOOP_FILE, SPEC_FILE
from vigil.rig import load_rig, root

NAMESPACE = "policy_test"
SAMPLES = 4


class World:
    """Publishes what cameras and hardware would: 30 Hz frames, 100 Hz joint states."""

    def __init__(self, node) -> None:
        self.images = {
            c: node.create_publisher(Image, f"{c}/color/image_raw", SENSOR) for c in ("wrist", "scene")
        }
        self.joints = node.create_publisher(JointState, "franka/joint_states", SENSOR)
        self.names = list(reversed(COLUMNS))
        self.positions = [0.01 * i for i in range(8)]
        self.size = {"wrist": (640, 480), "scene": (640, 480)}
        self.grey = 102
        self.encoding = "rgb8"
        self.stamps: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def image(self, camera: str, stamp: int) -> Image:
        width, height = self.size[camera]
        message = Image(encoding=self.encoding, width=width, height=height, step=3 * width)
        if self.encoding == "32FC3":
            message.step = 12 * width
            message.data = array("B", np.full((height, width, 3), np.nan, np.float32).tobytes())
            message.header.stamp = to_stamp(stamp)
            return message
        message.data = array("B", np.full((height, width, 3), self.grey, np.uint8).tobytes())
        message.header.stamp = to_stamp(stamp)
        return message

    def joint_state(self, stamp: int) -> JointState:
        message = JointState(name=self.names, position=self.positions)
        message.header.stamp = to_stamp(stamp)
        return message

    def publish(self, stamp: int, frames: bool) -> None:
        self.joints.publish(self.joint_state(stamp))
        if frames:
            for camera, publisher in self.images.items():
                publisher.publish(self.image(camera, stamp))
            self.stamps.add(stamp)

    def _run(self) -> None:
        count, began = 0, time.monotonic()
        while not self._stop.wait(max(0.0, began + 0.01 * count - time.monotonic())):
            self.publish(time.time_ns(), frames=count % 3 == 0)
            count += 1

    def __enter__(self) -> World:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def rig_file(folder, bundle, **policy):
    data = load_rig("franka_sim").model_dump(mode="json", exclude_none=True)
    data["policy"] = {
        **data["policy"],
        "bundle": str(bundle),
        "samples": SAMPLES,
        "candidates": 2,
        "period": 0.2,
        **policy,
    }
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "models" / "tiny")


@contextmanager
def active(tmp_path, bundle, surroundings=None, **policy):
    """A configured and active policy node: (graph, chunks, evidence)."""
    log, rig = tmp_path / "policy.log", rig_file(tmp_path, bundle, **policy)
    with (
        graph(NAMESPACE) as test,
        process("vigil.policy.node", "policy", NAMESPACE, log, surroundings, rig=rig),
    ):
        assert test.configure("policy"), log.read_text()
        chunks = test.collect(ActionChunk, "policy/chunk", COMMAND)
        evidence = test.collect(PolicyEvidence, "policy/evidence", EVIDENCE)
        assert test.activate("policy"), log.read_text()
        yield test, chunks, evidence


@pytest.fixture
def live(tmp_path, bundle):
    with active(tmp_path, bundle) as running:
        yield running


def diagnostics(test, received, component, contains=""):
    """Waits for a status of ``component`` whose message contains a text."""

    def found():
        for message in list(received):
            for status in message.status:
                if status.name == f"policy: {component}" and contains in status.message:
                    return status
        return None

    return wait_for(found, what=f"diagnostics of {component} with {contains!r}")


def test_synchronised_inputs_make_chunks_at_the_policys_rate(live, bundle):
    test, chunks, evidence = live
    told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)
    with World(test.node) as world:
        wait_for(lambda: len(chunks) >= 8 and len(evidence) >= 8)
        values = {v.key: v.value for v in diagnostics(test, told, "inference").values}
        ages = {v.key: v.value for v in diagnostics(test, told, "observation").values}
    spec = load_bundle(bundle)
    assert (
        values["provider"] == "CPUExecutionProvider"
        and "TensorrtExecutionProvider" in values["providers_not_used"]
    )
    assert {"wrist_age_median_ms", "scene_age_p99_ms"} <= set(ages)
    by_tick = {e.tick: e for e in evidence}
    for chunk in chunks[1:8]:
        proof = by_tick[chunk.tick]
        assert list(chunk.names) == list(COLUMNS) and chunk.horizon == HORIZON and chunk.bundle == "tiny"
        positions = np.array(chunk.positions).reshape(HORIZON, 8)
        assert positions == pytest.approx(np.tile(world.positions[::-1], (HORIZON, 1)), abs=0.06), (
            "matched by name"
        )
        samples = np.array(proof.samples, np.float32).reshape(proof.k, proof.horizon, 8)
        assert proof.k == SAMPLES and np.array_equal(samples[proof.chosen], positions.astype(np.float32))
        assert (
            proof.embedding[:2] == array("f", [0.4, 0.4]) and len(proof.embedding) == spec.spec.embedding_dim
        )
        assert proof.bundle_hash == spec.content_hash and (proof.sampler, proof.sampler_steps) == ("ddim", 10)
        assert proof.header.stamp == chunk.header.stamp
        newest = nanoseconds(chunk.header.stamp)
        assert min(abs(newest - s) for s in world.stamps) <= 10_000_000
        assert 0 < chunk.inference_time < 0.2
    stamps = np.array([nanoseconds(c.header.stamp) for c in chunks]) / 1e9
    assert np.diff([c.tick for c in chunks]).tolist() == [1] * (len(chunks) - 1)
    assert np.median(np.diff(stamps)) == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("fault", "component", "reason"),
    [
        ({"positions": [float("nan")] + [0.0] * 7}, "observation", "not finite"),
        ({"names": [f"panda_joint{i}" for i in range(8)]}, "observation", "are missing: got names"),
        ({"size": {"wrist": (320, 240), "scene": (640, 480)}}, "observation", "camera wrist: a frame of"),
        ({"encoding": "32FC3"}, "observation", "only rgb8 is read"),  # a tensor of nan
    ],
)
def test_bad_inputs_make_no_chunk_and_are_named(live, fault, component, reason):
    test, chunks, _ = live
    told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)
    world = World(test.node)
    good = {key: getattr(world, key) for key in fault}
    for key, value in fault.items():
        setattr(world, key, value)
    with world:
        status = diagnostics(test, told, component, reason)
        assert status.level != b"\x00" and not chunks
        for key, value in good.items():
            setattr(world, key, value)
        wait_for(lambda: chunks, what="chunks once the input is good again")


def test_what_was_observed_before_the_policy_got_control_makes_no_chunk(live):
    test, chunks, _ = live
    states = test.node.create_publisher(ControlState, "arm/state", LATCHED)
    with World(test.node):
        wait_for(lambda: chunks)
        message = ControlState(authority=ControlState.POLICY, transition=1)
        granted = time.time_ns() + 500_000_000
        message.transition_stamp = to_stamp(granted)
        states.publish(message)
        wait_for(lambda: nanoseconds(chunks[-1].header.stamp) >= granted)
    early = [c for c in chunks if nanoseconds(c.header.stamp) < granted]
    assert nanoseconds(early[-1].header.stamp) < granted - 250_000_000, "chunks stop when control is granted"


def test_bundles_are_swapped_only_while_the_arm_holds(live, bundle, tmp_path):
    test, chunks, evidence = live
    states = test.node.create_publisher(ControlState, "arm/state", LATCHED)
    other = write_tiny_bundle(tmp_path / "models" / "other", name="other", gain=0.02)
    broken = write_tiny_bundle(tmp_path / "models" / "broken", name="broken")
    (broken / LOOP_FILE).write_bytes(b"x")
    elsewhere = write_tiny_bundle(tmp_path / "models" / "elsewhere", cameras=("front", "wrist"))
    foreign = write_tiny_bundle(
        tmp_path / "models" / "foreign", names=tuple(f"panda_joint{i}" for i in range(8))
    )
    unknown = write_tiny_bundle(tmp_path / "models" / "unknown")
    model = onnx.load(unknown / LOOP_FILE)
    model.graph.node[2].op_type = "Frobnicate"
    onnx.save(model, unknown / LOOP_FILE)
    spec = yaml.safe_load((unknown / SPEC_FILE).read_text())
    spec["hashes"][LOOP_FILE] = file_hash(unknown / LOOP_FILE)
    (unknown / SPEC_FILE).write_text(yaml.safe_dump(spec))

    def load(path):
        return test.call(LoadPolicy, "policy/load", LoadPolicy.Request(path=str(path)))

    with World(test.node):
        wait_for(lambda: chunks)
        for path, reason in (
            (broken, "corrupted"),
            (elsewhere, "front"),
            (foreign, "panda_joint0"),
            (unknown, "Frobnicate"),
            (tmp_path / "none", "does not exist"),
        ):
            response = load(path)
            assert not response.success and reason in response.message
        count = len(chunks)
        wait_for(lambda: len(chunks) > count, what="the old policy goes on")
        assert chunks[-1].bundle == "tiny"

        states.publish(ControlState(authority=ControlState.POLICY, transition=1))
        wait_for(lambda: "arm/hold first" in load(other).message)
        states.publish(ControlState(authority=ControlState.HOLD, transition=2))
        wait_for(lambda: load(other).success)
        wait_for(
            lambda: (
                chunks[-1].bundle == "other" and evidence[-1].bundle_hash == load_bundle(other).content_hash
            )
        )


def test_a_bundle_refuses_tasks_that_it_does_not_know(live):
    test, _, _ = live
    switch = lambda task: test.call(SwitchTask, "policy/switch_task", SwitchTask.Request(task=task))  # noqa: E731
    assert switch("put the cube on the tray").success
    refused = switch("fold the towel")
    assert not refused.success and "fold the towel" in refused.message and "policy.tasks" in refused.message


def test_in_lock_step_every_set_is_a_tick_at_once(tmp_path, bundle):
    log = tmp_path / "policy.log"
    rig = rig_file(tmp_path, bundle)
    with (
        graph(NAMESPACE) as test,
        process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig, use_sim_time=True),
    ):
        assert test.configure("policy"), log.read_text()
        chunks = test.collect(ActionChunk, "policy/chunk", COMMAND)
        assert test.activate("policy")
        world = World(test.node)
        wait_for(
            lambda: (
                world.joints.get_subscription_count()
                and all(p.get_subscription_count() for p in world.images.values())
            )
        )
        for tick in range(1, 21):
            stamp = tick * 200_000_000
            world.publish(stamp, frames=True)
            world.publish(
                stamp, frames=True
            )  # physics repeats an instant when something was lost: no second tick
            wait_for(lambda tick=tick: len(chunks) == tick, what=f"chunk of tick {tick}")
            assert nanoseconds(chunks[-1].header.stamp) == stamp
            world.publish(stamp + 10_000_000, frames=False)
        assert len(chunks) == 20


def test_a_policy_that_puts_out_nan_publishes_nothing(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "nan", offset=float("nan"))
    log = tmp_path / "policy.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig_file(tmp_path, bundle)),
    ):
        assert test.configure("policy"), log.read_text()
        chunks = test.collect(ActionChunk, "policy/chunk", COMMAND)
        told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)
        assert test.activate("policy")
        with World(test.node):
            diagnostics(test, told, "inference", "not finite")
        assert not chunks


def test_a_corrupted_bundle_refuses_to_configure_with_one_clear_error(tmp_path, bundle):
    path = bundle / LOOP_FILE
    path.write_bytes(path.read_bytes()[:-10])
    log = tmp_path / "policy.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig_file(tmp_path, bundle)),
    ):
        assert not test.configure("policy")
    text = log.read_text()
    assert text.count("is corrupted or was replaced") == 1 and "Traceback" not in text


# Histories, memory, streams -----------------------------------------------------------------------------------


class Arm:
    """Says who has control, and how wide the gripper is."""

    def __init__(self, test) -> None:
        self._states = test.node.create_publisher(ControlState, "arm/state", LATCHED)
        wait_for(self._states.get_subscription_count, what="discovery of the arm")
        self._transition = 0
        self.commanded, self.measured = 0.085, 0.085
        self.authority = ControlState.HOLD

    def give(self, authority: int) -> int:
        """Control to somebody; when [ns]."""
        self._transition += 1
        self.authority, self.since = authority, time.time_ns()
        self.tell()
        return self.since

    def tell(self) -> None:
        message = ControlState(authority=self.authority, transition=self._transition)
        message.header.stamp = to_stamp(time.time_ns())
        message.transition_stamp = to_stamp(self.since)
        message.names = list(COLUMNS)
        message.commanded = [0.0] * 7 + [self.commanded]
        message.measured = [0.0] * 7 + [self.measured]
        self._states.publish(message)


def heard_of(chunks, instant: int) -> None:
    """The node has read who has control since ``instant`` [ns], which it does with the pictures that are due."""
    wait_for(
        lambda: sum(nanoseconds(c.header.stamp) > instant for c in chunks) >= 2, what="chunks under control"
    )


def positions(message):
    return np.array(message.positions).reshape(message.horizon, -1)


def test_a_history_holds_what_was_seen_before(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", history=4, history_dt=0.1)
    with active(tmp_path, bundle) as (test, _, evidence), World(test.node) as world:
        world.grey = 51
        wait_for(lambda: evidence and evidence[-1].embedding[0] == pytest.approx(0.2))
        world.grey = 153
        wait_for(lambda: evidence[-1].embedding[0] == pytest.approx(0.6))
    means = {round(e.embedding[0], 3) for e in evidence}
    assert means & {0.3, 0.4, 0.5}, (
        f"0.3 s of history at 5 Hz see the change together with what was before: {means}"
    )


def test_memory_counts_ticks_and_is_reset_by_engagement_and_takeover(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", memory=True, context=True)
    with active(tmp_path, bundle) as (test, _, evidence), World(test.node):
        arm = Arm(test)
        for authority in (
            ControlState.HOLD,
            ControlState.POLICY,
            ControlState.OPERATOR,
            ControlState.POLICY,
            ControlState.BLENDED,
        ):
            wait_for(lambda: evidence and evidence[-1].embedding[-1] >= 2)
            begun = arm.give(authority)
            wait_for(lambda begun=begun: nanoseconds(evidence[-1].header.stamp) >= begun)
            first = next(e for e in evidence if nanoseconds(e.header.stamp) >= begun)
            goes_on = authority in (ControlState.HOLD, ControlState.BLENDED)  # the same hands, or nobody's
            assert (first.embedding[-1] > 0) is goes_on, f"authority {authority}: {first.embedding[-1]}"


def test_a_transition_that_was_too_quick_to_be_seen_resets_too(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", memory=True)
    with active(tmp_path, bundle) as (test, _, evidence), World(test.node):
        arm = Arm(test)
        arm.give(ControlState.POLICY)
        wait_for(lambda: evidence and evidence[-1].embedding[-1] >= 2)
        arm._transition += 1  # held, and engaged again
        begun = arm.give(ControlState.POLICY)
        wait_for(lambda: nanoseconds(evidence[-1].header.stamp) >= begun and evidence[-1].embedding[-1] == 0)


def test_a_stream_goes_on_from_chunk_to_chunk(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", emitted=4)
    with active(tmp_path, bundle) as (test, _, evidence), World(test.node):
        wait_for(lambda: len(evidence) >= 8)
    samples = [np.array(e.samples, np.float32).reshape(e.k, HORIZON, 8) for e in evidence]
    agree = [np.allclose(b[:, :-4], a[:, 4:], atol=1e-5) for a, b in itertools.pairwise(samples)]
    assert sum(agree) >= len(agree) - 1, "all but a missing tick, if one was"


def test_a_stream_at_another_period_is_refused(tmp_path):
    bundle, log = write_tiny_bundle(tmp_path / "tiny", emitted=2), tmp_path / "policy.log"
    rig = rig_file(tmp_path, bundle)
    with graph(NAMESPACE) as test, process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig):
        assert not test.configure("policy")
    assert "set policy.period to 0.1" in log.read_text() and (bundle / START_FILE).is_file()


# Real-time chunking -------------------------------------------------------------------------------------------


def test_chunks_go_on_from_the_running_one_and_the_evidence_stays_free(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", inpaint=True)
    options = {"sampler": "inpaint", "real_time_chunking": True}
    with active(tmp_path, bundle, **options) as (test, chunks, evidence), World(test.node) as world:
        begun = Arm(test).give(ControlState.POLICY)
        wait_for(lambda: len([c for c in chunks if nanoseconds(c.header.stamp) >= begun]) >= 3)
        world.positions = [p + 1.0 for p in world.positions]
        count = len(chunks)
        wait_for(lambda: len(chunks) >= count + 3 and evidence[-1].tick >= chunks[count].tick)
    by_tick = {e.tick: e for e in evidence}
    jump = next(
        i for i, c in enumerate(chunks) if i and by_tick[c.tick].embedding[2] > world.positions[7] - 0.5
    )
    before, after = chunks[jump - 1], chunks[jump]
    shift = (nanoseconds(after.header.stamp) - nanoseconds(before.header.stamp)) / 5e7
    assert shift == pytest.approx(4, abs=1.5), "a tick is 4 steps"
    kept, old = positions(after), positions(before)
    # What the arm reads while the chunk is under way is the old one (noise aside), its end is the new observation's.
    assert kept[:2] == pytest.approx(old[4:6], abs=6 * NOISE_GAIN)
    assert kept[-1] == pytest.approx(old[-1] + 1.0, abs=8 * NOISE_GAIN)
    proof = by_tick[after.tick]
    assert proof.chosen == proof.k == SAMPLES, "none of the samples is the chunk"
    free = np.array(proof.samples).reshape(proof.k, HORIZON, 8)
    assert free == pytest.approx(np.tile(world.positions[::-1], (SAMPLES, HORIZON, 1)), abs=6 * NOISE_GAIN)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"real_time_chunking": True}, "set policy.sampler to one that does: inpaint"),
        ({"selection": "no_module:f"}, "policy.selection 'no_module:f' cannot be imported"),
        ({"provider": "cuda"}, "CUDAExecutionProvider"),
        ({"sampler": "euler"}, "no sampler 'euler'; it offers"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_configuration(tmp_path, policy, reason):
    bundle, log = write_tiny_bundle(tmp_path / "tiny", inpaint=True), tmp_path / "policy.log"
    rig = rig_file(tmp_path, bundle, **policy)
    with graph(NAMESPACE) as test, process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig):
        assert not test.configure("policy")
    text = log.read_text()
    assert reason in text and "Traceback" not in text


# Switching tasks ----------------------------------------------------------------------------------------------

OTHER = "fold the towel"


def switch(test, task):
    return test.call(SwitchTask, "policy/switch_task", SwitchTask.Request(task=task))


@pytest.fixture
def two_tasks(tmp_path, bundle):
    """A policy node that knows a second task, by a policy with one camera and another step."""
    other = write_tiny_bundle(tmp_path / "models" / "other", name="other", task=OTHER, cameras=("scene",))
    with active(tmp_path, bundle, tasks={OTHER: str(other)}, switch_timeout=1.5) as running:
        yield running


def test_in_free_motion_a_task_is_switched_at_once(two_tasks):
    test, chunks, evidence = two_tasks
    with World(test.node):
        arm = Arm(test)
        arm.give(ControlState.POLICY)
        wait_for(lambda: chunks and chunks[-1].bundle == "tiny")
        time.sleep(0.3)  # free for a moment
        began = time.monotonic()
        answer = switch(test, OTHER)
        assert answer.success and time.monotonic() - began < 1.0, answer.message
        wait_for(lambda: evidence and evidence[-1].names and len(evidence[-1].embedding) == 1 + 8)
        switched = next(i for i, c in enumerate(chunks) if c.bundle == "other")
        stamps = [nanoseconds(c.header.stamp) / 1e9 for c in chunks[switched - 1 : switched + 1]]
        assert stamps[1] - stamps[0] < 0.6, "the arm's watchdog on chunks does not notice"
        assert all(c.bundle == "tiny" for c in chunks[:switched])
        assert all(c.bundle == "other" for c in chunks[switched:])
        assert switch(test, OTHER).success, "set already"
        assert switch(test, "put the cube on the tray").success
        wait_for(lambda: chunks[-1].bundle == "tiny")


def test_in_contact_a_task_is_switched_when_the_contact_ends(two_tasks):
    test, chunks, _ = two_tasks
    with World(test.node):
        arm = Arm(test)
        arm.commanded, arm.measured = 0.01, 0.04  # the cube is in the way
        given = arm.give(ControlState.POLICY)
        heard_of(chunks, given)

        def let_go():
            arm.commanded = arm.measured = 0.085
            arm.tell()

        later = threading.Timer(0.7, let_go)
        later.start()
        began = time.monotonic()
        answer = switch(test, OTHER)
        assert answer.success and time.monotonic() - began >= 0.7, answer.message
        later.join()
        wait_for(lambda: chunks[-1].bundle == "other")


def test_a_contact_that_does_not_end_keeps_the_old_task_and_says_why(two_tasks):
    test, chunks, _ = two_tasks
    with World(test.node):
        arm = Arm(test)
        arm.commanded, arm.measured = 0.01, 0.04
        given = arm.give(ControlState.POLICY)
        heard_of(chunks, given)
        answer = switch(test, OTHER)
        assert not answer.success
        for words in ("the task stays 'put the cube on the tray'", "40 mm wide", "switch_timeout of 1.5 s"):
            assert words in answer.message
        count = len(chunks)
        wait_for(lambda: len(chunks) >= count + 3)
        assert {c.bundle for c in chunks} == {"tiny"}
        arm.give(ControlState.HOLD)
        assert switch(test, OTHER).success, "nobody moves the arm: what it holds stays where it is"


def test_a_second_task_whose_bundle_is_broken_is_refused_at_the_start(tmp_path, bundle):
    other = write_tiny_bundle(tmp_path / "models" / "other", task=OTHER)
    (other / LOOP_FILE).write_bytes(b"x")
    log, rig = tmp_path / "policy.log", rig_file(tmp_path, bundle, tasks={OTHER: str(other)})
    with graph(NAMESPACE) as test, process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig):
        assert not test.configure("policy")
    assert log.read_text().count("is corrupted or was replaced") == 1


# Calibration and foresight ------------------------------------------------------------------------------------


def test_loading_checks_the_cameras_calibration_and_rolls_back(tmp_path, bundle):
    place = tmp_path / "root"
    shutil.copytree(root() / "launch", place / "launch")
    shutil.copytree(root() / "calibration", place / "calibration")
    other = write_tiny_bundle(tmp_path / "models" / "other", name="other")
    with (
        active(tmp_path, bundle, {"VIGIL_ROOT": str(place)}) as (test, chunks, _),
        World(test.node),
    ):
        wait_for(lambda: chunks)
        calibration = place / "calibration" / "franka_sim" / "wrist.yaml"
        calibration.write_text(calibration.read_text().replace("width: 640", "width: 800"))
        answer = test.call(LoadPolicy, "policy/load", LoadPolicy.Request(path=str(other)))
        assert not answer.success and "wrist.yaml" in answer.message and "800" in answer.message
        count = len(chunks)
        wait_for(lambda: len(chunks) >= count + 2)
        assert chunks[-1].bundle == "tiny"


def test_where_the_samples_lead_is_drawn_for_who_listens(live):
    test, chunks, _ = live
    with World(test.node):
        wait_for(lambda: chunks)
        markers = test.collect(ImageMarker, "scene/foresight", SENSOR)
        wait_for(lambda: {m.id for m in markers} == {0, 1})
    everything, chosen = (next(m for m in markers if m.id == i) for i in (0, 1))
    assert (
        everything.type == ImageMarker.LINE_LIST and everything.header.frame_id == "scene_color_optical_frame"
    )
    assert len(everything.points) == 2 * SAMPLES * (HORIZON - 1) and len(chosen.points) == 2 * (HORIZON - 1)
