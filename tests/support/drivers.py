"""Drivers of robots as vendors ship them, over robots that go where they are told: run as a process.

    python -m support.drivers --ros-args -r __ns:=/NAMESPACE -p rig:=RIG

They speak the vendors' own messages, and tell on ``seen`` (std_msgs/String) what they were asked.
"""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import rclpy
from rclpy.action import ActionServer
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from trajectory_msgs.msg import JointTrajectory

from vigil.errors import VigilError
from vigil.inbox.node import Inbox
from vigil.joints import gripper_joint, raw_width, width_of
from vigil.node import COMMAND, LATCHED, SENSOR, nanoseconds
from vigil.rig import ArmConfig, RigConfig, load_rig
from vigil.sim.controllers import JointTrajectoryController, Point

RATE = 100.0  # Hz


class Driver(Node):
    """What both have in common: joint states, and a diary."""

    def __init__(self, rig: RigConfig) -> None:
        super().__init__("drivers")
        self.rig = rig
        self.group = ReentrantCallbackGroup()
        self._seen = self.create_publisher(String, "seen", 100)
        # An executor of several threads, which actions need, takes a whole core for commands at 100 Hz.
        self.inbox = Inbox(self)
        self.create_timer(1.0 / RATE, self._tick, callback_group=MutuallyExclusiveCallbackGroup())

    def _tick(self) -> None:
        self.inbox.fetch()
        self.publish()

    def saw(self, text: str) -> None:
        self._seen.publish(String(data=text))

    def publish(self) -> None:
        raise NotImplementedError

    def states(self, names: list[str], positions: list[float]) -> JointState:
        message = JointState(name=names, position=[float(p) for p in positions])
        message.header.stamp = self.get_clock().now().to_msg()
        return message


class Follower:
    """One ViperX: joints and gripper take the last command."""

    def __init__(self, driver: Driver, arm: ArmConfig) -> None:
        from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
        from interbotix_xs_msgs.srv import Reboot

        self.arm, self._driver = arm, driver
        self.joints = [arm.home[name] for name in arm.joints]
        self.gripper = raw_width(arm.gripper, arm.home[arm.gripper.name])
        topic = f"{arm.name}/commands"
        driver.inbox.listen(JointGroupCommand, f"{topic}/joint_group", self._on_group, COMMAND)
        driver.inbox.listen(JointSingleCommand, f"{topic}/joint_single", self._on_single, COMMAND)
        driver.create_service(Reboot, f"{arm.name}/reboot_motors", self._on_reboot)
        self.topic = driver.create_publisher(JointState, f"{arm.name}/joint_states", SENSOR)

    def _on_group(self, message) -> None:
        assert message.name == "arm" and len(message.cmd) == len(self.joints), message
        self.joints = list(message.cmd)

    def _on_single(self, message) -> None:
        assert message.name == gripper_joint(self.arm), message
        self.gripper = message.cmd

    def _on_reboot(self, request, response):
        self._driver.saw(f"{self.arm.name} reboot {request.cmd_type} {request.name} {request.smart_reboot}")
        return response


class Aloha(Driver):
    def __init__(self, rig: RigConfig) -> None:
        super().__init__(rig)
        self._followers = [Follower(self, arm) for arm in self.rig.arms]

    def publish(self) -> None:
        for follower in self._followers:
            # As the driver orders them: fingers, which the rig does not know, come last.
            names = [*follower.arm.joints, "gripper", "left_finger", "right_finger"]
            positions = [*follower.joints, follower.gripper, 0.05, -0.05]
            follower.topic.publish(self.states(names, positions))


