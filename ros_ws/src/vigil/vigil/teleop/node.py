"""The teleop node: reads the operator's device at a steady rate and publishes ``teleop/command``.

It always publishes: without an operator the deadman is false and there are no positions, so that the arm knows the
device is there. In lock step it works on the simulator's instants that are multiples of its period.

    teleop/set_active    std_srvs/SetBool: the scripted operator takes over, or releases

Parameters: ``on_alarm`` (the scripted operator answers alarms by itself), ``reaction_s`` (how long that takes it),
``tty`` (terminal of the keyboard).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from vigil_msgs.msg import ControlState, SimState, TaskState, TeleopCommand

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
from vigil.teleop.device import Device, DeviceOptions, Reading, Surroundings, World
from vigil.teleop.devices.factory import make_device

TOO_OLD = 200_000_000  # [ns] of joint states and simulator states; older ones are not driven by


class TeleopNode(VigilNode):
    """Publishes what the operator commands."""

    def __init__(self) -> None:
        super().__init__("teleop")
        self.declare_parameter("on_alarm", False)
        self.declare_parameter("reaction_s", 0.5)
        self.declare_parameter("tty", "")
        self._device: Device | None = None

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
        self.serve(SetBool, "teleop/set_active", self._on_set_active)

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
        if self._device is not None:
            self._device.close()
            self._device = None

    def diagnose(self) -> Iterable[Health]:
        yield Health(
            f"device {self._device.name}",
            WARN if self._trouble else OK,
            self._trouble or self._device.state,
            {"deadman": self._command.deadman, "sent": self._sent, "last_refused": self._refused},
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
        self.inbox.fetch()
        self._send(now, self._device.poll(now / 1e9, self._surroundings(now)))

    def _surroundings(self, now: int) -> Surroundings:
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
            world=world,
            authority=self._arm.authority_name,
            event=self._arm.event,
            transition=self._arm.transition,
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


main = partial(spin_node, TeleopNode)

if __name__ == "__main__":
    main()
