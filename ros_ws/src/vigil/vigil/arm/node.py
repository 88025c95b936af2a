"""The arm node: takes chunks, verdicts and operator commands, moves the arm, tells who controls it."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterable
from functools import partial

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from vigil_msgs.msg import ActionChunk, ControlState, FailureStatus, TeleopCommand

from vigil.arm.authority import Authority
from vigil.arm.clutch import OperatorCommand
from vigil.arm.columns import Refused
from vigil.arm.controller import Answer, ArmController
from vigil.arm.hardware.node import Hardware
from vigil.arm.loop_statistics import EDGES, Histograms, LoopStatistics
from vigil.arm.stack.node import StackWatch
from vigil.arm.tracking import Chunk
from vigil.bringup import node_specs
from vigil.errors import VigilError
from vigil.joints import joint_sources
from vigil.node import (
    COMMAND,
    ERROR,
    EVENTS,
    LATCHED,
    NEWEST,
    OK,
    WARN,
    Health,
    VigilNode,
    nanoseconds,
    spin_node,
    to_stamp,
)
from vigil.scheduling import ask_for_priority, settle_memory

REQUESTS = ("engage", "hold", "hand_back", "estop", "reset")
TIMES = ("period", "tick", "joint_states", "chunk", "verdict", "operator")
"""Histograms on ``arm/state``: the loop's, then ages on arrival."""


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
        self._hardware: Hardware | None = None

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        rig = self.rig
        self._controller = ArmController(rig, lockstep=self.lockstep)
        try:
            self._controller.envelope.slow_down(self.get_parameter("speed").value)
        except Refused as error:
            raise VigilError(str(error)) from None
        self._loop, self._times = LoopStatistics(self._controller.period), Histograms(TIMES)
        self._last_tick = 0
        self._latency = round(rig.sim.latency * 1e9) if self.lockstep else 0
        self._on_its_way: deque[Chunk] = deque()
        self._state = ControlState(
            names=list(self._controller.columns.names),
            histogram_names=list(TIMES),
            histogram_edges=array("d", EDGES),
        )
        self._published_transition = -1
        self._state_publisher = self.advertise(ControlState, "arm/state", LATCHED)
        self._hardware = Hardware(self, self._on_fault)

        # What is read at every tick waits for it.
        listen = self.listen if self.lockstep else self.inbox.listen
        for number, source in enumerate(joint_sources(rig)):
            listen(JointState, source.topic, partial(self._on_joint_states, number), NEWEST)
        self.listen(ActionChunk, "policy/chunk", self._on_chunk, COMMAND)
        self.listen(TeleopCommand, "teleop/command", self._on_operator, NEWEST)
        if rig.monitor.level != "none":
            self.listen(FailureStatus, "monitor/status", self._on_monitor, EVENTS)
        if self._controller.inputs.estop is not None:
            self.listen(Bool, "estop/released", self._on_estop_button, NEWEST)
        for request in REQUESTS:
            self.serve(Trigger, f"arm/{request}", partial(self._on_request, request))
        # A group of its own: while it waits for a robot, every other callback goes on.
        self.serve(Trigger, "arm/recover", self._on_recover, callback_group=MutuallyExclusiveCallbackGroup())
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
        self._times.restart()
        settle_memory()
        if not self.lockstep:
            ask_for_priority(all_threads=True)  # what is received late is answered late
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
        if self._hardware is not None:
            self._hardware.close()
            self._hardware = None
        self._controller = None

    # Inputs ---------------------------------------------------------------------------------------------------

    def _instant(self) -> int:
        """Now [ns]. In lock step that is the tick under way: the clock's own message may lag behind it."""
        return self._last_tick if self.lockstep and self._last_tick else self.now()

    def _on_joint_states(self, source: int, message: JointState) -> None:
        if not self.active:
            return
        stamp = nanoseconds(message.header.stamp)
        now = stamp if self.lockstep else self.now()
        if self.lockstep and stamp == self._last_tick and source == 0:
            self._publish_state(now)  # asked again: the answer was lost, the step was done
            return
        self._times.add("joint_states", (now - stamp) / 1e9)
        changed = self._controller.on_joint_states(stamp, message.name, message.position, now, source)
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
            message.bundle,
        )
        if self._latency:
            self._on_its_way.append(chunk)
        else:
            self._take(chunk, self._instant())

    def _take(self, chunk: Chunk, now: int) -> None:
        self._times.add("chunk", (now - chunk.stamp) / 1e9)
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
        self._times.add("verdict", (now - stamp) / 1e9)
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
        self._times.add("operator", (now - command.stamp) / 1e9)
        self._react(self._controller.on_operator(command, now), now)

    def _on_estop_button(self, message: Bool) -> None:
        if self.active:
            now = self.now()
            self._react(self._controller.on_estop_button(message.data, now), now)

    def _on_camera(self, name: str, _: bytes) -> None:
        if self.active:
            self._controller.on_camera(name, self.now())

    def _on_fault(self, arm: str, fault: str) -> None:
        now = self._instant()
        changed = self._controller.on_robot(arm, fault, now)
        if self.active:
            self._react(changed, now)

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

    async def _on_recover(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Only on the operator's request, and only while nobody moves the arm."""
        refusal = self._controller.refuse_recovery() if self.active else "the arm node is not active"
        if not refusal:
            refusal = await self._hardware.recover(dict(self._controller.robot.faults))
        response.success = not refusal
        response.message = f"recover refused: {refusal}" if refusal else "recovered: waiting for engage"
        self.get_logger().info(response.message)
        return response

    # Outputs --------------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self.inbox.fetch()
        self._tick(self.now())

    def _tick(self, now: int) -> None:
        began = time.monotonic_ns()
        period = self._loop.tick(began)
        if period is not None:
            self._times.add("period", period)
        self._last_tick = now
        plan = self._controller.tick(now)
        if plan is not None:
            self._hardware.send(plan, self._controller.feedback.position, now)
        self._publish_state(now)
        self._times.add("tick", (time.monotonic_ns() - began) / 1e9)

    def _react(self, changed: bool, now: int) -> None:
        """Between two ticks: tell at once that the authority changed, and act on it without waiting."""
        if not changed:
            return
        plan = self._controller.respond(now)
        if plan is not None:
            self._hardware.send(plan, self._controller.feedback.position, now)
        self._publish_state(now)

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
        state.period_jitter = loop.jitter
        latency = controller.latency.seconds
        state.command_latency = -1.0 if latency is None else latency
        state.histogram_counts = array("I", self._times.counts.tobytes())
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
        fault, latency = controller.robot.fault, controller.latency.seconds
        told = "unknown while nothing moves" if latency is None else f"{latency * 1e3:.0f} ms"
        yield Health(
            "robot",
            ERROR if fault else OK,
            fault or "ok",
            {"command_latency": told},
        )
        yield Health(
            "inputs",
            WARN if broken else OK,
            controller.last_refusal or "ok",
            {
                "nodes_alive": ", ".join(sorted(controller.inputs.live_nodes)) or "none",
                **{f"refused_{kind}": count for kind, count in refused.items()},
            },
        )


def main() -> None:
    """Run the arm node until it is asked to stop."""
    ArmNode.priority = ask_for_priority()
    spin_node(ArmNode)


if __name__ == "__main__":
    main()
