"""The arm node over real DDS, against hardware that runs ros2_control's semantics and inputs at their usual rates."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory
from vigil_msgs.msg import ActionChunk, ControlState, FailureStatus, TeleopCommand

from support.live_node import graph, process, wait_for
from vigil.errors import VigilError
from vigil.node import COMMAND, EVENTS, LATCHED, SENSOR, nanoseconds, to_stamp
from vigil.rig import load_rig
from vigil.sim.controllers import JointTrajectoryController, Point

NAMESPACE = "arm_test"
HORIZON = 16
LOSSLESS = QoSProfile(depth=1000)


class World:
    """Hardware at 100 Hz, cameras at 30 Hz, chunks and verdicts at 5 Hz, the operator at 20 Hz."""

    def __init__(self, test) -> None:
        node, rig = test.node, load_rig("franka_sim")
        self.names = rig.arm.columns
        self.home = np.array([rig.arm.home[name] for name in self.names])
        self.goal = self.home + 0.3 * (np.arange(8) < 7)
        self.hardware = JointTrajectoryController(self.names[:-1], self.home[:-1])
        self.width = self.home[-1]
        self.refused: list[str] = []
        self.chunks = True
        self.alarm = self.deadman = self.hand_back = False
        self.device = self.home
        self.encoder_offset = 0.0
        self._lock = threading.Lock()
        self._joints = node.create_publisher(JointState, "franka/joint_states", SENSOR)
        self._cameras = [
            node.create_publisher(CameraInfo, f"{name}/color/camera_info", SENSOR)
            for name in ("wrist", "scene")
        ]
        self._chunk = node.create_publisher(ActionChunk, "policy/chunk", COMMAND)
        self._status = node.create_publisher(FailureStatus, "monitor/status", EVENTS)
        self._teleop = node.create_publisher(TeleopCommand, "teleop/command", SENSOR)
        topic = "franka/fr3_arm_controller/joint_trajectory"
        node.create_subscription(JointTrajectory, topic, self._on_trajectory, COMMAND)
        node.create_subscription(
            Float64MultiArray, "franka/gripper_controller/commands", self._on_gripper, COMMAND
        )
        self.trajectories = test.collect(JointTrajectory, topic, LOSSLESS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        points = [
            Point(p.time_from_start.sec * 10**9 + p.time_from_start.nanosec, p.positions, p.velocities)
            for p in message.points
        ]
        with self._lock:
            try:
                self.hardware.accept(
                    message.joint_names, points, nanoseconds(message.header.stamp), time.time_ns()
                )
            except VigilError as error:
                self.refused.append(str(error))

    def _on_gripper(self, message: Float64MultiArray) -> None:
        (self.width,) = message.data

    @property
    def position(self) -> np.ndarray:
        with self._lock:
            return np.append(self.hardware.sample(time.time_ns())[0], self.width)

    def chunk(self, **changes) -> ActionChunk:
        start = self.position
        way = np.clip(self.goal - start, -0.4, 0.4)
        positions = start + way * np.linspace(0, 1, HORIZON)[:, None]
        message = ActionChunk(
            names=list(self.names), step_dt=0.05, horizon=HORIZON, positions=positions.ravel().tolist()
        )
        message.header.stamp = to_stamp(time.time_ns() - 100_000_000)
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def send_chunk(self, **changes) -> None:
        self._chunk.publish(self.chunk(**changes))

    def send_status(self, alarm: bool) -> None:
        message = FailureStatus(alarm=alarm, reason="rnd and ace" if alarm else "")
        message.verdict = FailureStatus.ALARM if alarm else FailureStatus.NOMINAL
        message.verdict_name = "ALARM" if alarm else "NOMINAL"
        message.header.stamp = to_stamp(time.time_ns() - 50_000_000)
        self._status.publish(message)

    def send_operator(self) -> None:
        message = TeleopCommand(
            device="test",
            deadman=self.deadman,
            mode=TeleopCommand.ABSOLUTE,
            names=list(self.names),
            positions=self.device.tolist(),
            request_hand_back=self.hand_back,
        )
        message.header.stamp = to_stamp(time.time_ns())
        self._teleop.publish(message)

    def _run(self) -> None:
        count, began = 0, time.monotonic()
        while not self._stop.wait(max(0.0, began + 0.01 * count - time.monotonic())):
            measured = self.position + self.encoder_offset * (np.arange(8) < 7)
            message = JointState(name=list(self.names), position=measured.tolist())
            message.header.stamp = to_stamp(time.time_ns())
            self._joints.publish(message)
            if count % 3 == 0:
                for camera in self._cameras:
                    camera.publish(CameraInfo())
            if count % 20 == 0:
                if self.chunks:
                    self.send_chunk()
                self.send_status(self.alarm)
            if count % 5 == 0:
                self.send_operator()
            count += 1

    def __enter__(self) -> World:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


class Live:
    """An active arm node in its world."""

    def __init__(self, test, world: World, running: subprocess.Popen) -> None:
        self.test, self.world, self.process = test, world, running
        self.states = test.collect(ControlState, "arm/state", LATCHED)
        self.told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)

    @property
    def known_alive(self) -> str:
        """Nodes whose death the arm would notice, as it said last."""
        found = [
            v.value for m in list(self.told) for s in m.status for v in s.values if v.key == "nodes_alive"
        ]
        return found[-1] if found else ""

    @property
    def state(self) -> ControlState:
        return wait_for(lambda: self.states and self.states[-1], what="arm/state")

    def request(self, name: str) -> Trigger.Response:
        return self.test.call(Trigger, f"arm/{name}", Trigger.Request())

    def until(self, authority: str, event: str = "") -> ControlState:
        """First newest state with this authority; its transition was caused by ``event``."""
        wait_for(
            lambda: self.state.authority_name == authority and event in ("", self.state.event),
            what=f"{authority} by {event or 'anything'}; now {self.state.authority_name}: {self.state.reason}",
        )
        return self.state

    def engage(self) -> None:
        wait_for(lambda: self.state.ready, what=f"ready; blocked by {self.state.blocked_by!r}")
        answer = self.request("engage")
        assert answer.success, answer.message
        self.until("POLICY")

    def engage_and_move(self) -> None:
        self.engage()
        start = self.world.position

        def moved() -> bool:
            assert self.state.authority_name == "POLICY", self.state.reason
            return np.abs(self.world.position - start).max() > 0.05

        wait_for(moved, what=f"the arm moves from {start} to {self.world.goal}")

    def stands_still(self) -> bool:
        before = self.world.position
        time.sleep(0.05)
        return np.abs(self.world.position - before).max() < 1e-6


@pytest.fixture
def rig_file(tmp_path):
    """The rig with patient watchdogs: the world here is a thread of the test, which a busy machine delays."""
    data = load_rig("franka_sim").model_dump(mode="json", exclude_none=True)
    data["watchdogs"] |= {"joint_states": 1.0, "chunk": 2.0, "monitor": 2.0, "camera": 2.0, "operator": 2.0}
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def live(tmp_path, rig_file):
    with live_arm(tmp_path, rig_file) as made:
        yield made


@contextmanager
def live_arm(tmp_path, rig_file):
    log = tmp_path / "arm.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.arm.node", "arm", NAMESPACE, log, rig=rig_file) as running,
    ):
        made = Live(test, World(test), running)
        assert test.configure("arm"), log.read_text()
        assert test.activate("arm"), log.read_text()
        with made.world:
            yield made


def test_an_estop_button_has_to_be_heard_and_stops_the_arm(tmp_path, rig_file):
    data = yaml.safe_load(rig_file.read_text())
    data["watchdogs"]["estop"] = 1.0
    rig_file.write_text(yaml.safe_dump(data))
    with live_arm(tmp_path, rig_file) as live:
        button = live.test.node.create_publisher(Bool, "estop/released", SENSOR)
        wait_for(lambda: "estop" in live.state.blocked_by, what="the button is missed")
        released = [True]
        timer = live.test.node.create_timer(0.05, lambda: button.publish(Bool(data=released[0])))
        live.engage_and_move()
        released[0] = False
        assert "the e-stop button is pressed" in live.until("ESTOP", "estop").reason
        wait_for(live.stands_still)
        assert not live.request("reset").success
        released[0] = True
        wait_for(lambda: live.request("reset").success, what="reset after release")
        live.engage_and_move()
        live.test.node.destroy_timer(timer)
        assert "estop: nothing for" in live.until("ESTOP", "estop").reason
        wait_for(live.stands_still)


def test_the_speed_may_be_lowered_while_it_runs_and_not_raised(live):
    def ask(speed: float):
        value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=speed)
        request = SetParameters.Request(parameters=[Parameter(name="speed", value=value)])
        (answer,) = live.test.call(SetParameters, "arm/set_parameters", request).results
        return answer

    assert ask(0.3).successful
    live.engage_and_move()
    refused = ask(0.6)
    assert not refused.successful and "at most 0.3" in refused.reason
    limits = load_rig("franka_sim").arm.limits
    fastest = 0.3 * max(limits[name].velocity for name in list(limits)[:-1])
    assert 0.0 < max(max(map(abs, t.points[0].velocities)) for t in live.world.trajectories) <= fastest


def test_engage_moves_the_arm_and_hold_stops_it(live):
    live.engage_and_move()
    state = live.until("POLICY")
    assert np.abs(state.first_step).max() <= 0.01 and list(state.names) == list(live.world.names)
    assert state.event == "engage" and nanoseconds(state.first_command_stamp) > nanoseconds(
        state.transition_stamp
    )
    assert live.request("hold").success
    live.until("HOLD", "hold")
    wait_for(live.stands_still, what="stands still")
    assert live.world.refused == []
    assert not any(any(t.points[-1].velocities) for t in live.world.trajectories), "every plan ends at rest"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": [float("nan")] * (HORIZON * 8)}, "not finite"),
        ({"names": list("abcdefgh")}, "missing"),
        ({"positions": [0.0] * 7}, "7 positions"),
        ({"step_dt": 0.0}, "step_dt"),
    ],
)
def test_a_broken_chunk_holds_the_arm_and_says_why(live, changes, said):
    live.engage()
    live.world.send_chunk(**changes)
    assert said in live.until("HOLD", "bad_chunk").reason
    wait_for(live.stands_still)


def test_broken_chunks_alone_never_move_the_arm(live):
    live.world.chunks = False
    wait_for(lambda: "chunk" in live.state.blocked_by, what="chunks are missed")
    start = live.world.position
    for changes in (
        {"positions": [float("inf")] * (HORIZON * 8)},
        {"names": list("abcdefgh")},
        {"horizon": 3},
    ):
        live.world.send_chunk(**changes)
        answer = live.request("engage")
        assert not answer.success and "chunk" in answer.message
    assert np.array_equal(live.world.position, start) and live.world.trajectories == []


def test_alarms_hold_within_a_period(live):
    """From the verdict's receipt to the authority and to the first decelerating command, by the state's own stamps."""
    delays = []
    for _ in range(10):
        live.world.goal = live.world.position + 0.3 * (np.arange(8) < 7) * (-1) ** len(delays)
        live.engage_and_move()
        live.world.send_status(alarm=True)
        state = live.until("HOLD", "alarm")
        assert "ALARM" in state.reason
        raised = nanoseconds(state.event_stamp)
        delays.append((nanoseconds(state.first_command_stamp) - raised) / 1e9)
        assert nanoseconds(state.transition_stamp) == raised
    assert max(delays) <= 0.02 and np.median(delays) <= 0.01, delays


def test_takeover_and_hand_back_without_a_jump(live):
    live.engage_and_move()
    live.world.alarm = True
    live.until("HOLD", "alarm")
    wait_for(live.stands_still)
    live.world.device = live.world.position + 0.1 * (np.arange(8) < 7)
    live.world.deadman = True
    live.until("OPERATOR", "take_over")
    state = wait_for(lambda: nanoseconds(live.state.first_command_stamp) and live.state)
    assert np.abs(state.first_step)[:7].max() <= 0.01
    wait_for(
        lambda: np.abs(live.world.position - live.world.device).max() < 0.01, what="follows the operator"
    )
    live.world.alarm = False
    live.world.hand_back = True
    live.until("POLICY", "hand_back")
    live.world.deadman = False
    state = wait_for(lambda: nanoseconds(live.state.first_command_stamp) and live.state)
    assert np.abs(state.first_step)[:7].max() <= 0.01 and live.state.authority_name == "POLICY"


def test_releasing_the_deadman_holds(live):
    live.world.deadman = True
    live.until("OPERATOR")
    live.world.deadman = False
    assert "released" in live.until("HOLD", "release").reason


def test_estop_latches_until_reset(live):
    live.engage_and_move()
    assert live.request("estop").success
    live.until("ESTOP", "estop")
    wait_for(live.stands_still)
    answer = live.request("engage")
    assert not answer.success and "arm/reset" in answer.message
    assert live.request("reset").success
    live.until("HOLD", "reset")
    live.engage()


def test_a_jump_of_the_joints_holds(live):
    live.engage_and_move()
    live.world.encoder_offset = -0.5
    assert "jumped" in live.until("HOLD", "joint_jump").reason
    sent = len(live.world.trajectories)
    wait_for(live.stands_still)
    assert len(live.world.trajectories) <= sent + 2, "but for what was on its way, nothing is sent"


@pytest.mark.parametrize("name", ["record", "policy"])
def test_any_node_killed_holds_within_300_ms(live, name):
    """Liveliness of the process itself, whatever it publishes: here a node that publishes nothing."""
    took, state = hold_after_kill(live, name)
    if took > 0.3 or f"{name}: the node died" not in state.reason:
        print(f"{name}: held after {took * 1e3:.0f} ms, {state.reason}: a busy machine? tried once more")
        took, state = hold_after_kill(live, name)
    assert f"{name}: the node died" in state.reason and f"{name}: the node died" in state.blocked_by
    assert took <= 0.3


def hold_after_kill(live: Live, name: str) -> tuple[float, ControlState]:
    """kill -9 of a node that does nothing but live, while the policy is in control: how long the arm took to hold [s]."""
    arguments = ["--ros-args", "-p", "rig:=franka_sim", "-r", f"__ns:=/{NAMESPACE}", "-r", f"__node:={name}"]
    other = subprocess.Popen(
        [sys.executable, "-m", "support.plain_node", *arguments],
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
    )
    try:
        assert live.test.configure(name) and live.test.activate(name)
        live.told.clear()
        wait_for(lambda: name in live.known_alive, what=f"the arm knows that {name} lives")
        live.engage()
        other.send_signal(signal.SIGKILL)
        killed = time.time_ns()
        state = live.until("HOLD", "missing_input")
    finally:
        other.kill()
        other.wait()
    live.world.goal = live.world.position
    return (nanoseconds(state.transition_stamp) - killed) / 1e9, state


def test_a_killed_arm_node_leaves_the_arm_at_rest_and_comes_back_in_hold(live, tmp_path, rig_file):
    live.engage_and_move()
    live.process.kill()
    wait_for(live.stands_still, timeout=2.0, what="the hardware ends its last plan at rest")
    live.process.wait()
    # Under another name: the middleware still answers for the dead node's services for a while.
    with process("vigil.arm.node", "arm_again", NAMESPACE, tmp_path / "again.log", rig=rig_file):
        live.states.clear()
        assert live.test.configure("arm_again") and live.test.activate("arm_again")
        assert live.until("HOLD").event == "start"
        assert live.stands_still()
        live.engage_and_move()


def test_the_period_is_kept(live):
    live.engage()
    time.sleep(3.0)
    state = live.state
    # How well it is kept is for tests/bench/bench_arm.py: this machine may have other things to do.
    assert state.period_mean == pytest.approx(0.01, rel=0.05)
    assert state.period_p99 < 0.05
