"""The simulated robot cell at the hardware's topics.

    <arm>/joint_states                              100 Hz, the joints and the gripper
    <arm>/<controller>/joint_trajectory             joint trajectory controller
    <arm>/<controller>/commands                     forward position controller; gripper controller
    sim/state, sim/task                             the whole state (100 Hz), the task's ground truth (20 Hz)
    sim/frame                                       those of the states that cameras draw, at their rate
    sim/reset                                       new scene
    /clock                                          in lock step only

Real time: paced by the wall clock; sim/state comes one control period before its stamp, sim/frame two, the second of them
extrapolated, for cameras to draw. Lock step (parameters ``lockstep`` and ``use_sim_time``): time goes on as soon as every
one of ``participants`` (of arm, policy, teleop) has reported on the present instant.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from functools import partial

import numpy as np
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory
from vigil_msgs.msg import ActionChunk, ControlState, FailureStatus, SimState, TaskState, TeleopCommand
from vigil_msgs.srv import ResetSim

from vigil.errors import VigilError
from vigil.node import (
    COMMAND,
    EVENTS,
    OK,
    SENSOR,
    WARN,
    Health,
    VigilNode,
    nanoseconds,
    spin_node,
    to_stamp,
)
from vigil.policy.pace import frame_period
from vigil.rig import RigConfig
from vigil.scheduling import settle_memory, step_forward
from vigil.sim import scene
from vigil.sim.appearance import encode
from vigil.sim.controllers import NS, Point
from vigil.sim.hardware import RobotHardware
from vigil.sim.lockstep import Barrier
from vigil.sim.physics import CONTROL_PERIOD, Simulation

PERIOD = round(CONTROL_PERIOD * NS)
TASK_PERIOD = NS // 20
PARTICIPANTS = ("arm", "policy", "teleop")
CATCH_UP = 10  # periods that real time may be made up for at once; what is beyond is lost
REPEAT = 0.25  # [s] wall time after which an instant is published again: sensor data may be lost
PATIENCE = 10.0  # [s] wall time that lock step waits for a silent participant


class SimNode(VigilNode):
    """Steps one `Simulation` and serves the topics of its robot."""

    def __init__(self) -> None:
        super().__init__("sim")
        self.declare_parameter("lockstep", False)
        self.declare_parameter("participants", list(PARTICIPANTS[:2]))
        self._simulation: Simulation | None = None

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        rig = self.rig
        if rig.sim is None:
            raise VigilError(f"rig {rig.name} has no `sim` section: nothing to simulate")
        home = self._home(rig)
        if self.get_parameter("lockstep").value != self.lockstep:
            raise VigilError("parameters `lockstep` and `use_sim_time` must be equal: set both or none")
        self._simulation = Simulation(rig.sim.time_limit, home[:7])
        self._simulation.reset(rig.sim.seed)
        self._robot = RobotHardware(home)
        self._home_columns = home
        # Whole seconds: instants are multiples of every period. The present, so that a restart does not set time back.
        self._now = int(time.time()) * NS
        self._late = 0
        self._barrier = self._make_barrier(rig)
        self._joints = JointState(name=list(scene.COLUMNS))
        self._state, self._frame = SimState(), SimState()
        self._task = TaskState(task=self._simulation.task.name)
        arm = rig.arm
        self._joints_topic = self.advertise(JointState, f"{arm.name}/joint_states", SENSOR)
        self._state_topic = self.advertise(SimState, "sim/state", SENSOR)
        self._frame_topic = self.advertise(SimState, "sim/frame", SENSOR)
        # In lock step cameras draw what the policy looks at, and no more (see bringup).
        seconds = [frame_period(rig)] if self.lockstep else [1.0 / camera.rate for camera in rig.cameras]
        self._frame_periods = {round(period * NS) for period in seconds}
        self._task_topic = self.advertise(TaskState, "sim/task", EVENTS)
        trajectory, forward = self._controller_names(rig)
        listen = self.inbox.listen  # commands are read when the controllers are updated
        listen(JointTrajectory, f"{arm.name}/{trajectory}/joint_trajectory", self._on_trajectory, COMMAND)
        listen(Float64MultiArray, f"{arm.name}/{forward}/commands", self._on_positions, COMMAND)
        gripper = f"{arm.name}/{arm.gripper.controller}/commands"
        listen(Float64MultiArray, gripper, self._on_gripper, COMMAND)
        if self.lockstep:
            self._clock_topic = self.advertise(Clock, "/clock", EVENTS)
            self._listen_to_reports(rig)
        self.serve(ResetSim, "sim/reset", self._on_reset)

    @staticmethod
    def _home(rig: RigConfig) -> np.ndarray:
        """[8] home of the rig in the scene's columns; VigilError if the rig describes another robot."""
        if set(rig.arm.columns) != set(scene.COLUMNS):
            raise VigilError(
                f"rig {rig.name} has joints {list(rig.arm.columns)}, the scene {rig.sim.scene} has "
                f"{list(scene.COLUMNS)}: use the same names"
            )
        return np.array([rig.arm.home[name] for name in scene.COLUMNS])

    @staticmethod
    def _controller_names(rig: RigConfig) -> tuple[str, str]:
        """Names of the trajectory and of the forward controller: the rig's own, the other by its usual name."""
        if rig.arm.controller_type == "joint_trajectory":
            return rig.arm.controller, "forward_position_controller"
        return "joint_trajectory_controller", rig.arm.controller

    def _make_barrier(self, rig: RigConfig) -> Barrier:
        participants = self.get_parameter("participants").value
        unknown = [name for name in participants if name not in PARTICIPANTS]
        if unknown:
            raise VigilError(f"parameter `participants` has {unknown}; known are {list(PARTICIPANTS)}")
        periods = {
            "arm": PERIOD,
            "policy": round(rig.policy.period * NS),
            "teleop": round(NS / rig.teleop.rate),
            "frames": round(frame_period(rig) * NS),
        }
        uneven = [name for name, period in periods.items() if period % PERIOD or NS % period]
        if self.lockstep and uneven:
            raise VigilError(
                f"lock step needs periods that are multiples of {CONTROL_PERIOD} s and divide 1 s; "
                f"not so: {', '.join(f'{name} {periods[name] / NS} s' for name in uneven)}"
            )
        self._always = set(participants)
        # An operator who drives is waited for in any case: his commands move the arm.
        waited = {name: periods[name] for name in PARTICIPANTS}
        if periods["frames"] < periods["policy"]:
            # A history: frames between the policy's ticks are waited for, too; at a tick the policy waits for them.
            waited |= {f"camera_{camera.name}": periods["frames"] for camera in rig.cameras}
        return Barrier(waited, PATIENCE)

    def _listen_to_reports(self, rig: RigConfig) -> None:
        if "arm" in self._always:
            self.listen(ControlState, "arm/state", partial(self._on_report, "arm"), EVENTS)
        if "policy" in self._always:
            monitored = rig.monitor.level != "none"
            kind, topic = (FailureStatus, "monitor/status") if monitored else (ActionChunk, "policy/chunk")
            self.listen(kind, topic, partial(self._on_report, "policy"), EVENTS)
        for camera in rig.cameras if self._barrier.awaits(f"camera_{rig.cameras[0].name}") else ():
            report = partial(self._on_report, f"camera_{camera.name}")
            self.listen(CameraInfo, f"{camera.name}/color/camera_info", report, SENSOR)
        self.listen(TeleopCommand, "teleop/command", self._on_teleop, SENSOR)

    def start(self) -> None:
        settle_memory()
        if not self.lockstep:
            step_forward()  # hardware does not wait for software
        self._began, self._steps = time.monotonic(), 0
        if not self.lockstep:
            self._now = self.now()
        self._origin = self._now
        self._robot.hold(self._home_columns, self._now - NS)
        clock = RosClock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(CONTROL_PERIOD, self._on_timer, clock=clock)
        if self.lockstep:
            self._announce()
        else:
            self._advance(self._origin + PERIOD)
            self._announce_world()

    def stop(self) -> None:
        self.destroy_timer(self._timer)

    def teardown(self) -> None:
        self._simulation = None

    # Time -----------------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        if self.lockstep:
            self._watch_barrier()
            return
        due = int((time.monotonic() - self._began) / CONTROL_PERIOD) - self._steps
        if due > CATCH_UP:
            self._late += due - CATCH_UP
            self._steps += due - CATCH_UP
            due = CATCH_UP
        for _ in range(due):
            # The world is computed one period before its time, so that a camera has drawn it when its time has come,
            # as a real exposure is over when it is stamped; what the joints measure is told when it is true.
            self._steps += 1
            self._announce_measured()
            self._advance(self._origin + (self._steps + 1) * PERIOD)
            self._announce_world()

    def _watch_barrier(self) -> None:
        """Lock step is driven by reports; this sees to what happens when none come."""
        wall = time.monotonic()
        if self._barrier.alone or not self._barrier.missing():
            self._step(self._now + PERIOD)
        elif silent := self._barrier.dismiss_silent(wall):
            self.get_logger().error(
                f"{', '.join(silent)} did not report for {PATIENCE:g} s: simulated time goes on without"
            )
            self._go_on()
        elif self._barrier.waited(wall) > REPEAT and wall - self._announced > REPEAT:
            self._announce()

    def _go_on(self) -> None:
        if self.active and not self._barrier.missing() and not self._barrier.alone:
            self._step(self._now + PERIOD)

    def _step(self, now: int) -> None:
        self._advance(now)
        self._announce()
        self._barrier.begin(now, self._announced)

    def _advance(self, now: int) -> None:
        self.inbox.fetch()
        self._now = now
        self._simulation.step(*self._robot.sample(now))

    def _on_report(self, name: str, message) -> None:
        if self.active:
            self._barrier.report(name, nanoseconds(message.header.stamp))
            self._go_on()

    def _on_teleop(self, message: TeleopCommand) -> None:
        if not self.active:
            return
        if message.deadman or "teleop" in self._always:
            self._barrier.report("teleop", nanoseconds(message.header.stamp))
        else:
            self._barrier.leave("teleop")
        self._go_on()

    # Commands: the controllers' time is that of the last step, from which the next one starts -----------------

    def _on_trajectory(self, message: JointTrajectory) -> None:
        points = [
            Point(p.time_from_start.sec * NS + p.time_from_start.nanosec, p.positions, p.velocities)
            for p in message.points
        ]
        stamp = nanoseconds(message.header.stamp)
        self._taken(self._robot.on_trajectory(message.joint_names, points, stamp, self._now))

    def _on_positions(self, message: Float64MultiArray) -> None:
        self._taken(self._robot.on_positions(message.data, self._now))

    def _on_gripper(self, message: Float64MultiArray) -> None:
        self._taken(self._robot.on_gripper(message.data, self._now))

    def _taken(self, accepted: bool) -> None:
        if not accepted:
            self.get_logger().warning(
                f"command not executed: {self._robot.last_rejection}", throttle_duration_sec=1.0
            )

    def _on_reset(self, request: ResetSim.Request, response: ResetSim.Response) -> ResetSim.Response:
        simulation = self._simulation
        if self.active:
            try:
                simulation.reset(request.seed, request.perturbation or "none", request.disturbance)
                self._robot.hold(self._home_columns, self._now)
                response.success = True
                response.message = f"seed {request.seed}, perturbation {simulation.perturbation.name}"
            except VigilError as error:
                response.message = str(error)
        else:
            response.message = "the simulation is not active"
        response.scene = simulation.scene_number
        return response

    # Publishing -----------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Lock step: publish the present instant."""
        self._announced = time.monotonic()
        self._clock_topic.publish(Clock(clock=to_stamp(self._now)))
        self._announce_world()
        self._announce_measured()

    def _announce_world(self) -> None:
        simulation, state = self._simulation, self._state
        state.header.stamp = to_stamp(self._now)
        state.scene = simulation.scene_number
        state.qpos, state.qvel = _doubles(simulation.qpos), _doubles(simulation.qvel)
        state.appearance = encode(simulation.appearance)
        # First to the cameras, which are waited for.
        self._announce_frame()
        self._state_topic.publish(state)

    def _announce_frame(self) -> None:
        """What cameras draw. An image drawn in software can take longer than the one period that the world is ahead."""
        ahead = 0 if self.lockstep else PERIOD
        due = self._now + ahead
        if any(due // period != (due - PERIOD) // period for period in self._frame_periods):
            frame, state = self._frame, self._state
            frame.header.stamp = to_stamp(due)
            frame.scene, frame.appearance, frame.qvel = state.scene, state.appearance, state.qvel
            frame.qpos = _doubles(self._simulation.qpos_in(ahead / NS))
            self._frame_topic.publish(frame)

    def _announce_measured(self) -> None:
        simulation, joints, stamp = self._simulation, self._joints, to_stamp(self._now)
        joints.header.stamp = stamp
        if self._now % TASK_PERIOD < PERIOD:
            self._publish_task(stamp)
        joints.position = _doubles(simulation.positions)
        joints.velocity = _doubles(simulation.velocities)
        joints.effort = _doubles(simulation.efforts)
        self._joints_topic.publish(joints)

    def _publish_task(self, stamp) -> None:
        simulation, status, message = self._simulation, self._simulation.status, self._task
        message.header.stamp = stamp
        message.scene = simulation.scene_number
        message.phase, message.contact, message.grasped = status.phase, status.contact, status.grasped
        message.success, message.failure = bool(status.success), bool(status.failure)
        message.failure_reason, message.elapsed = status.failure_reason, status.elapsed
        message.perturbation = simulation.perturbation.name
        message.perturbation_active = simulation.perturbation.active
        self._task_topic.publish(message)

    def diagnose(self) -> Iterable[Health]:
        if self.lockstep:
            missing = self._barrier.missing()
            stuck = bool(missing) and self._barrier.waited(time.monotonic()) > 1.0
            yield Health(
                "lock step", WARN if stuck else OK, f"waits for {', '.join(missing)}" if stuck else "ok"
            )
        else:
            yield Health("real time", WARN if self._late else OK, f"{self._late} periods lost")
        rejected = self._robot.rejected
        message = self._robot.last_rejection if rejected else "ok"
        yield Health("controllers", WARN if rejected else OK, message, {"rejected": rejected})


def _doubles(values: np.ndarray) -> array:
    """[N] as the array type that a message takes over whole."""
    return array("d", values.tobytes())


main = partial(spin_node, SimNode)

if __name__ == "__main__":
    main()
