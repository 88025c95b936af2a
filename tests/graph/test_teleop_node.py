"""The teleop node over real DDS: always heard, never moving without a deadman, no step at takeover."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from vigil_msgs.msg import ControlState, SimState, TaskState, TeleopCommand
from vigil_msgs.srv import ResetSim

from support.live_node import graph, process, wait_for
from vigil.node import EVENTS, LATCHED, SENSOR, nanoseconds, to_stamp
from vigil.rig import load_rig
from vigil.run.session import derive_rig

NAMESPACE = "teleop_test"
MODULE = "vigil.teleop.node"
PERIOD = 50_000_000  # ns


class Robot:
    """A rig that does not move: its joint states, the arm's state, the simulator's state."""

    def __init__(self, node, rig) -> None:
        from vigil.sim.physics import Simulation

        self.names = list(reversed(rig.arm.columns))
        self.home = np.array([rig.arm.home[name] for name in rig.arm.columns])
        simulation = Simulation(rig.sim.time_limit, self.home[:7])
        simulation.reset(1)
        self._state = SimState(scene=1, qpos=simulation.world.data.qpos.copy())
        self._topics = {
            kind: node.create_publisher(kind, topic, qos)
            for kind, topic, qos in (
                (JointState, "franka/joint_states", SENSOR),
                (SimState, "sim/state", SENSOR),
                (ControlState, "arm/state", LATCHED),
                (TaskState, "sim/task", EVENTS),
                (Clock, "/clock", EVENTS),
            )
        }
        self.arm = ControlState(authority_name="HOLD", event="start")

    def publish(self, stamp: int, *, joints: bool = True) -> None:
        at = to_stamp(stamp)
        for message in (self._state, self.arm):
            message.header.stamp = at
            self._topics[type(message)].publish(message)
        if joints:
            message = JointState(name=self.names, position=self.home[::-1])
            message.header.stamp = at
            self._topics[JointState].publish(message)

    def tell_time(self, stamp: int) -> None:
        self._topics[Clock].publish(Clock(clock=to_stamp(stamp)))


class Running:
    """Publishes a `Robot` at 100 Hz in real time."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.robot.publish(time.time_ns())

    def __enter__(self) -> Robot:
        self._thread.start()
        return self.robot

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def rig():
    return load_rig("franka_sim")


def ask(client, active: bool):
    return client.call(SetBool, "teleop/set_active", SetBool.Request(data=active))


def test_idle_commands_come_at_the_declared_rate_without_a_deadman(rig, tmp_path):
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, tmp_path / "log", rig="franka_sim"):
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        assert client.configure("teleop")
        assert client.activate("teleop")
        wait_for(lambda: len(commands) > 60)
    stamps = np.array([nanoseconds(c.header.stamp) for c in commands[5:]])
    assert np.median(np.diff(stamps)) == pytest.approx(1e9 / rig.teleop.rate, rel=0.05)
    assert not any(c.deadman or c.request_hand_back or len(c.positions) for c in commands)
    assert all(list(c.names) == list(rig.arm.columns) for c in commands)


def test_takeover_begins_at_the_measured_pose(rig, tmp_path):
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, tmp_path / "log", rig="franka_sim"):
        robot = Robot(client.node, rig)
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        assert client.configure("teleop")
        assert not ask(client, True).success  # not active yet
        assert client.activate("teleop")
        with Running(robot):
            assert ask(client, True).success
            wait_for(lambda: commands and commands[-1].deadman)
            np.testing.assert_allclose(commands[-1].positions, robot.home)
            robot.arm.authority_name = "OPERATOR"
            wait_for(lambda: np.abs(np.array(commands[-1].positions) - robot.home).max() > 0.02)
            assert ask(client, False).success
            wait_for(lambda: not commands[-1].deadman)
    held = [np.array(c.positions) for c in commands if c.deadman]
    steps = np.abs(np.diff([robot.home, *held], axis=0)).max(axis=1)
    assert steps.max() < 0.1
    assert np.isfinite(held).all()


def test_without_joint_states_nobody_takes_over(rig, tmp_path):
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, tmp_path / "log", rig="franka_sim"):
        robot = Robot(client.node, rig)
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        assert client.configure("teleop")
        assert client.activate("teleop")
        assert ask(client, True).success
        wait_for(lambda: len(commands) > 10)
        assert not any(c.deadman for c in commands)
        robot.home[3] = np.nan
        with Running(robot):
            seen = len(commands)
            wait_for(lambda: len(commands) > seen + 20)
    assert not any(c.deadman for c in commands)


