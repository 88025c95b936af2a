"""Sends plans to the drivers of a rig's robots, hears their faults, and asks them to recover.

Message packages of vendors are imported when a rig file asks for them, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.task import Future
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vigil.arm.adapters.faults import FRANKA_STOPPED, DiagnosticFaults, Report, franka_fault
from vigil.arm.adapters.gripper_goals import Goal, GripperGoals
from vigil.arm.adapters.interbotix import Group, JointGroup, JointSingle, Single
from vigil.arm.adapters.plan import Plan
from vigil.arm.adapters.ros2_control import Forward, ForwardGripper, ForwardPosition, Trajectory
from vigil.arm.adapters.ros2_control import JointTrajectory as TrajectoryAdapter
from vigil.node import COMMAND, EVENTS, NEWEST, VigilNode, interfaces, to_stamp
from vigil.rig import ArmConfig

RECOVERY_LIMIT = 15.0
"""[s] A recovery that is not answered by then is given up, and said to be."""
OnFault = Callable[[str, str], None]
"""Called with an arm's name and its fault in words, empty once it is over."""


class Hardware:
    """Everything between the arm node and the drivers.

    Args:
        node: publishes and listens; what is made here lives until its tear-down.
        on_fault: told what robots report.
    """

    def __init__(self, node: VigilNode, on_fault: OnFault) -> None:
        self._node, self._on_fault = node, on_fault
        self._outlets: list[Callable[[Plan], None]] = []
        self._grippers: list[ActionGripper] = []
        self._recoveries: dict[str, Recovery] = {}
        for arm, columns in node.rig.parts:
            self._add_joints(arm, columns)
            self._add_gripper(arm, columns)
            self._watch(arm)
            if arm.recovery is not None:
                self._recoveries[arm.name] = RECOVERIES[arm.recovery](node, arm)
        reporting = [arm for arm in node.rig.arms if arm.diagnostics]
        self._diagnostics = {arm.name: DiagnosticFaults(arm) for arm in reporting}
        if reporting:
            node.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, EVENTS)

    def send(self, plan: Plan, measured: np.ndarray, now: int) -> None:
        """Command all arms and grippers; ``measured`` [N] is the newest pose, ``now`` in ns."""
        for outlet in self._outlets:
            outlet(plan)
        for gripper in self._grippers:
            gripper.send(plan, measured, now)

    async def recover(self, faults: dict[str, str]) -> str:
        """Ask every robot with a fault to recover; in words why not, empty if all did."""
        if not faults:
            return "no robot reports a fault"
        for arm in faults:
            recovery = self._recoveries.get(arm)
            if recovery is None:
                return f"{arm} has no `recovery` in the rig file: clear its fault at the robot"
            if refusal := await recovery.run():
                return f"{arm}: {refusal}"
        return ""

    def close(self) -> None:
        """Release what the node does not release by itself."""
        for gripper in self._grippers:
            gripper.close()
        for recovery in self._recoveries.values():
            recovery.close()

    # Joints and grippers ----------------------------------------------------------------------------------------

    def _add_joints(self, arm: ArmConfig, columns: slice) -> None:
        if arm.controller_type == "joint_trajectory":
            self._publish(TrajectoryAdapter(arm, columns), JointTrajectory, _write_trajectory)
        elif arm.controller_type == "forward_position":
            self._publish(ForwardPosition(arm, columns), Float64MultiArray, _write_forward)
        else:
            messages = interfaces("interbotix_xs_msgs", "msg", f"arm {arm.name}: controller_type interbotix")
            self._publish(JointGroup(arm, columns), messages.JointGroupCommand, _write_group)

    def _add_gripper(self, arm: ArmConfig, columns: slice) -> None:
        kind = arm.gripper.controller_type
        if kind == "forward_position":
            self._publish(ForwardGripper(arm, columns), Float64MultiArray, _write_forward)
        elif kind == "interbotix":
            messages = interfaces(
                "interbotix_xs_msgs", "msg", f"arm {arm.name}: gripper.controller_type interbotix"
            )
            self._publish(JointSingle(arm, columns), messages.JointSingleCommand, _write_single)
        else:
            self._grippers.append(GRIPPERS[kind](self._node, arm, columns))

    def _publish(self, adapter: Any, kind: type, write: Callable[[Any, Any], Any]) -> None:
        publisher, message = self._node.advertise(kind, adapter.topic, COMMAND), kind()
        self._outlets.append(lambda plan: publisher.publish(write(message, adapter.commands(plan))))

    # Faults -----------------------------------------------------------------------------------------------------

    def _watch(self, arm: ArmConfig) -> None:
        if arm.recovery == "franka":
            messages = interfaces("franka_msgs", "msg", f"arm {arm.name}: recovery franka")
            topic = f"{arm.name}/franka_robot_state_broadcaster/robot_state"
            # Sent a thousand times a second: read when the arm is told where to go.
            self._node.inbox.listen(
                messages.FrankaRobotState, topic, partial(self._on_franka_state, arm.name), NEWEST
            )

    def _on_franka_state(self, arm: str, message: Any) -> None:
        named = []
        if message.robot_mode in FRANKA_STOPPED:  # a hundred times a second: only then they are looked at
            errors = message.current_errors
            named = [name for name in errors.get_fields_and_field_types() if getattr(errors, name)]
        self._on_fault(arm, franka_fault(message.robot_mode, named))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        failed = (DiagnosticStatus.ERROR, DiagnosticStatus.STALE)
        reports = [Report(s.name, s.level in failed, s.message) for s in message.status]
        for arm, faults in self._diagnostics.items():
            if (fault := faults.update(reports)) is not None:
                self._on_fault(arm, fault)


