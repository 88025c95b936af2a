"""The arm node with the drivers of ALOHA and of a Franka: their own messages over real DDS, the robots simulated."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from vigil_msgs.msg import ActionChunk, ControlState, TeleopCommand

from support.live_node import graph, process, wait_for
from support.vendor_messages import vendor_environment
from vigil.node import COMMAND, LATCHED, SENSOR, to_stamp
from vigil.rig import load_rig

NAMESPACE = "vendor_test"
HORIZON, STEP = 16, 0.05
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def vendors():
    found = vendor_environment()
    return {**found, "PYTHONPATH": os.pathsep.join([str(TESTS), found["PYTHONPATH"]])}


def rig_file(folder, name, **changes):
    """A rig without a monitor and with patient watchdogs: what is left is between the arm and its drivers."""
    data = load_rig(name).model_dump(mode="json", exclude_none=True)
    data["watchdogs"] |= {"joint_states": 1.0, "chunk": 2.0, "camera": 2.0, "operator": 2.0}
    data["monitor"]["level"] = "none"
    for arm in data["arms"]:
        arm.update(changes)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


class Bench:
    """Arm node and drivers; chunks lead towards ``goal``."""

    def __init__(self, test, rig) -> None:
        self.test, self.rig = test, rig
        self.home = np.array(list(rig.home.values()))
        self.goal = self.home.copy()
        self.states = test.collect(ControlState, "arm/state", LATCHED)
        self._seen = test.collect(String, "seen", 100)
        node = test.node
        self._chunks = node.create_publisher(ActionChunk, "policy/chunk", COMMAND)
        self._operator = node.create_publisher(TeleopCommand, "teleop/command", SENSOR)
        self._cameras = [
            node.create_publisher(CameraInfo, f"{c.name}/color/camera_info", SENSOR) for c in rig.cameras
        ]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def state(self) -> ControlState:
        return wait_for(lambda: self.states and self.states[-1], what="arm/state")

    @property
    def measured(self) -> np.ndarray:
        return np.array(self.state.measured)

    @property
    def seen(self) -> list[str]:
        return [message.data for message in self._seen]

    def request(self, name: str) -> Trigger.Response:
        return self.test.call(Trigger, f"arm/{name}", Trigger.Request())

    def engage(self) -> None:
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self.state.ready)
        assert self.state.ready, self.state.blocked_by
        answer = self.request("engage")
        assert answer.success, answer.message
        wait_for(lambda: self.state.authority_name == "POLICY")

    def moves(self) -> bool:
        assert self.state.authority_name == "POLICY", self.state.reason
        return abs(self.measured[0] - self.home[0]) > 0.05

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            if not self.states:
                continue
            start = np.array(self.states[-1].commanded)
            if not np.isfinite(start).all():
                continue
            way = np.clip(self.goal - start, -0.3, 0.3)
            positions = start + way * np.linspace(0, 1, HORIZON)[:, None]
            chunk = ActionChunk(
                names=list(self.rig.columns),
                step_dt=STEP,
                horizon=HORIZON,
                positions=positions.ravel().tolist(),
            )
            chunk.header.stamp = to_stamp(time.time_ns() - 50_000_000)
            self._chunks.publish(chunk)
            for camera in self._cameras:
                camera.publish(CameraInfo())
            operator = TeleopCommand(device="test", names=list(self.rig.columns))
            operator.header.stamp = to_stamp(time.time_ns())
            self._operator.publish(operator)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@contextmanager
def bench(folder, path, vendors):
    log, driver_log = folder / "arm.log", folder / "drivers.log"
    with (
        graph(NAMESPACE) as test,
        process("support.drivers", "drivers", NAMESPACE, driver_log, vendors, rig=path),
        process("vigil.arm.node", "arm", NAMESPACE, log, vendors, rig=path),
    ):
        assert test.configure("arm"), log.read_text()
        assert test.activate("arm"), log.read_text()
        with Bench(test, load_rig(path)) as made:
            yield made
    assert "AssertionError" not in driver_log.read_text(), driver_log.read_text()


def test_two_viperx_follow_one_policy_and_both_stop(tmp_path, vendors):
    with bench(tmp_path, rig_file(tmp_path, "aloha"), vendors) as made:
        assert list(made.state.names) == list(made.rig.columns)
        wait_for(lambda: np.allclose(made.measured, made.home, atol=1e-3), what="both arms are heard")
        left, right = made.rig.columns.index("left_elbow"), made.rig.columns.index("right_waist")
        grip = made.rig.columns.index("right_gripper")
        made.goal[[left, right, grip]] += (-0.2, 0.25, -0.01)
        made.engage()
        wait_for(lambda: np.allclose(made.measured, made.goal, atol=2e-3), what="both arms are there")
        made.goal[[left, right]] -= (-0.2, 0.25)
        wait_for(lambda: abs(made.measured[left] - made.goal[left]) < 0.15, what="on the way back")
        assert made.request("hold").success
        wait_for(lambda: np.ptp([s.measured for s in made.states[-20:]], axis=0).max() < 1e-6)
        assert made.state.authority_name == "HOLD"


def test_a_missing_follower_keeps_both_arms_from_moving(tmp_path, vendors):
    path = rig_file(tmp_path, "aloha")
    data = yaml.safe_load(path.read_text())
    one = tmp_path / "one.yaml"
    alone = {**data, "arms": data["arms"][:1], "teleop": {"device": "keyboard"}}
    one.write_text(yaml.safe_dump(alone, sort_keys=False))
    log = tmp_path / "arm.log"
    with (
        graph(NAMESPACE) as test,
        process("support.drivers", "drivers", NAMESPACE, tmp_path / "drivers.log", vendors, rig=one),
        process("vigil.arm.node", "arm", NAMESPACE, log, vendors, rig=path),
    ):
        assert test.configure("arm") and test.activate("arm"), log.read_text()
        with Bench(test, load_rig(path)) as made:
            said = "follower_right/joint_states: nothing heard yet"
            wait_for(lambda: said in made.state.blocked_by, what=said)
            wait_for(lambda: "follower_left" not in made.state.blocked_by, what="the other one is heard")
            assert not made.request("engage").success


def test_a_franka_hand_gets_one_goal_after_the_other(tmp_path, vendors):
    with bench(tmp_path, rig_file(tmp_path, "franka"), vendors) as made:
        made.goal[:7] += 0.1
        made.engage()
        wait_for(lambda: np.allclose(made.measured[:7], made.goal[:7], atol=2e-3), what="the arm is there")
        assert made.seen == [], "a width that does not change is no goal"
        made.goal[7] = 0.01
        wait_for(lambda: made.measured[7] < 0.0106, what="the hand has closed")
        closing = list(made.seen)
        assert closing and all(text.startswith("grasp") and text.endswith("30 N") for text in closing)
        made.goal[7] = 0.08
        wait_for(lambda: made.measured[7] > 0.0794, what="the hand has opened")
        assert all(text.startswith("move") for text in made.seen[len(closing) :])


def test_a_reflex_neither_kills_the_node_nor_hangs_the_recovery(tmp_path, vendors):
    """Complaint 6: reported, held, and cleared when the operator asks for it, not before."""
    with bench(tmp_path, rig_file(tmp_path, "franka"), vendors) as made:
        reflex = made.test.node.create_publisher(Bool, "reflex", LATCHED)
        made.goal[:7] += 0.4
        made.engage()
        wait_for(made.moves)
        reflex.publish(Bool(data=True))
        wait_for(lambda: made.state.authority_name == "HOLD", what="held")
        assert made.state.event == "robot_fault"
        assert "franka: a reflex stopped it (joint_reflex)" in made.state.reason
        wait_for(lambda: "call arm/recover" in made.state.blocked_by, what="the way out is told")
        answer = made.request("engage")
        assert not answer.success and "arm/recover" in answer.message
        assert made.seen == [], "nobody asked for a recovery yet"
        stopped = made.measured
        wait_for(lambda: made.request("recover").success, what="braked")
        assert made.seen == ["error_recovery"]
        wait_for(lambda: made.state.ready, what="ready again")
        assert np.allclose(made.measured, stopped, atol=1e-6), "nothing moves by itself"
        made.engage()
        wait_for(lambda: np.allclose(made.measured[:7], made.goal[:7], atol=2e-3), what="it goes on")
        answer = made.request("recover")
        assert not answer.success and "POLICY has control" in answer.message


@pytest.mark.parametrize(
    ("rig", "changes", "said"),
    [
        ("aloha", {}, "controller_type interbotix needs the ROS package interbotix_xs_msgs"),
        ("franka", {}, "franka_msgs"),
    ],
)
def test_a_missing_message_package_is_named_with_its_remedy(tmp_path, rig, changes, said):
    log = tmp_path / "arm.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.arm.node", "arm", NAMESPACE, log, rig=rig_file(tmp_path, rig, **changes)),
    ):
        assert not test.configure("arm")
    text = log.read_text()
    assert said in text and "apt-get install ros-$ROS_DISTRO-" in text and "Traceback" not in text
