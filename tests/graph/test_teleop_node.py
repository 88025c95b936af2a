"""The teleop node over real DDS: always heard, never moving without a deadman, no step at takeover."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Point, Pose, PoseArray, Quaternion
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from vigil_msgs.msg import ControlState, EpisodeState, SimState, TaskState, TeleopCommand
from vigil_msgs.srv import ResetSim

from support.live_node import graph, process, wait_for
from support.rigs import real_rig
from vigil.joints import joint_sources, raw_width
from vigil.kinematics import FRANKA, rotation_vector
from vigil.node import EVENTS, LATCHED, OK, SENSOR, WARN, nanoseconds, to_stamp
from vigil.rig import load_rig
from vigil.run.session import derive_rig
from vigil.teleop.retarget import keypoints

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


LEADER = {
    "device": "leader",
    "rate": 50,
    "timeout": 0.5,  # a busy machine is no silent leader
    "leaders": [
        {"topic": "leader/joint_states", "gripper": {"name": "trigger", "closed": 1.0, "open": 0.0}},
    ],
    "buttons": {
        name: {"topic": f"pedal/{name}"} for name in ("deadman", "start", "mark", "success", "discard")
    },
}


class Cell:
    """A real rig's topics: the arm's and its leader's joint states at 100 Hz, and pedals that say all the time how they are."""

    def __init__(self, node, rig) -> None:
        self.leader_names = [*rig.arm.joints, "trigger"]
        self.pose = np.array([rig.arm.home[name] for name in rig.arm.columns])
        self.pedals = dict.fromkeys(LEADER["buttons"], False)
        self.leader_period = 1
        self._told: list[float] = []  # [s] when the leader was published
        self._arm = [
            (source, node.create_publisher(JointState, source.topic, SENSOR)) for source in joint_sources(rig)
        ]
        self._said = dict(zip(rig.arm.columns, self.pose, strict=True))
        self._said[rig.arm.gripper_column] = raw_width(rig.arm.gripper, self.pose[-1])
        self._leader = node.create_publisher(JointState, "leader/joint_states", SENSOR)
        self._pedals = {name: node.create_publisher(Bool, f"pedal/{name}", SENSOR) for name in self.pedals}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(0.01):
            count += 1
            now = to_stamp(time.time_ns())
            for source, publisher in self._arm:
                told = JointState(name=source.joints, position=[self._said[name] for name in source.columns])
                told.header.stamp = now
                publisher.publish(told)
            leader = JointState(name=self.leader_names, position=[*self.pose[:7], 0.5])
            leader.header.stamp = now
            if count % self.leader_period == 0:
                self._leader.publish(leader)
                self._told.append(time.time())
            for name, publisher in self._pedals.items():
                publisher.publish(Bool(data=self.pedals[name]))

    def __enter__(self) -> Cell:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def take_over(self, commands: list[TeleopCommand]) -> TeleopCommand:
        """Step on the pedal until it is heard: on a busy machine the device may not have seen it released yet."""

        def stepped_on() -> TeleopCommand | None:
            self.pedals["deadman"] = False
            time.sleep(0.3)
            self.pedals["deadman"] = True
            time.sleep(0.3)
            return commands[-1] if commands[-1].deadman else None

        return wait_for(stepped_on)

    def leader_rate(self) -> float:
        """[Hz] at which the leader was published in the last two seconds, on however busy a machine."""
        return sum(at > time.time() - 2.0 for at in self._told) / 2.0

    def press(self, name: str) -> None:
        """Long enough to be noticed."""
        self.pedals[name] = True
        time.sleep(0.15)
        self.pedals[name] = False
        time.sleep(0.15)


def health(diagnostics: list, component: str) -> dict[str, str]:
    """The newest line of the teleop node's diagnostics about ``component``; empty before there is one."""
    found = [
        status for array in diagnostics for status in array.status if status.name == f"teleop: {component}"
    ]
    if not found:
        return {}
    values = {item.key: item.value for item in found[-1].values}
    return {**values, "level": found[-1].level, "message": found[-1].message}