# Writing of messages; each is made once and filled anew ------------------------------------------------------------


def _write_trajectory(message: JointTrajectory, command: Trajectory) -> JointTrajectory:
    message.header.stamp = to_stamp(command.stamp)
    if len(message.points) != len(command.points):
        message.joint_names = list(command.joint_names)
        message.points = [JointTrajectoryPoint() for _ in command.points]
    for point, planned in zip(message.points, command.points, strict=True):
        point.positions, point.velocities = planned.positions, planned.velocities
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(planned.ahead, 1_000_000_000)
    return message


def _write_forward(message: Float64MultiArray, command: Forward) -> Float64MultiArray:
    message.data = command.data
    return message


def _write_group(message: Any, command: Group) -> Any:
    message.name, message.cmd = command.name, command.values
    return message


def _write_single(message: Any, command: Single) -> Any:
    message.name, message.cmd = command.name, command.value
    return message


# Grippers that are driven by actions -------------------------------------------------------------------------------


class ActionGripper:
    """Sends a gripper's goals, one after the other."""

    def __init__(self, node: VigilNode, arm: ArmConfig, columns: slice, interruptible: bool) -> None:
        self._goals = GripperGoals(arm, columns, interruptible)
        self._column = columns.stop - 1
        self._node = node
        self._sent = 0  # goals so far: only the newest one's end counts
        self._clients: list[ActionClient] = []

    def client(self, kind: type, name: str) -> ActionClient:
        """An action client that ends with this gripper."""
        self._clients.append(ActionClient(self._node, kind, name))
        return self._clients[-1]

    def request(self, goal: Goal) -> tuple[ActionClient, Any]:
        """The action to send for a goal."""
        raise NotImplementedError

    def send(self, plan: Plan, measured: np.ndarray, now: int) -> None:
        """Send a goal if one is due; never waits."""
        goal = self._goals.due(plan, float(measured[self._column]), now)
        if goal is None:
            return
        client, request = self.request(goal)
        if not client.server_is_ready():
            self._goals.refused()
            return
        self._sent += 1
        client.send_goal_async(request).add_done_callback(partial(self._on_answer, self._sent))

    def _on_answer(self, number: int, answer: Future) -> None:
        handle = answer.result()
        if handle is None or not handle.accepted:
            if number == self._sent:
                self._goals.refused()
            return
        handle.get_result_async().add_done_callback(partial(self._on_end, number))

    def _on_end(self, number: int, result: Future) -> None:
        if number == self._sent:
            self._goals.done()

    def close(self) -> None:
        """End the action clients."""
        for client in self._clients:
            client.destroy()


class CommandGripper(ActionGripper):
    """``control_msgs/GripperCommand``, as ros2_control's gripper controllers take it; a new goal replaces the last."""

    def __init__(self, node: VigilNode, arm: ArmConfig, columns: slice) -> None:
        super().__init__(node, arm, columns, interruptible=True)
        self._kind = interfaces("control_msgs", "action", f"arm {arm.name}: gripper_command").GripperCommand
        self._action = self.client(self._kind, f"{arm.name}/{arm.gripper.controller}/gripper_cmd")

    def request(self, goal: Goal) -> tuple[ActionClient, Any]:
        request = self._kind.Goal()
        request.command.position, request.command.max_effort = goal.width, goal.force
        return self._action, request


