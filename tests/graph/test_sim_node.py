"""The simulated cell over real DDS, at the topics that hardware would have."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from vigil_msgs.msg import ControlState, FailureStatus, SimState, TaskState
from vigil_msgs.srv import ResetSim

from support.live_node import graph, process, wait_for
from vigil.node import COMMAND, EVENTS, LATCHED, SENSOR, nanoseconds, to_stamp
from vigil.sim import scene

NAMESPACE = "sim_test"
PERIOD = 10_000_000


@contextmanager
def active_cell(tmp_path, **parameters):
    log = tmp_path / "sim.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.sim.node", "sim", NAMESPACE, log, rig="franka_sim", **parameters),
    ):
        assert test.configure("sim"), log.read_text()
        assert test.activate("sim"), log.read_text()
        yield test, log


def trajectory(positions, seconds: float, names=scene.ARM_JOINTS) -> JointTrajectory:
    point = JointTrajectoryPoint(positions=list(positions), velocities=[0.0] * len(positions))
    point.time_from_start.sec, point.time_from_start.nanosec = divmod(round(seconds * 1e9), 1_000_000_000)
    return JointTrajectory(joint_names=list(names), points=[point])


def columns(message: JointState) -> np.ndarray:
    return np.array([dict(zip(message.name, message.position, strict=True))[name] for name in scene.COLUMNS])


def reset(test, seed: int, perturbation: str = "none", disturbance: float = 0.0) -> ResetSim.Response:
    request = ResetSim.Request(seed=seed, perturbation=perturbation, disturbance=disturbance)
    return test.call(ResetSim, "sim/reset", request)


def test_joint_states_at_100_hz_on_the_wall_clock(tmp_path):
    with active_cell(tmp_path) as (test, _):
        joints = test.collect(JointState, "franka/joint_states", SENSOR)
        states = test.collect(SimState, "sim/state", SENSOR)
        wait_for(lambda: len(joints) > 50, what="joint states")
        first, begun = nanoseconds(joints[-1].header.stamp), time.monotonic()
        wait_for(lambda: nanoseconds(joints[-1].header.stamp) > first + 2_000_000_000, what="two seconds")
        # By stamps: simulated time keeps pace with the wall, in steps of one period.
        rate = (nanoseconds(joints[-1].header.stamp) - first) / PERIOD / (time.monotonic() - begun)
        assert rate == pytest.approx(100.0, rel=0.15)
        stamps = np.array([nanoseconds(m.header.stamp) for m in joints])
        steps = np.diff(stamps)
        assert np.all(steps % PERIOD == 0) and np.median(steps) == PERIOD
        assert abs(time.time_ns() - stamps[-1]) < 500_000_000
        message = joints[-1]
        assert len(message.position) == len(message.velocity) == len(message.effort) == 8
        np.testing.assert_allclose(columns(message)[:7], scene.HOME, atol=1e-3)
        assert len(states[-1].qpos) == 22 and len(states[-1].qvel) == 21


def test_controllers_move_the_arm_and_refuse_what_is_broken(tmp_path):
    with active_cell(tmp_path) as (test, log):
        joints = test.collect(JointState, "franka/joint_states", SENSOR)
        node = test.node
        follow = node.create_publisher(JointTrajectory, "franka/fr3_arm_controller/joint_trajectory", COMMAND)
        forward = node.create_publisher(
            Float64MultiArray, "franka/forward_position_controller/commands", COMMAND
        )
        gripper = node.create_publisher(Float64MultiArray, "franka/gripper_controller/commands", COMMAND)
        wait_for(
            lambda: joints and min(p.get_subscription_count() for p in (follow, forward, gripper)),
            what="graph",
        )

        def arrived(goal) -> bool:
            return np.abs(columns(joints[-1])[:7] - goal).max() < 0.005

        goal = scene.HOME + np.array([0.2, 0, 0, 0, 0, 0, -0.2])
        order = list(reversed(range(7)))
        follow.publish(trajectory(goal[order], 0.5, [scene.ARM_JOINTS[i] for i in order]))
        wait_for(lambda: arrived(goal), what="the trajectory's end")
        forward.publish(Float64MultiArray(data=list(goal + 0.02)))
        wait_for(lambda: arrived(goal + 0.02), what="the forward command")
        gripper.publish(Float64MultiArray(data=[0.03]))
        wait_for(lambda: abs(columns(joints[-1])[7] - 0.03) < 0.005, what="the gripper")

        broken = goal.copy()
        broken[2] = np.nan
        for reason, publish in {
            "not finite": lambda: follow.publish(trajectory(broken, 0.5)),
            "exactly once": lambda: follow.publish(trajectory(goal, 0.5, ["a", *scene.ARM_JOINTS[1:]])),
            "expected 7": lambda: forward.publish(Float64MultiArray(data=[0.0] * 6)),
            "expected 1": lambda: gripper.publish(Float64MultiArray(data=[])),
        }.items():
            publish()
            wait_for(lambda reason=reason: reason in log.read_text(), what=f"warning: {reason}")
            time.sleep(1.0)  # warnings are throttled to one a second
        assert arrived(goal + 0.02)
        assert abs(columns(joints[-1])[7] - 0.03) < 0.005


def test_a_new_scene_is_made_on_request(tmp_path):
    with active_cell(tmp_path) as (test, _):
        states = test.collect(SimState, "sim/state", SENSOR)
        tasks = test.collect(TaskState, "sim/task", EVENTS)
        made = reset(test, 5, "unreachable")
        assert made.success
        wait_for(lambda: states and states[-1].scene == made.scene, what="the new scene")
        wait_for(lambda: tasks and tasks[-1].scene == made.scene, what="its task")
        assert tasks[-1].perturbation == "unreachable" and tasks[-1].perturbation_active
        assert np.hypot(*states[-1].qpos[15:17]) > 0.8
        unknown = reset(test, 6, "earthquake")
        assert not unknown.success and unknown.scene == made.scene and "object_moved" in unknown.message
        assert not reset(test, 6, "none", 1.0).success
        lit = reset(test, 7, "lighting")
        wait_for(lambda: states[-1].scene == lit.scene and states[-1].appearance, what="the lamp to change")
        assert any(text.startswith("light=") for text in states[-1].appearance)


class Participant:
    """Reports on an instant only when it is told to."""

    def __init__(self, node, kind, topic, qos) -> None:
        self._kind, self._publisher = kind, node.create_publisher(kind, topic, qos)

    def report(self, stamp: int) -> None:
        message = self._kind()
        message.header.stamp = to_stamp(stamp)
        self._publisher.publish(message)

    @property
    def heard(self) -> bool:
        return self._publisher.get_subscription_count() > 0


def test_lock_step_waits_for_every_participant(tmp_path):
    with active_cell(tmp_path, lockstep=True, use_sim_time=True, participants="[arm, policy]") as (test, _):
        clocks = test.collect(Clock, "/clock", EVENTS)
        arm = Participant(test.node, ControlState, "arm/state", LATCHED)
        policy = Participant(test.node, FailureStatus, "monitor/status", EVENTS)
        wait_for(lambda: arm.heard and policy.heard and clocks, what="graph")

        def now() -> int:
            return nanoseconds(clocks[-1].clock)

        def waits() -> bool:
            held = now()
            time.sleep(0.1)
            return now() == held

        # Alone it runs at the pace of the wall; with the first report of each it waits.
        policy.report(now())
        arm.report(now())
        wait_for(waits, what="time stands still")
        policy_period = 20 * PERIOD
        reached = []
        for _ in range(60):
            held = now()
            arm.report(held)
            if held % policy_period == 0:
                time.sleep(0.1)
                assert now() == held, "the policy has not reported"
                policy.report(held)
                reached.append(held)
            wait_for(lambda held=held: now() > held, what=f"the step after {held}")
            assert now() == held + PERIOD
        assert len(reached) >= 2
        held = now()
        time.sleep(0.5)
        assert now() == held, "the arm has not reported"
        assert sum(nanoseconds(c.clock) == held for c in clocks) >= 2, "an instant that waits is told again"


def test_lock_step_goes_on_with_the_report_and_not_with_the_wall(tmp_path):
    with active_cell(tmp_path, lockstep=True, use_sim_time=True, participants="[arm]") as (test, _):
        arm = Participant(test.node, ControlState, "arm/state", LATCHED)
        seen, came = [], []

        def answer(message: JointState) -> None:
            seen.append(nanoseconds(message.header.stamp))
            came.append(time.monotonic_ns())
            arm.report(seen[-1])

        test.node.create_subscription(JointState, "franka/joint_states", answer, SENSOR)
        wait_for(lambda: len(seen) > 20, what="the first steps")
        first = seen[-1]
        wait_for(lambda: seen[-1] - first > 3_000_000_000, what="three simulated seconds")
        assert np.all(np.diff(sorted(set(seen))) == PERIOD)
        # However busy the machine, some of 300 steps came sooner than the wall would have had them.
        assert np.quantile(np.diff(came)[20:], 0.05) < PERIOD / 2


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"rig": "nonsense"}, "unknown rig"),
        ({"rig": "franka_sim", "lockstep": True}, "use_sim_time"),
        ({"rig": "franka_sim", "participants": "[arm, ghost]"}, "ghost"),
    ],
)
def test_bad_parameters_refuse_to_configure(tmp_path, parameters, reason):
    log = tmp_path / "sim.log"
    with graph(NAMESPACE) as test, process("vigil.sim.node", "sim", NAMESPACE, log, **parameters):
        assert not test.configure("sim")
        wait_for(partial(lambda text: text in log.read_text(), reason), what=reason)
        assert "Traceback" not in log.read_text()