class Franka(Driver):
    """A trajectory controller, a hand that needs time for its actions, and a robot that can have a reflex."""

    def __init__(self, rig: RigConfig) -> None:
        from franka_msgs.action import ErrorRecovery, Grasp, Move
        from franka_msgs.msg import FrankaRobotState

        super().__init__(rig)
        self._moved, self._grasped, self._recovered = Move.Result, Grasp.Result, ErrorRecovery.Result
        arm = self.arm = self.rig.arm
        self._lock = threading.Lock()
        self._controller = JointTrajectoryController(
            tuple(arm.joints), [arm.home[name] for name in arm.joints]
        )
        self._width = arm.home[arm.gripper.name]
        self._reflex = False
        self._busy = threading.Lock()
        self._stopped_at: np.ndarray | None = None
        self._states = self.create_publisher(JointState, f"{arm.name}/joint_states", SENSOR)
        self._fingers = self.create_publisher(JointState, arm.gripper.joint_states, SENSOR)
        self._robot_state = self.create_publisher(
            FrankaRobotState, f"{arm.name}/franka_robot_state_broadcaster/robot_state", SENSOR
        )
        self._state = FrankaRobotState()
        self.inbox.listen(
            JointTrajectory, f"{arm.name}/{arm.controller}/joint_trajectory", self._on_trajectory, COMMAND
        )
        self.create_subscription(Bool, "reflex", self._on_reflex, LATCHED)
        hand = f"{arm.name}/{arm.gripper.controller}"
        options = {"callback_group": self.group}
        self._servers = [
            ActionServer(self, Move, f"{hand}/move", self._move, **options),
            ActionServer(self, Grasp, f"{hand}/grasp", self._grasp, **options),
            ActionServer(
                self, ErrorRecovery, f"{arm.name}/action_server/error_recovery", self._recover, **options
            ),
        ]

    def _on_trajectory(self, message: JointTrajectory) -> None:
        points = [
            Point(p.time_from_start.sec * 10**9 + p.time_from_start.nanosec, p.positions, p.velocities)
            for p in message.points
        ]
        try:
            with self._lock:
                self._controller.accept(
                    message.joint_names, points, nanoseconds(message.header.stamp), time.time_ns()
                )
        except VigilError as error:  # as the real controllers: refused and told; the one before goes on
            self.get_logger().error(f"trajectory refused: {error}")

    def _on_reflex(self, message: Bool) -> None:
        with self._lock:
            self._reflex = message.data
            self._stopped_at = self._controller.sample(time.time_ns())[0] if message.data else None

    def _move(self, handle):
        self._do(handle, f"move {handle.request.width:.3f}")
        return self._moved(success=True)

    def _grasp(self, handle):
        request = handle.request
        assert request.epsilon.outer > 0.05, "whatever lies between the fingers is grasped"
        self._do(handle, f"grasp {request.width:.3f} {request.force:g} N")
        return self._grasped(success=True)

    def _do(self, handle, what: str) -> None:
        assert self._busy.acquire(blocking=False), "the hand does one thing at a time"
        self.saw(what)
        way = handle.request.width - self._width
        steps = max(round(abs(way) / handle.request.speed * RATE), 1)
        for _ in range(steps):
            time.sleep(1.0 / RATE)
            self._width += way / steps
        self._busy.release()
        handle.succeed()

    def _recover(self, handle):
        self.saw("error_recovery")
        with self._lock:
            if self._stopped_at is not None:
                self._controller.hold(self._stopped_at)
            self._reflex, self._stopped_at = False, None
        handle.succeed()
        return self._recovered()

    def publish(self) -> None:
        with self._lock:
            stopped = self._stopped_at
            position = self._controller.sample(time.time_ns())[0] if stopped is None else stopped
            reflex = self._reflex
        self._states.publish(self.states(list(self.arm.joints), list(position)))
        factor, offset = width_of(self.arm.gripper)
        finger = (self._width - offset) / factor
        self._fingers.publish(self.states(["fr3_finger_joint1", "fr3_finger_joint2"], [finger, finger]))
        self._state.robot_mode = 4 if reflex else 2
        self._state.current_errors.joint_reflex = reflex
        self._robot_state.publish(self._state)


def main() -> None:
    rclpy.init()
    asked = Node("drivers")
    rig = load_rig(asked.declare_parameter("rig", "").value)
    asked.destroy_node()
    node = {"interbotix": Aloha, "joint_trajectory": Franka}[rig.arms[0].controller_type](rig)
    executor = MultiThreadedExecutor(4)
    executor.add_node(node)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()


if __name__ == "__main__":
    main()