class FrankaGripper(ActionGripper):
    """The Franka Hand's move and grasp actions; it does one thing at a time."""

    def __init__(self, node: VigilNode, arm: ArmConfig, columns: slice) -> None:
        super().__init__(node, arm, columns, interruptible=False)
        actions = interfaces("franka_msgs", "action", f"arm {arm.name}: gripper.controller_type franka")
        self._move_kind, self._grasp_kind = actions.Move, actions.Grasp
        base = f"{arm.name}/{arm.gripper.controller}"
        self._move = self.client(self._move_kind, f"{base}/move")
        self._grasp = self.client(self._grasp_kind, f"{base}/grasp")
        limits = arm.gripper.limits
        self._range = limits.upper - limits.lower

    def request(self, goal: Goal) -> tuple[ActionClient, Any]:
        if not goal.grasp:
            return self._move, self._move_kind.Goal(width=goal.width, speed=goal.speed)
        request = self._grasp_kind.Goal(width=goal.width, speed=goal.speed, force=goal.force)
        # Whatever is between the fingers is what is to be grasped: its size is not known.
        request.epsilon.inner = request.epsilon.outer = self._range
        return self._grasp, request


GRIPPERS: dict[str, type[ActionGripper]] = {"gripper_command": CommandGripper, "franka": FrankaGripper}


# Recovery ----------------------------------------------------------------------------------------------------------


class Recovery:
    """Asks one robot to recover; never waits longer than `RECOVERY_LIMIT`."""

    def __init__(self, node: VigilNode, arm: ArmConfig) -> None:
        self.node, self.arm = node, arm

    async def run(self) -> str:
        """In words why the robot did not recover; empty if it did."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what was made."""

    async def within_limit(self, answer: Future) -> Any:
        """The result of ``answer``; None if it does not come in time."""
        node, first = self.node, Future(executor=self.node.executor)

        def settle(result: Any) -> None:
            if not first.done():
                first.set_result(result)

        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = node.create_timer(RECOVERY_LIMIT, lambda: settle(None), clock=clock)
        answer.add_done_callback(lambda done: settle(done.result()))
        try:
            return await first
        finally:
            node.destroy_timer(timer)


class FrankaRecovery(Recovery):
    """``franka_msgs/ErrorRecovery``: clears a reflex."""

    def __init__(self, node: VigilNode, arm: ArmConfig) -> None:
        super().__init__(node, arm)
        self._kind = interfaces("franka_msgs", "action", f"arm {arm.name}: recovery franka").ErrorRecovery
        self._name = f"{arm.name}/action_server/error_recovery"
        self._client = ActionClient(node, self._kind, self._name)

    async def run(self) -> str:
        if not self._client.server_is_ready():
            return f"nobody serves the action {self._name}: is franka_ros2 running?"
        handle = await self.within_limit(self._client.send_goal_async(self._kind.Goal()))
        if handle is None or not handle.accepted:
            return f"{self._name} {'did not answer' if handle is None else 'refused'}"
        result = await self.within_limit(handle.get_result_async())
        if result is None:
            return f"{self._name} gave no result within {RECOVERY_LIMIT:g} s"
        succeeded = 4  # action_msgs/GoalStatus
        return "" if result.status == succeeded else f"{self._name} ended with status {result.status}"

    def close(self) -> None:
        self._client.destroy()


class InterbotixRecovery(Recovery):
    """``interbotix_xs_msgs/Reboot``: restarts the motors that report an error, and switches their torque on."""

    def __init__(self, node: VigilNode, arm: ArmConfig) -> None:
        super().__init__(node, arm)
        self._kind = interfaces("interbotix_xs_msgs", "srv", f"arm {arm.name}: recovery interbotix").Reboot
        self._name = f"{arm.name}/reboot_motors"
        self._client = node.create_client(self._kind, self._name)

    async def run(self) -> str:
        if not self._client.service_is_ready():
            return f"nobody serves {self._name}: is the driver running?"
        request = self._kind.Request(cmd_type="group", name="all", enable=True, smart_reboot=True)
        answer = await self.within_limit(self._client.call_async(request))
        return "" if answer is not None else f"{self._name} gave no answer within {RECOVERY_LIMIT:g} s"

    def close(self) -> None:
        self.node.destroy_client(self._client)


RECOVERIES: dict[str, type[Recovery]] = {"franka": FrankaRecovery, "interbotix": InterbotixRecovery}
