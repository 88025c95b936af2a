"""The arm node: takes chunks, verdicts and operator commands, moves the arm, tells who controls it."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import QoSLivelinessChangedInfo, SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Bool, Empty, Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from vigil_msgs.msg import ActionChunk, ControlState, FailureStatus, TeleopCommand

from vigil.arm.adapters.plan import Plan
from vigil.arm.adapters.ros2_control import Command, Trajectory, adapters
from vigil.arm.authority import Authority
from vigil.arm.clutch import OperatorCommand
from vigil.arm.columns import Refused
from vigil.arm.controller import Answer, ArmController
from vigil.arm.loop_statistics import LoopStatistics
from vigil.arm.tracking import Chunk
from vigil.bringup import node_specs
from vigil.errors import VigilError
from vigil.node import (
    COMMAND,
    EVENTS,
    LATCHED,
    NEWEST,
    OK,
    WARN,
    Health,
    SpinThread,
    VigilNode,
    heartbeat,
    nanoseconds,
    spin_node,
    to_stamp,
)
from vigil.scheduling import ask_for_priority, settle_memory

REQUESTS = ("engage", "hold", "hand_back", "estop", "reset")


def _floats(values: np.ndarray) -> array:
    """[N] as the array type that a message takes over whole."""
    return array("d", values.tobytes())


class ArmNode(VigilNode):
    """Runs one `ArmController`: on a timer in real time, on every joint state in lock step."""

    priority = "ordinary priority"

    def __init__(self) -> None:
        super().__init__("arm")
        self.declare_parameter("speed", 1.0)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._controller: ArmController | None = None
        self._stack: StackWatch | None = None

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        rig = self.rig
        self._controller = ArmController(rig, lockstep=self.lockstep)
        try:
            self._controller.envelope.slow_down(self.get_parameter("speed").value)
        except Refused as error:
            raise VigilError(str(error)) from None
        self._loop = LoopStatistics(self._controller.period)
        self._last_tick = 0
        self._latency = round(rig.sim.latency * 1e9) if self.lockstep else 0
        self._on_its_way: deque[Chunk] = deque()
        self._state = ControlState(names=list(self._controller.columns.names))
        self._published_transition = -1
        self._state_publisher = self.advertise(ControlState, "arm/state", LATCHED)
        self._outlets = []
        for adapter in adapters(rig.arm):
            kind = JointTrajectory if adapter.topic.endswith("joint_trajectory") else Float64MultiArray
            self._outlets.append((adapter, self.advertise(kind, adapter.topic, COMMAND)))
        self._trajectory = JointTrajectory(joint_names=list(rig.arm.joints))
        self._values = Float64MultiArray()

        # What is read at every tick waits for it.
        listen = self.listen if self.lockstep else self.inbox.listen
        listen(JointState, f"{rig.arm.name}/joint_states", self._on_joint_states, NEWEST)
        self.listen(ActionChunk, "policy/chunk", self._on_chunk, COMMAND)
        self.listen(TeleopCommand, "teleop/command", self._on_operator, NEWEST)
        if rig.monitor.level != "none":
            self.listen(FailureStatus, "monitor/status", self._on_monitor, EVENTS)
        if self._controller.inputs.estop is not None:
            self.listen(Bool, "estop/released", self._on_estop_button, NEWEST)
        for request in REQUESTS:
            self.serve(Trigger, f"arm/{request}", partial(self._on_request, request))
        if not self.lockstep:
            self._watch_the_stack()

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """``speed``: a running arm is slowed down at once, and not made faster."""
        for parameter in parameters:
            if parameter.name == "speed" and self._controller is not None:
                try:
                    self._controller.envelope.slow_down(float(parameter.value))
                except (Refused, TypeError, ValueError) as error:
                    return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _watch_the_stack(self) -> None:
        for camera in self.rig.cameras:
            self.inbox.listen(
                CameraInfo,
                f"{camera.name}/color/camera_info",
                partial(self._on_camera, camera.name),
                NEWEST,
                raw=True,
            )
        names = [spec.name for spec in node_specs(self.rig) if spec.name != self.get_name()]
        self._stack_changed = self.create_guard_condition(self._on_stack_changed)
        self._stack = StackWatch(self, names, self.rig.watchdogs.node, self._stack_changed.trigger)

    def start(self) -> None:
        self._loop.restart()
        settle_memory()
        if not self.lockstep:
            # A steady clock: a correction of the system time must not stretch or repeat a period.
            clock = Clock(clock_type=ClockType.STEADY_TIME)
            self._timer = self.create_timer(self._controller.period, self._on_timer, clock=clock)
        self._publish_state(self._instant())

    def stop(self) -> None:
        if not self.lockstep:
            self.destroy_timer(self._timer)
        self._controller.abandon(self._instant())
        self._publish_state(self._instant())

    def teardown(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self.destroy_guard_condition(self._stack_changed)
            self._stack = None
        self._controller = None

    # Inputs ---------------------------------------------------------------------------------------------------

    def _instant(self) -> int:
        """Now [ns]. In lock step that is the tick under way: the clock's own message may lag behind it."""
        return self._last_tick if self.lockstep and self._last_tick else self.now()

    def _on_joint_states(self, message: JointState) -> None:
        if not self.active:
            return
        stamp = nanoseconds(message.header.stamp)
        now = stamp if self.lockstep else self.now()
        if self.lockstep and stamp == self._last_tick:
            self._publish_state(now)  # asked again: the answer was lost, the step was done
            return
        changed = self._controller.on_joint_states(stamp, message.name, message.position, now)
        if self.lockstep:
            self._take_arrived(now)
            self._tick(now)
        else:
            self._react(changed, now)

    def _on_chunk(self, message: ActionChunk) -> None:
        if not self.active:
            return
        chunk = Chunk(
            nanoseconds(message.header.stamp),
            tuple(message.names),
            message.step_dt,
            message.horizon,
            np.asarray(message.positions),
        )
        if self._latency:
            self._on_its_way.append(chunk)
        else:
            self._take(chunk, self._instant())

    def _take(self, chunk: Chunk, now: int) -> None:
        self._react(self._controller.on_chunk(chunk, now), now)

    def _take_arrived(self, now: int) -> None:
        """Lock step with latency: chunks that have been on their way for long enough."""
        while self._on_its_way and now >= self._on_its_way[0].stamp + self._latency:
            self._take(self._on_its_way.popleft(), now)

    def _on_monitor(self, message: FailureStatus) -> None:
        if not self.active:
            return
        now = self._instant()
        stamp = nanoseconds(message.header.stamp)
        self._react(
            self._controller.on_monitor(stamp, message.verdict_name, message.alarm, message.reason, now), now
        )

    def _on_operator(self, message: TeleopCommand) -> None:
        if not self.active:
            return
        now = self._instant()
        command = OperatorCommand(
            nanoseconds(message.header.stamp),
            message.deadman,
            message.mode,
            tuple(message.names),
            np.asarray(message.positions),
            message.request_hand_back,
        )
        self._react(self._controller.on_operator(command, now), now)

    def _on_estop_button(self, message: Bool) -> None:
        if self.active:
            now = self.now()
            self._react(self._controller.on_estop_button(message.data, now), now)

    def _on_camera(self, name: str, _: bytes) -> None:
        if self.active:
            self._controller.on_camera(name, self.now())

    def _on_stack_changed(self) -> None:
        """Processes of the stack came or went; taken before activation too, as each is told only once."""
        now = self.now()
        while self._stack.changes:
            changed = self._controller.on_node(*self._stack.changes.popleft(), now)
            if self.active:
                self._react(changed, now)

    def _on_request(self, name: str, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        now = self._instant()
        answer = (
            getattr(self._controller, name)(now)
            if self.active
            else Answer(False, f"{name} refused: the arm node is not active")
        )
        response.success, response.message = answer.granted, answer.message
        if self.active:
            self._react(True, now)
        return response

    # Outputs --------------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self.inbox.fetch()
        self._tick(self.now())

    def _tick(self, now: int) -> None:
        self._loop.tick(time.monotonic_ns())
        self._last_tick = now
        plan = self._controller.tick(now)
        if plan is not None:
            self._send(plan)
        self._publish_state(now)

    def _react(self, changed: bool, now: int) -> None:
        """Between two ticks: tell at once that the authority changed, and begin a stop without waiting."""
        if not changed:
            return
        plan = self._controller.stop_now(now)
        if plan is not None:
            self._send(plan)
        self._publish_state(now)

    def _send(self, plan: Plan) -> None:
        for adapter, publisher in self._outlets:
            publisher.publish(self._message(adapter.commands(plan)))

    def _message(self, command: Command) -> JointTrajectory | Float64MultiArray:
        if not isinstance(command, Trajectory):
            self._values.data = command.data
            return self._values
        message = self._trajectory
        message.header.stamp = to_stamp(command.stamp)
        if len(message.points) != len(command.points):
            message.points = [JointTrajectoryPoint() for _ in command.points]
        for point, planned in zip(message.points, command.points, strict=True):
            point.positions, point.velocities = planned.positions, planned.velocities
            point.time_from_start.sec, point.time_from_start.nanosec = divmod(planned.ahead, 1_000_000_000)
        return message

    def _publish_state(self, now: int) -> None:
        controller, loop, state = self._controller, self._loop, self._state
        last = controller.machine.last
        state.header.stamp = to_stamp(now)
        if last.count != self._published_transition:
            self._published_transition = last.count
            state.authority, state.authority_name = int(last.target), last.target.name
            state.transition, state.event, state.reason = last.count, last.event, last.reason
            state.event_stamp, state.transition_stamp = to_stamp(last.event_stamp), to_stamp(last.stamp)
            self.get_logger().info(f"{last.target.name}: {last.reason}")
        state.first_command_stamp = to_stamp(controller.first_command)
        state.first_step = _floats(controller.first_step)
        state.commanded = _floats(controller.commanded)
        state.measured = _floats(controller.feedback.position)
        state.ready, state.blocked_by = not controller.blocked_by, controller.blocked_by
        state.period_mean, state.period_p99, state.missed_deadlines = loop.mean, loop.p99, loop.missed
        self._state_publisher.publish(state)

    def diagnose(self) -> Iterable[Health]:
        controller, loop = self._controller, self._loop
        last, refused = controller.machine.last, controller.counts
        yield Health(
            "authority",
            OK if last.target is not Authority.ESTOP else WARN,
            f"{last.target.name}: {last.reason}",
            {"transitions": last.count, "blocked_by": controller.blocked_by},
        )
        yield Health(
            "control loop",
            OK if loop.p99 <= 1.5 * controller.period else WARN,
            f"period {loop.mean * 1e3:.2f} ms, p99 {loop.p99 * 1e3:.2f} ms, {self.priority}",
            {"missed_deadlines": loop.missed},
        )
        yield Health(
            "envelope",
            WARN if controller.envelope.held_back else OK,
            controller.envelope.held_back or "ok",
            {"periods_held_back": refused["held_back"], "speed": controller.envelope.speed},
        )
        broken = any(count for kind, count in refused.items() if kind not in ("late_chunk", "held_back"))
        yield Health(
            "inputs",
            WARN if broken else OK,
            controller.last_refusal or "ok",
            {f"refused_{kind}": count for kind, count in refused.items()},
        )


class StackWatch:
    """Watches the liveliness of the stack's processes in a node and a thread of its own.

    Its many entities seldom have anything to say; in the arm's own node they would be waited on anew with every control
    tick, at a third of its cost.

    Attributes:
        changes: (name, whether it lives, whether it left in order), oldest first; whoever takes them pops them.
    """

    def __init__(
        self, arm: ArmNode, names: Sequence[str], lease: float, on_change: Callable[[], None]
    ) -> None:
        """``on_change`` is called in the watching thread after `changes` grew; ``lease`` [s]: silence that is death."""
        self.changes: deque[tuple[str, bool, bool]] = deque()
        self._on_change = on_change
        self._node = Node(
            f"{arm.get_name()}_watch",
            namespace=arm.get_namespace(),
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        for name in names:
            self._node.create_subscription(
                Empty,
                f"heartbeat/{name}",
                lambda message: None,
                heartbeat(lease),
                event_callbacks=SubscriptionEventCallbacks(liveliness=partial(self._on_liveliness, name)),
            )
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        self._thread = SpinThread(
            executor, "stack watch", ask_for_priority
        )  # a thread does not have its process's

    def close(self) -> None:
        """Unsubscribe and end the thread."""
        self._thread.close()
        self._node.destroy_node()

    def _on_liveliness(self, name: str, info: QoSLivelinessChangedInfo) -> None:
        alive = info.alive_count > 0
        self.changes.append((name, alive, not alive and info.not_alive_count == 0))
        self._on_change()


def main() -> None:
    """Run the arm node until it is asked to stop."""
    ArmNode.priority = ask_for_priority()
    spin_node(ArmNode)


if __name__ == "__main__":
    main()