def test_lock_step_answers_each_instant_once_both_parts_are_there(rig, tmp_path):
    with (
        graph(NAMESPACE) as client,
        process(MODULE, "teleop", NAMESPACE, tmp_path / "log", rig="franka_sim", use_sim_time=True),
    ):
        robot = Robot(client.node, rig)
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        assert client.configure("teleop")
        assert client.activate("teleop")

        def stamps() -> list[int]:
            return [nanoseconds(c.header.stamp) for c in commands]

        begin = 100_000_000_000
        wait_for(lambda: robot.publish(begin) or stamps())
        for tick in range(1, 41):
            now = begin + tick * 10_000_000
            robot.tell_time(now)
            robot.publish(now)
            if now % PERIOD == 0:
                wait_for(lambda now=now: stamps()[-1] == now)
        assert sorted(set(stamps())) == [begin + i * PERIOD for i in range(9)]
        now = begin + 9 * PERIOD
        robot.publish(now, joints=False)
        time.sleep(0.2)  # long enough for a wrong answer
        assert stamps()[-1] < now
        robot.publish(now)
        wait_for(lambda: stamps()[-1] == now)
        answers = len(commands)
        robot.publish(now)  # asked again
        wait_for(lambda: len(commands) > answers)
        assert stamps()[-1] == now


def test_the_keyboard_through_a_terminal(rig, tmp_path):
    keyboard_rig = derive_rig(rig, tmp_path / "rig", teleop={"device": "keyboard"})
    master, slave = os.openpty()
    try:
        with (
            graph(NAMESPACE) as client,
            process(
                MODULE, "teleop", NAMESPACE, tmp_path / "log", rig=keyboard_rig.path, tty=os.ttyname(slave)
            ),
        ):
            robot = Robot(client.node, rig)
            commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
            assert client.configure("teleop")
            assert client.activate("teleop")
            assert "deadman" in ask(client, True).message
            with Running(robot):
                wait_for(lambda: len(commands) > 5)
                assert not any(c.deadman for c in commands)
                os.write(master, b"w")
                wait_for(lambda: commands[-1].deadman)
                assert commands[-1].device == "keyboard"
                wait_for(lambda: not commands[-1].deadman)
    finally:
        os.close(master)
        os.close(slave)


def test_no_terminal_is_told(rig, tmp_path):
    keyboard_rig = derive_rig(rig, tmp_path / "rig", teleop={"device": "keyboard"})
    log = tmp_path / "log"
    with (
        graph(NAMESPACE) as client,
        process(MODULE, "teleop", NAMESPACE, log, rig=keyboard_rig.path, tty="/dev/null"),
    ):
        assert not client.configure("teleop")
    assert "needs a terminal" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_scripted_operator_does_the_task_with_the_real_arm_and_simulation(tmp_path):
    """Simulation, arm and teleop in lock step; the operator takes over, finishes and lets go."""
    common = {"rig": "franka_sim", "use_sim_time": True}
    with (
        graph(NAMESPACE) as client,
        process(
            "vigil.sim.node",
            "sim",
            NAMESPACE,
            tmp_path / "sim",
            lockstep=True,
            participants="[arm,teleop]",
            **common,
        ),
        process("vigil.arm.node", "arm", NAMESPACE, tmp_path / "arm", **common),
        process(MODULE, "teleop", NAMESPACE, tmp_path / "teleop", **common),
    ):
        arm = client.collect(ControlState, "arm/state", LATCHED)
        task = client.collect(TaskState, "sim/task", EVENTS)
        for name in ("sim", "arm", "teleop"):
            assert client.configure(name)
            assert client.activate(name)
        answer = client.call(ResetSim, "sim/reset", ResetSim.Request(seed=5, perturbation="none"))
        wait_for(lambda: task and task[-1].scene == answer.scene)
        assert ask(client, True).success
        wait_for(lambda: task[-1].success or task[-1].failure, 120.0, "the end of the task")
        assert task[-1].success, task[-1].failure_reason
        assert ask(client, False).success
        wait_for(lambda: arm[-1].authority_name == "HOLD")
    taken = next(
        state
        for state in arm
        if state.authority_name == "OPERATOR" and nanoseconds(state.first_command_stamp)
    )
    assert np.abs(np.array(taken.first_step)[:7]).max() <= 0.01