def test_a_leader_drives_and_tells_how_fast_it_is(tmp_path):
    rig = real_rig(tmp_path, LEADER)
    log = tmp_path / "log"
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, log, rig=rig.path):
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        diagnostics = client.collect(DiagnosticArray, "/diagnostics", EVENTS)
        assert client.configure("teleop")
        assert client.activate("teleop")
        with Cell(client.node, rig) as cell:
            wait_for(lambda: len(commands) > 20)
            assert not any(command.deadman for command in commands)
            command = cell.take_over(commands)
            np.testing.assert_allclose(command.positions, [*cell.pose[:7], 0.04])
            assert (command.mode, command.device) == (TeleopCommand.ABSOLUTE, "leader")
            stream = "input leader/joint_states"

            def measured(key: str) -> float:
                return float(health(diagnostics, stream).get(key, "nan"))

            wait_for(lambda: measured("rate_hz") == pytest.approx(cell.leader_rate(), rel=0.2))
            assert 0.0 < measured("jitter_ms") < 1e3
            wait_for(lambda: measured("rate_hz") > 40 and health(diagnostics, stream)["level"] == OK)
            # A leader that is slower than the rate that the commands claim is told of.
            cell.leader_period = 5
            wait_for(lambda: health(diagnostics, stream)["level"] == WARN)
            assert "teleop.rate is 50" in health(diagnostics, stream)["message"]
            # Wrong names: refused by name, and whoever held the arm has let go.
            cell.leader_period, cell.leader_names = 1, ["waist", *cell.leader_names[1:]]
            wait_for(lambda: not commands[-1].deadman)
            wait_for(
                lambda: "['fr3_joint1'] are missing" in health(diagnostics, "device leader")["last_refused"]
            )
    assert "['fr3_joint1'] are missing" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_episode_buttons_reach_the_real_recorder(tmp_path):
    rig = real_rig(tmp_path, LEADER)
    rig = derive_rig(rig, tmp_path / "rig", record={"directory": str(tmp_path / "recordings")})
    log = tmp_path / "log"
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, log, rig=rig.path):
        assert client.configure("teleop")
        assert client.activate("teleop")
        with Cell(client.node, rig) as cell:
            # A busy machine may miss a press: it is repeated until it was heard.
            wait_for(lambda: cell.press("start") or "no recorder answers" in log.read_text())
            with process("vigil.record.node", "record", NAMESPACE, tmp_path / "record", rig=rig.path):
                episodes = client.collect(EpisodeState, "record/episode", LATCHED)
                assert client.configure("record")
                assert client.activate("record")
                wait_for(lambda: cell.press("start") or (episodes and episodes[-1].recording))
                wait_for(lambda: cell.press("mark") or episodes[-1].marks)
                assert episodes[-1].marks[0].startswith("perturbation at ")
                wait_for(lambda: cell.press("success") or episodes[-1].outcome == "success")
                assert episodes[-1].termination_reason == "operator_stop"
                assert not episodes[-1].recording
                # Nothing is open any more: refused, in the recorder's words.
                wait_for(lambda: cell.press("success") or "no episode is open" in log.read_text())
                wait_for(lambda: cell.press("start") or episodes[-1].recording)
                wait_for(lambda: cell.press("discard") or episodes[-1].outcome == "discarded")
    assert "Traceback" not in log.read_text()


def test_a_tracked_person_drives_a_franka(tmp_path):
    section = {
        "device": "body",
        "rate": 50,
        "topic": "tracker/arm",
        "timeout": 0.5,
        "buttons": {"deadman": LEADER["buttons"]["deadman"]},
    }
    rig = real_rig(tmp_path, section)
    log = tmp_path / "log"
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, log, rig=rig.path):
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        diagnostics = client.collect(DiagnosticArray, "/diagnostics", EVENTS)
        tracker = client.node.create_publisher(PoseArray, "tracker/arm", SENSOR)
        assert client.configure("teleop")
        assert client.activate("teleop")
        with Cell(client.node, rig) as cell:
            _, flange = FRANKA.forward(cell.pose[:7])
            poses = PoseArray(
                poses=[Pose(position=Point(x=p[0], y=p[1], z=p[2])) for p in keypoints(cell.pose[:7])]
            )
            x, y, z = rotation_vector(flange)
            angle = np.linalg.norm([x, y, z])
            x, y, z = np.array([x, y, z]) / angle * np.sin(angle / 2)
            poses.poses[2].orientation = Quaternion(x=x, y=y, z=z, w=np.cos(angle / 2))

            def track() -> None:
                poses.header.stamp = to_stamp(time.time_ns())
                tracker.publish(poses)

            timer = client.node.create_timer(0.01, track)
            wait_for(lambda: len(commands) > 20)
            command = cell.take_over(commands)
            np.testing.assert_allclose(command.positions, cell.pose, atol=1e-6)
            poses.poses.pop()
            wait_for(lambda: not commands[-1].deadman)
            wait_for(lambda: "needed are 3" in health(diagnostics, "device body").get("last_refused", ""))
            client.node.destroy_timer(timer)
            wait_for(lambda: "start the tracker" in health(diagnostics, "device body")["message"])
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "section, told",
    [
        ({"device": "gamepad"}, "plug one in"),
        ({"device": "spacemouse"}, "device spacemouse: "),
        (
            {"device": "keyboard", "buttons": {"start": {"input": "/dev/input/none", "code": 48}}},
            "plug it in",
        ),
    ],
)
def test_hardware_that_is_missing_is_told(tmp_path, section, told):
    rig = real_rig(tmp_path, section)
    log = tmp_path / "log"
    master, slave = os.openpty()
    try:
        with (
            graph(NAMESPACE) as client,
            process(MODULE, "teleop", NAMESPACE, log, rig=rig.path, tty=os.ttyname(slave)),
        ):
            assert not client.configure("teleop")
    finally:
        os.close(master)
        os.close(slave)
    assert told in log.read_text()
    assert "Traceback" not in log.read_text()
