"""The monitor's node over DDS: verdict per evidence, latch, resets, STALE, and refusal of a foreign calibration."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import Trigger
from vigil_msgs.msg import ControlState, FailureStatus, PolicyEvidence

from support.live_node import REACHED
from support.monitor_rollouts import for_policy, make_rollouts
from support.tiny_bundle import write_tiny_bundle
from vigil.monitor import calibrate_command as command
from vigil.monitor.calibration import FILE
from vigil.node import EVENTS, EVIDENCE, LATCHED, to_stamp
from vigil.policy.bundle import load_bundle
from vigil.record.rollout import Rollout, save_rollout
from vigil.rig import load_rig, rig_path

NS = "/monitor_test"
PATIENCE = 20.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitor")
    bundle = load_bundle(write_tiny_bundle(folder / "tiny"))
    for i, rollout in enumerate(make_rollouts(30, seed=1)):
        save_rollout(folder / "rollouts" / f"episode_{i:04d}", for_policy(rollout, bundle))
    command.calibrate([folder / "rollouts"], bundle.path, delta=0.1, method="fiper")
    return bundle


@pytest.fixture(scope="module")
def rig_file(bundle, tmp_path_factory) -> Path:
    text = yaml.safe_load(rig_path("franka_sim").read_text())
    text["policy"]["bundle"] = str(bundle.path)
    path = tmp_path_factory.mktemp("rigs") / "franka_sim.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


class Probe:
    """A policy, an arm and an operator, as far as the monitor can tell."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("probe", namespace=NS, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.statuses: list[FailureStatus] = []
        self.evidence = self.node.create_publisher(PolicyEvidence, "policy/evidence", EVIDENCE)
        self.arm = self.node.create_publisher(ControlState, "arm/state", LATCHED)
        self.node.create_subscription(FailureStatus, "monitor/status", self.statuses.append, EVENTS)
        self.clients = {}
        self.tick = 0

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def until(self, done, what: str, patience: float = PATIENCE):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if value := done():
                return value
            self.executor.spin_once(timeout_sec=0.02)
        raise AssertionError(f"waited {patience:g} s in vain: {what}")

    def call(self, kind, name: str, request):
        """The response. Asked for again where none comes: a server gives up on an asker it has not discovered in 0.1 s."""
        if name not in self.clients:
            self.clients[name] = self.node.create_client(kind, name)
        client = self.clients[name]
        self.until(client.service_is_ready, f"service {name}")
        for _ in range(3):
            future = client.call_async(request)
            with contextlib.suppress(AssertionError):
                self.until(future.done, f"answer of {name}", PATIENCE / 3)
                return future.result()
        raise AssertionError(f"{name} did not answer")

    def change(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        changed = self.call(ChangeState, f"{NS}/monitor/change_state", request).success
        return changed or self.state() == REACHED[transition]

    def state(self) -> int:
        return self.call(GetState, f"{NS}/monitor/get_state", GetState.Request()).current_state.id

    def authority(self, authority: int, transition: int) -> None:
        self.arm.publish(ControlState(authority=authority, transition=transition))

    def show(self, rollout: Rollout, row: int, **changes) -> FailureStatus:
        """Publish the evidence of one tick and return the verdict on it."""
        stamp = self.node.get_clock().now().nanoseconds
        message = PolicyEvidence(
            tick=self.tick,
            bundle_hash=rollout.episode.bundle_hash,
            sampler=rollout.episode.sampler,
            sampler_steps=rollout.episode.sampler_steps,
            names=list(rollout.names),
            step_dt=rollout.step_dt,
            embedding=array("f", rollout.embedding[row].tobytes()),
            k=rollout.k,
            horizon=rollout.horizon,
            samples=array("f", rollout.samples[row].tobytes()),
        )
        for name, value in changes.items():
            setattr(message, name, value)
        message.header.stamp = to_stamp(stamp)
        self.tick += 1
        self.evidence.publish(message)
        return self.until(
            lambda: next((s for s in self.statuses if s.header.stamp == message.header.stamp), None),
            "a verdict",
        )


@pytest.fixture
def probe():
    probe = Probe()
    yield probe
    probe.close()


@pytest.fixture
def start(tmp_path):
    """Starts the node; ends it, whatever happens."""
    started: list[subprocess.Popen] = []

    def run(rig: Path, *parameters: str) -> tuple[subprocess.Popen, Path]:
        log = tmp_path / "monitor.log"
        arguments = ["--ros-args", "-r", f"__ns:={NS}", "-r", "__node:=monitor", "-p", f"rig:={rig}"]
        for parameter in parameters:
            arguments += ["-p", parameter]
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "vigil.monitor.node", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        started.append(process)
        return process, log

    yield run
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def activate(probe: Probe) -> None:
    assert probe.change(Transition.TRANSITION_CONFIGURE)
    assert probe.change(Transition.TRANSITION_ACTIVATE)
    probe.until(
        lambda: probe.evidence.get_subscription_count() and probe.arm.get_subscription_count(), "the node"
    )
    probe.until(lambda: probe.node.count_publishers(f"{NS}/monitor/status"), "its topic")


def test_a_failure_is_seen_latched_and_forgotten(probe, start, rig_file, bundle):
    start(rig_file)
    activate(probe)
    good, bad = (for_policy(make_rollouts(1, seed=5, failing=f)[0], bundle) for f in (False, True))
    # Silence is stale, never nominal.
    stale = probe.until(lambda: probe.statuses and probe.statuses[-1], "a verdict on silence")
    assert (stale.verdict_name, list(stale.score_names)) == ("STALE", ["rnd", "ace"])
    assert "no evidence" in stale.reason

    probe.authority(ControlState.HOLD, 0)
    probe.authority(ControlState.POLICY, 1)
    probe.executor.spin_once(timeout_sec=0.1)
    first = probe.show(good, 0)
    assert (first.verdict_name, first.alarm) == ("NOMINAL", False), first.reason
    assert list(first.score_kinds) == [0, 1]
    assert 0 < first.computation_time < 0.05
    assert all(np.isfinite(first.thresholds))
    assert first.tick == 0

    broken = array("f", [float("nan")] * len(good.embedding[0]))
    assert probe.show(good, 1, embedding=broken).verdict_name == "STALE"
    assert probe.show(good, 1, samples=array("f", [1.0])).verdict_name == "STALE"
    foreign = probe.show(good, 1, sampler="ddpm")
    assert foreign.verdict_name == "UNCALIBRATED"
    assert "ddim" in foreign.reason
    assert "ddpm" in foreign.reason

    for row in range(len(bad)):
        status = probe.show(bad, row)
        if status.alarm:
            break
    assert status.verdict_name == "ALARM", "the last quarter of a failing episode is far from any success"
    assert "rnd" in status.reason
    assert probe.show(good, 2).alarm, "latched"

    # The operator takes over: the alarm has done its work. Then the policy gets control back.
    probe.authority(ControlState.OPERATOR, 2)
    probe.until(lambda: not probe.show(good, 3).alarm, "the alarm is cleared at takeover")
    while probe.show(bad, len(bad) - 1).verdict_name != "ALARM":
        pass
    assert not probe.show(bad, len(bad) - 1).alarm, "under the operator nothing is latched"
    probe.authority(ControlState.POLICY, 3)
    probe.until(lambda: probe.show(good, 4).verdict_name == "NOMINAL", "windows are fresh at hand-back")

    while not probe.show(bad, len(bad) - 1).alarm:
        pass
    assert probe.call(Trigger, f"{NS}/monitor/reset", Trigger.Request()).success
    assert not probe.show(good, 5).alarm
    again = probe.until(
        lambda: next((s for s in probe.statuses[-3:] if "no evidence" in s.reason), None),
        "STALE once it is silent",
    )
    assert again.verdict_name == "STALE"


def refused(probe: Probe, log: Path) -> str:
    assert not probe.change(Transition.TRANSITION_CONFIGURE)
    assert probe.state() == State.PRIMARY_STATE_UNCONFIGURED
    text = log.read_text()
    assert "Traceback" not in text, text
    return text


def test_a_foreign_or_missing_calibration_is_refused(probe, start, rig_file, bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", name="other")
    text = yaml.safe_load(rig_file.read_text())
    text["policy"]["bundle"] = str(other)
    rig = tmp_path / "franka_sim.yaml"
    rig.write_text(yaml.safe_dump(text))
    _, log = start(rig)
    assert "no calibration in" in refused(probe, log)

    (other / "monitor").mkdir()
    for path in bundle.monitor_path.iterdir():
        (other / "monitor" / path.name).write_bytes(path.read_bytes())
    said = refused(probe, log)
    assert "another policy" in said
    assert bundle.content_hash[:12] in said
    assert load_bundle(other).content_hash[:12] in said

    calibration = yaml.safe_load((bundle.monitor_path / FILE).read_text())
    calibration["binding"]["bundle_hash"] = load_bundle(other).content_hash
    (other / "monitor" / FILE).write_text(yaml.safe_dump(calibration))
    assert probe.change(Transition.TRANSITION_CONFIGURE), (
        "with the right calibration it works, in the same process"
    )


def test_uncalibrated_only_when_asked(probe, start, rig_file, tmp_path):
    other = load_bundle(write_tiny_bundle(tmp_path / "other", name="other"))
    text = yaml.safe_load(rig_file.read_text())
    text["policy"]["bundle"] = str(other.path)
    rig = tmp_path / "franka_sim.yaml"
    rig.write_text(yaml.safe_dump(text))
    start(rig, "uncalibrated:=true")
    activate(probe)
    bad = for_policy(make_rollouts(1, seed=5, failing=True)[0], other)
    for row in (0, 30, 59):
        status = probe.show(bad, row)
        assert (status.verdict_name, status.alarm) == ("UNCALIBRATED", False)
        assert list(status.thresholds) == [np.inf]
        assert np.isfinite(status.scores).all()
        assert "no calibration" in status.reason
    assert load_rig(rig).monitor.level == "calibrated"


def test_when_the_task_is_switched_the_other_policys_calibration_judges(
    probe, start, rig_file, bundle, tmp_path
):
    task = "fold the towel"
    other = load_bundle(write_tiny_bundle(tmp_path / "other", name="other", task=task))
    for i, rollout in enumerate(make_rollouts(30, seed=2)):
        save_rollout(tmp_path / "rollouts" / f"episode_{i:04d}", for_policy(rollout, other))
    command.calibrate([tmp_path / "rollouts"], other.path, delta=0.1, method="fiper")
    third = load_bundle(write_tiny_bundle(tmp_path / "third", name="third", task="wipe the table"))
    text = yaml.safe_load(rig_file.read_text())
    text["policy"]["tasks"] = {task: str(other.path), "wipe the table": str(third.path)}
    rig = tmp_path / "franka_sim.yaml"
    rig.write_text(yaml.safe_dump(text))
    _, log = start(rig)
    activate(probe)
    mine, theirs, nobodys = (
        for_policy(make_rollouts(1, seed=5)[0], which) for which in (bundle, other, third)
    )
    thresholds = {}
    for rollout in (mine, theirs, mine):
        status = probe.show(rollout, 0)
        assert status.verdict_name == "NOMINAL", status.reason
        thresholds[rollout.episode.bundle_hash] = list(status.thresholds)
    assert len({tuple(values) for values in thresholds.values()}) == 2, "each by its own calibration"
    honest = probe.show(nobodys, 0)
    assert honest.verdict_name == "UNCALIBRATED" and "no calibration" in honest.reason and not honest.alarm
    assert "wipe the table" in log.read_text(), "said at the start already"
    assert probe.show(mine, 1).verdict_name == "NOMINAL"
