"""The teleop node: reads the operator's device at a steady rate and publishes ``teleop/command``.

It always publishes: without an operator the deadman is false and there are no positions, so that the arm knows the
device is there. In lock step it works on the simulator's instants that are multiples of its period.

    teleop/set_active    std_srvs/SetBool: the scripted operator takes over, or releases

What a device or a button hears over topics (`Device.inputs`) is fed to it. Buttons that begin or end an episode call the
recorder's ``record/start``, ``record/mark`` and ``record/end``; an e-stop button calls ``arm/estop``.

Parameters: ``on_alarm`` (the scripted operator answers alarms by itself), ``reaction_s`` (how long that takes it),
``tty`` (terminal of the keyboard).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseArray
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from vigil_msgs.msg import ControlState, EpisodeState, SimState, TaskState, TeleopCommand
from vigil_msgs.srv import EndEpisode, MarkEpisode, StartEpisode

from vigil.errors import VigilError
from vigil.joints import BadJointState, JointSource, joint_sources
from vigil.node import (
    EVENTS,
    LATCHED,
    NEWEST,
    OK,
    SENSOR,
    WARN,
    Health,
    VigilNode,
    nanoseconds,
    spin_node,
    to_stamp,
)
from vigil.scheduling import step_forward
from vigil.teleop.buttons import REASON, Buttons, EpisodeButtons
from vigil.teleop.device import (
    BadInput,
    Device,
    DeviceOptions,
    Input,
    Joints,
    Poses,
    Reading,
    Surroundings,
    World,
)
from vigil.teleop.devices.factory import make_device
from vigil.teleop.rate import Rate

# Leaders may be ten times as fast as we are; what came between two ticks is needed to tell how fast.
STREAM = QoSProfile(depth=64, reliability=ReliabilityPolicy.BEST_EFFORT)
SLOW = 0.8  # share of the declared rate below which it is told
TOO_OLD = 200_000_000  # [ns] of joint states and simulator states; older ones are not driven by
SILENT = 1_000_000_000  # [ns] after which what the arm told last is no news


class TeleopNode(VigilNode):
    """Publishes what the operator commands."""

    def __init__(self) -> None:
        super().__init__("teleop")
        self.declare_parameter("on_alarm", False)
        self.declare_parameter("reaction_s", 0.5)
        self.declare_parameter("tty", "")
        self._device: Device | None = None
        self._buttons: Buttons | None = None

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        rig = self.rig
        reaction = self.get_parameter("reaction_s").value
        if not 0.0 <= reaction <= 10.0:
            raise VigilError(f"parameter `reaction_s` is {reaction}: allowed are 0 to 10 s")
        self._period = round(1e9 / rig.teleop.rate)
        options = DeviceOptions(
            period=self._period / 1e9,
            on_alarm=self.get_parameter("on_alarm").value,
            reaction=reaction,
            tty=self.get_parameter("tty").value,
        )
        self._columns, self._sources = rig.columns, joint_sources(rig)
        self._measured: dict[str, tuple[int, float]] = {}  # stamp [ns] and position by column
        self._joints: tuple[int, np.ndarray] | None = None  # stamp [ns] of the oldest column, [N]
        self._world: tuple[int, World] | None = None
        self._arm, self._task = ControlState(), TaskState()
        self._scene, self._sent = -1, 0
        self._trouble = self._refused = ""  # why nobody can drive; what was the last bad input
        self._command = TeleopCommand(names=list(self._columns))
        self._device = make_device(rig, options)
        self._device.open()
        self.get_logger().info(f"device {self._device.name}: {self._device.state}")
        self._buttons = Buttons(rig.teleop.buttons)
        self._buttons.open()
        self._episode_buttons, self._episode = EpisodeButtons(), EpisodeState()
        self._asked, self._answers = "", 0  # what became of the last press of a button that asks another node
        self._ticks, self._rates = Rate(), {}
        self._command.device = self._device.name
        self._command_topic = self.advertise(TeleopCommand, "teleop/command", SENSOR)
        # What is read at every poll of the device waits for it.
        listen = self.listen if self.lockstep else self.inbox.listen
        self.inbox.listen(ControlState, "arm/state", self._on_arm, LATCHED)
        for source in self._sources:
            listen(JointState, source.topic, partial(self._on_joint_states, source), NEWEST)
        if rig.sim is not None:
            listen(SimState, "sim/state", self._on_world, NEWEST)
            self.inbox.listen(TaskState, "sim/task", self._on_task, EVENTS)
        for sink in (self._device, self._buttons):
            for source in sink.inputs:
                kind, convert = KINDS[source.kind]
                self._rates[source] = Rate()
                listen(kind, source.topic, partial(self._on_input, sink, source, convert), STREAM)
        self.inbox.listen(EpisodeState, "record/episode", self._on_episode, LATCHED)
        self._servers = {
            Trigger: self._client(Trigger, "arm/estop"),
            StartEpisode: self._client(StartEpisode, "record/start"),
            EndEpisode: self._client(EndEpisode, "record/end"),
            MarkEpisode: self._client(MarkEpisode, "record/mark"),
        }
        self.serve(SetBool, "teleop/set_active", self._on_set_active)

    def _client(self, kind: type, name: str) -> Client:
        client = self.create_client(kind, name)
        self._made.append((self.destroy_client, client))
        return client

    def start(self) -> None:
        self._last_tick = 0
        if not self.lockstep:
            step_forward(all_threads=True)  # a hand on the deadman switch waits for nobody
            clock = Clock(clock_type=ClockType.STEADY_TIME)
            self._beat = self.create_timer(self._period / 1e9, lambda: self._tick(self.now()), clock=clock)

    def stop(self) -> None:
        if not self.lockstep:
            self.destroy_timer(self._beat)
        self._device.set_active(False)
        self._send(max(self.now(), self._last_tick), Reading(False))

    def teardown(self) -> None:
        for opened in (self._device, self._buttons):
            if opened is not None:
                opened.close()
        self._device = self._buttons = None

    def diagnose(self) -> Iterable[Health]:
        trouble = self._trouble or self._device.trouble or self._buttons.trouble
        yield Health(
            f"device {self._device.name}",
            WARN if trouble else OK,
            trouble or self._device.state,
            {
                "deadman": self._command.deadman,
                "sent": self._sent,
                "last_refused": self._refused,
                "last_button": self._asked,
            },
        )
        if not self.lockstep:  # simulated time has no rate of its own
            yield self._pace("commands", self._ticks)
            for source, rate in self._rates.items():
                yield self._pace(f"input {source.topic}", rate, judged=source.kind != "button")

    def _pace(self, what: str, rate: Rate, *, judged: bool = True) -> Health:
        hertz, jitter = rate.measure(self.now() / 1e9)
        declared = self.rig.teleop.rate
        slow = judged and hertz < SLOW * declared
        return Health(
            what,
            WARN if slow else OK,
            f"{hertz:.1f} Hz, teleop.rate is {declared:g}: lower it, or find what is slow" if slow else "ok",
            {"rate_hz": f"{hertz:.2f}", "jitter_ms": f"{1e3 * jitter:.2f}"},
        )

    # Inputs ---------------------------------------------------------------------------------------------------

    def _on_joint_states(self, source: JointSource, message: JointState) -> None:
        try:
            positions = source.read(message.name, message.position)
        except BadJointState as error:
            self._refused = str(error)
            return
        stamp = nanoseconds(message.header.stamp)
        self._measured.update((name, (stamp, p)) for name, p in zip(source.columns, positions, strict=True))
        if len(self._measured) == len(self._columns):
            known = [self._measured[name] for name in self._columns]
            self._joints = min(stamp for stamp, _ in known), np.array([position for _, position in known])
            self._step_together()

    def _on_world(self, message: SimState) -> None:
        world = World(np.array(message.qpos), tuple(message.appearance))
        self._world = nanoseconds(message.header.stamp), world
        self._scene = message.scene
        self._step_together()

    def _on_arm(self, message: ControlState) -> None:
        self._arm = message

    def _on_task(self, message: TaskState) -> None:
        self._task = message

    def _on_input(self, sink: Device | Buttons, source: Input, convert: Any, message: Any) -> None:
        now = self.now()
        header = getattr(message, "header", None)
        stamp = now if header is None else nanoseconds(header.stamp) or now
        self._rates[source].note(stamp / 1e9)
        try:
            sink.feed(source.topic, convert(message), now / 1e9)
        except BadInput as error:
            if str(error) != self._refused:
                self.get_logger().error(f"refused: {error}")
            self._refused = str(error)

    def _on_episode(self, message: EpisodeState) -> None:
        self._episode = message

    def _on_set_active(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        refusal = self._device.set_active(request.data) if self.active else "the teleop node is not active"
        if refusal and not request.data:
            refusal = ""  # whoever asks for release gets what is so already
        response.success, response.message = not refusal, refusal
        return response

    # Commands -------------------------------------------------------------------------------------------------

    def _step_together(self) -> None:
        """In lock step: once both parts of an instant that concerns us are here."""
        if not (self.lockstep and self.active) or self._joints is None or self._world is None:
            return
        stamp = self._joints[0]
        if stamp != self._world[0] or stamp % self._period:
            return
        if stamp == self._last_tick:
            self._command_topic.publish(self._command)  # asked again: the answer was lost
        else:
            self._tick(stamp)

    def _tick(self, now: int) -> None:
        self._last_tick = now
        self._ticks.note(now / 1e9)
        self.inbox.fetch()
        beside = self._buttons.poll(now / 1e9)
        reading = self._device.poll(now / 1e9, self._surroundings(now, beside.get("deadman")))
        reading = replace(
            reading,
            hand_back=reading.hand_back or bool(beside.get("hand_back")),
            pressed={*reading.pressed, *(role for role, down in beside.items() if down)},
        )
        self._send(now, reading)
        self._episode_buttons.note(
            self._episode.episode_id if self._episode.recording else "", self._arm.authority_name
        )
        for role in self._episode_buttons.pressed(reading.pressed):
            self._ask(role)

    def _surroundings(self, now: int, deadman: bool | None) -> Surroundings:
        def fresh(item: tuple[int, Any] | None) -> Any:
            return item[1] if item is not None and now - item[0] <= TOO_OLD else None

        measured, world = fresh(self._joints), fresh(self._world)
        self._trouble = ""
        if measured is None:
            self._trouble = "no joint states: an operator cannot take over"
        elif world is None and self.rig.sim is not None:
            self._trouble = "no state of the simulation: the scripted operator cannot take over"
        # Until the task tells of a new scene, what it told of the last one is history.
        current = self._task.scene == self._scene
        return Surroundings(
            measured=measured,
            deadman=deadman,
            world=world,
            authority=self._arm.authority_name,
            event=self._arm.event,
            transition=self._arm.transition,
            reason=self._arm.reason,
            blocked_by=self._arm.blocked_by,
            arm_silent=now - nanoseconds(self._arm.header.stamp) > SILENT,
            episode=self._episode.episode_id if self._episode.recording else "",
            answer=self._asked,
            answers=self._answers,
            scene=self._scene,
            success=current and self._task.success,
            failure=current and self._task.failure,
        )

    def _send(self, now: int, reading: Reading) -> None:
        command = self._command
        command.header.stamp = to_stamp(now)
        command.deadman, command.mode = reading.deadman, int(reading.mode)
        command.positions = [] if reading.positions is None else reading.positions
        command.request_hand_back = reading.hand_back
        self._command_topic.publish(command)
        self._sent += 1

    # Requests -------------------------------------------------------------------------------------------------

    def _ask(self, role: str) -> None:
        kind = {"start": StartEpisode, "mark": MarkEpisode, "estop": Trigger}.get(role, EndEpisode)
        request = kind.Request()
        if kind is EndEpisode:
            request.outcome, request.termination_reason = self._episode_buttons.outcome(role), REASON
        client = self._servers[kind]
        if not client.service_is_ready():
            who, remedy = (
                ("arm", "press the hardware's own e-stop")
                if kind is Trigger
                else ("recorder", "bring the rig up with its recorder")
            )
            self._tell(role, f"no {who} answers {client.srv_name}: {remedy}")
            return
        client.call_async(request).add_done_callback(partial(self._on_answer, role))

    def _on_answer(self, role: str, answer: Future) -> None:
        response = answer.result()
        self._tell(role, "" if response.success else response.message)

    def _tell(self, role: str, refusal: str) -> None:
        self._asked, self._answers = f"{role}: {refusal or 'done'}", self._answers + 1
        if refusal:
            self.get_logger().error(f"button {self._asked}")
        else:
            self.get_logger().info(f"button {self._asked}")


def _joints(message: JointState) -> Joints:
    return Joints(message.name, message.position)


def _poses(message: PoseArray) -> Poses:
    positions = [(p.position.x, p.position.y, p.position.z) for p in message.poses]
    turns = [(p.orientation.x, p.orientation.y, p.orientation.z, p.orientation.w) for p in message.poses]
    return Poses(np.array(positions).reshape(-1, 3), np.array(turns).reshape(-1, 4))


def _pressed(message: Bool) -> bool:
    return message.data


KINDS = {"joints": (JointState, _joints), "poses": (PoseArray, _poses), "button": (Bool, _pressed)}
"""Message type of each kind of input, and what makes a sample of it."""


main = partial(spin_node, TeleopNode)

if __name__ == "__main__":
    main()
