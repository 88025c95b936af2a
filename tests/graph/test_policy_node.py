"""The policy node over real DDS, with a tiny bundle that the real runtime runs."""

from __future__ import annotations

import threading
import time
from array import array

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, JointState
from vigil_msgs.msg import ActionChunk, ControlState, PolicyEvidence
from vigil_msgs.srv import LoadPolicy, SwitchTask

from support.live_node import graph, process, wait_for
from support.tiny_bundle import COLUMNS, HORIZON, write_tiny_bundle
from vigil.node import COMMAND, EVENTS, EVIDENCE, LATCHED, SENSOR, nanoseconds, to_stamp
from vigil.policy.bundle import load_bundle
from vigil.policy.spec import LOOP_FILE
from vigil.rig import load_rig

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
        self.stamps: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def image(self, camera: str, stamp: int) -> Image:
        width, height = self.size[camera]
        message = Image(encoding="rgb8", width=width, height=height, step=3 * width)
        message.data = array("B", np.full((height, width, 3), 102, np.uint8).tobytes())
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


def rig_file(folder, bundle):
    data = load_rig("franka_sim").model_dump(mode="json", exclude_none=True)
    data["policy"] = {
        **data["policy"],
        "bundle": str(bundle),
        "samples": SAMPLES,
        "candidates": 2,
        "period": 0.2,
    }
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "models" / "tiny")


@pytest.fixture
def live(tmp_path, bundle):
    """A configured and active policy node: (graph, chunks, evidence)."""
    log = tmp_path / "policy.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.policy.node", "policy", NAMESPACE, log, rig=rig_file(tmp_path, bundle)),
    ):
        assert test.configure("policy"), log.read_text()
        chunks = test.collect(ActionChunk, "policy/chunk", COMMAND)
        evidence = test.collect(PolicyEvidence, "policy/evidence", EVIDENCE)
        assert test.activate("policy"), log.read_text()
        yield test, chunks, evidence


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

    def load(path):
        return test.call(LoadPolicy, "policy/load", LoadPolicy.Request(path=str(path)))

    with World(test.node):
        wait_for(lambda: chunks)
        for path, reason in (
            (broken, "corrupted"),
            (elsewhere, "front"),
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
