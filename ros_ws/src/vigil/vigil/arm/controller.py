"""The arm's control step without ROS: inputs in, one plan per control period out.

Instants are ns of the node's clock. Nothing here raises on a bad input: it is refused, counted and named, and where the
source in control sent it, the arm holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vigil.arm.adapters.plan import Plan
from vigil.arm.authority import Authority, AuthorityMachine, Event, Refusal
from vigil.arm.blending import Correction
from vigil.arm.clutch import Clutch, OperatorCommand
from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND
from vigil.arm.envelope import Envelope
from vigil.arm.feedback import Feedback
from vigil.arm.robot import CommandLatency, RobotWatch
from vigil.arm.tracking import FUTURE_TOLERANCE, LOOKAHEAD, Chunk, ChunkTracker, Late
from vigil.arm.watchdog import Inputs
from vigil.arm.workspace import Workspace
from vigil.joints import joint_sources
from vigil.rig import RigConfig

CLOSE = 0.008
"""[rad] From rest a source's first command lies this close to the measured pose; in motion it goes on from the setpoint."""
BEGIN_TIME = SECOND * 3 // 2
"""[ns] Time that policy and monitor have for their first output after they were given control. The arm stands still."""
OPERATOR_LOOKAHEAD = 0.05
"""[s] As `LOOKAHEAD`, for the operator, whose motion beyond the newest command is a guess."""
DRIVING = (Authority.POLICY, Authority.BLENDED)
"""The policy moves the arm, by itself or corrected by the operator."""


@dataclass(frozen=True)
class Answer:
    """To a request: granted or not, and why."""

    granted: bool
    message: str


class ArmController:
    """Joins authority, watchdogs, tracking and envelope.

    Methods that take an input return whether the authority changed, so that it can be published at once.

    Attributes:
        columns: the arm's columns.
        machine: the authority and its last transition.
        feedback: newest measured positions.
        envelope: holds the newest setpoint.
        robot: whether the robot does what it is told.
        latency: from command to motion, measured.
        counts: refused and late inputs, by kind.
        last_refusal: why the newest one was refused; empty if none was.
        first_command: instant of the first command under the present authority; 0 until sent.
        first_step: [N] that command minus the measured position; 0 until sent.
        blocked_by: what keeps an engage request from being granted at the last tick; empty if nothing does.
    """

    def __init__(self, rig: RigConfig, *, lockstep: bool) -> None:
        self._lockstep = lockstep
        self._hold_on = frozenset(rig.monitor.hold_on)
        self.columns = Columns.of(rig)
        self.period = 1.0 / rig.control_rate
        self.machine = AuthorityMachine()
        self.feedback = Feedback(self.columns, joint_sources(rig))
        self.envelope = Envelope(self.columns, self.period, Workspace(rig))
        self.robot = RobotWatch(self.columns, rig.watchdogs.following_error)
        self.latency = CommandLatency(self.columns, self.period)
        self.inputs = Inputs(rig, lockstep)
        self._tracker = ChunkTracker(self.columns, rig.policy.period, rig.policy.seam)
        self._clutch = Clutch(self.columns, OPERATOR_LOOKAHEAD)
        self._correction = Correction(self.columns, rig.teleop.gain, LOOKAHEAD)
        self._blends = rig.teleop.takeover == "blended"
        self._lead = rig.policy.command_lead
        squeezes = [arm.gripper.squeeze for arm in rig.arms]
        self._squeeze = np.array([np.inf if squeeze is None else squeeze for squeeze in squeezes])
        self._squeeze_is_limited = bool(np.isfinite(self._squeeze).any())
        self._operator_limit = int(rig.watchdogs.operator * SECOND)
        self.counts: Counter[str] = Counter()
        self.last_refusal = ""
        self.first_command = 0
        self.first_step = np.zeros(len(self.columns))
        self.blocked_by = "no joint states yet"
        self._commanding = False  # commands flow, and the setpoint is the hardware's
        self._setpoint_known = False  # the hardware still holds the last setpoint
        self._sent_at = -1  # the tick of the newest plan
        self._last_tick = 0
        self._needs_release = False
        self._hand_back_held = False

    @property
    def authority(self) -> Authority:
        """Who controls the arm now."""
        return self.machine.authority

    # Inputs ---------------------------------------------------------------------------------------------------

    def on_joint_states(
        self, stamp: int, names: Sequence[str], position: Sequence[float], now: int, source: int = 0
    ) -> bool:
        """Measured positions, [len(names)]; ``source``: which of the rig's topics of joint states told them."""
        try:
            jump = self.feedback.update(stamp, names, position, source)
        except Refused as error:
            self._refuse("joint_states", str(error))
            return False
        self.inputs.joint_states.feed(min(stamp, now), source)
        if not jump:
            return False
        # The setpoint means nothing any more: send nothing until a source begins anew at the measured pose.
        self._commanding = self._setpoint_known = False
        return self._fire(Event.JOINT_JUMP, stamp, now, jump)

    def on_chunk(self, chunk: Chunk, now: int) -> bool:
        """A chunk of the policy. A broken one holds the arm while the policy has control."""
        in_control = self.authority in DRIVING
        try:
            if in_control:
                self._tracker.accept(chunk, now, self._chunk_instant(now))
            else:
                self._tracker.check(chunk, now)
        except Late as error:
            self._refuse("late_chunk", str(error))
            return False
        except Refused as error:
            self._refuse("chunk", str(error))
            self.inputs.chunk.forget()
            return in_control and self._fire(Event.BAD_CHUNK, now, now, f"bad chunk: {error}")
        self.inputs.chunk.feed(now)
        return False

    def on_monitor(self, stamp: int, verdict: str, alarm: bool, reason: str, now: int) -> bool:
        """A verdict. What was observed before the policy got control does not count against it."""
        if self.inputs.monitor is None:
            return False
        self.inputs.monitor.feed(now)
        if verdict != "STALE":  # then the monitor lives, but has nothing to judge
            self.inputs.evidence.feed(now)
        if self.authority not in DRIVING or stamp <= self.machine.last.stamp:
            return False
        # `alarm` is latched: an alarm counts even if its own verdict was lost. A rig whose `hold_on` leaves ALARM out
        # only observes alarms; evaluation does, to learn how an episode with an alarm would have ended.
        if verdict not in self._hold_on and not (alarm and "ALARM" in self._hold_on):
            return False
        return self._fire(Event.ALARM, now, now, f"monitor: {verdict}" + (f": {reason}" if reason else ""))

    def on_operator(self, command: OperatorCommand, now: int) -> bool:
        """The operator's command, deadman and buttons."""
        if not -FUTURE_TOLERANCE <= now - command.stamp <= self._operator_limit:
            age = (now - command.stamp) / SECOND
            self._refuse(
                "teleop", f"teleop command is {age:.3f} s old, limit {self._operator_limit / SECOND} s"
            )
            return False
        self.inputs.operator.feed(now)
        self._needs_release &= command.deadman
        try:
            self._clutch.check(command)
        except Refused as error:
            self._refuse("teleop", str(error))
            return self._fire(Event.BAD_COMMAND, command.stamp, now, str(error))
        asked = command.request_hand_back and not self._hand_back_held
        self._hand_back_held = command.request_hand_back
        if asked and self.machine.allows(Event.HAND_BACK):
            answer = self._give_to_policy(Event.HAND_BACK, command.stamp, now, "handed back by the operator")
            if answer.granted:
                return True
            self._refuse("hand_back", answer.message)
        if self.authority is Authority.OPERATOR:
            if not command.deadman:
                return self._fire(Event.RELEASE, command.stamp, now, "the operator released the deadman")
            self._clutch.accept(command, now)
            return False
        if self.authority is Authority.BLENDED:
            if not command.deadman:
                return self._fire(Event.RELEASE, command.stamp, now, "the operator released the deadman")
            self._correction.accept(command, now)
            return False
        if not command.deadman:
            return False
        blends = self._blends and self.authority is Authority.POLICY
        return self._correct(command, now) if blends else self._take_over(command, now)

    def on_camera(self, name: str, now: int) -> None:
        """A sign of life of one camera's stream."""
        self.inputs.cameras[name].feed(now)

    def on_estop_button(self, released: bool, now: int) -> bool:
        """The e-stop button, heard again and again: pressed is an e-stop, and so is its silence (see `tick`)."""
        if released:
            self.inputs.estop.feed(now)
            return False
        self.inputs.estop.forget()
        return self._fire(Event.ESTOP, now, now, "the e-stop button is pressed")

    def on_robot(self, arm: str, fault: str, now: int) -> bool:
        """What the robot called ``arm`` reports of itself; empty: it is well."""
        return self.robot.report(arm, fault) and self._fire(Event.ROBOT_FAULT, now, now, f"{arm}: {fault}")

    def on_node(self, name: str, alive: bool, left: bool, now: int) -> bool:
        """A node of the stack came, died, or (``left``) went in order."""
        self.inputs.node(name, alive, left)
        if alive:
            return False
        return self._fire(Event.MISSING, now, now, f"{name}: the node {'was stopped' if left else 'died'}")

    # Requests -------------------------------------------------------------------------------------------------

    def engage(self, now: int) -> Answer:
        """HOLD -> POLICY."""
        return self._give_to_policy(Event.ENGAGE, now, now, "engaged by request")

    def hand_back(self, now: int) -> Answer:
        """OPERATOR or HOLD -> POLICY."""
        return self._give_to_policy(Event.HAND_BACK, now, now, "handed back by request")

    def hold(self, now: int) -> Answer:
        """POLICY or OPERATOR -> HOLD."""
        if self.authority is Authority.HOLD:
            return Answer(True, "the arm holds already")
        return self._request(Event.HOLD, now, "held by request")

    def estop(self, now: int) -> Answer:
        """Any -> ESTOP, latched."""
        if self.authority is Authority.ESTOP:
            return Answer(True, "the e-stop is latched already")
        return self._request(Event.ESTOP, now, "e-stop by request: call arm/reset to leave it")

    def reset(self, now: int) -> Answer:
        """ESTOP -> HOLD."""
        if silent := self.inputs.estop_silence(now):
            return Answer(False, f"reset refused: {silent}")
        return self._request(Event.RESET, now, "e-stop reset: waiting for engage")

    def refuse_recovery(self) -> str:
        """Why a robot may not be asked to recover now, in words; empty if it may."""
        if self.authority not in (Authority.HOLD, Authority.ESTOP):
            return f"{self.authority.name} has control: hold first"
        # A robot that recovers must not go on to where the stop leads that it did not take part in.
        return "the arm is still braking: ask again" if self._commanding else ""

    # The control step -----------------------------------------------------------------------------------------

    def tick(self, now: int) -> Plan | None:
        """One control period: what to send to the hardware, or None if it is to keep what it has."""
        # A setpoint that begins anew elsewhere has nothing to do with the one of a period ago: nobody may take the two
        # for a motion, so that a period passes between them.
        pause = not self._setpoint_known and self._sent_at == self._last_tick
        self._last_tick = now
        self._supervise(now)
        self.blocked_by = self._blocked(Event.ENGAGE, now)
        if pause or not self._advance(now):
            # Hardware that was silent may have been restarted: nobody knows what it holds.
            self._setpoint_known &= self._lockstep or self.inputs.joint_states.fresh(now)
            return None
        plan = self._plan(now, now)
        if self.authority in (Authority.HOLD, Authority.ESTOP) and self.envelope.at_rest:
            self._commanding = False
            # Other arms have come to rest as planned; where one with a fault stopped is for its joint states to tell.
            self._setpoint_known &= not self.robot.faults
        return plan

    def respond(self, now: int) -> Plan | None:
        """After a change between two ticks, without waiting for the next one: the stop from the newest setpoint.

        If the arm was held in motion it begins to brake; if the operator took over it comes to rest where the operator's
        motion begins.
        """
        self.blocked_by = self._blocked(Event.ENGAGE, now)
        if self.authority is Authority.OPERATOR and self._setpoint_known:
            self._commanding = True
        elif self.authority not in (Authority.HOLD, Authority.ESTOP):
            return None
        return self._plan(self._last_tick, now) if self._commanding else None

    def abandon(self, now: int) -> None:
        """Cease to command, as before a shut-down: the hardware ends the stop that it was sent last."""
        self._fire(Event.HOLD, now, now, "the arm node was stopped")
        self._commanding = self._setpoint_known = False

    @property
    def commanded(self) -> np.ndarray:
        """[N] newest setpoint; the measured pose while the hardware keeps what it has."""
        return self.envelope.setpoint.position if self._setpoint_known else self.feedback.position

    def _advance(self, now: int) -> bool:
        """Move the setpoint by one period; False if nothing is to be sent."""
        waiting = self.authority in DRIVING and not self._tracker.has_chunk
        if waiting and not self._in_motion:
            self._commanding = False
            self._anchor()  # the arm may be moved by hand until the first chunk comes
            self._tracker.wait_at(self.envelope.rest_position)
            return False
        if self.authority in (*DRIVING, Authority.OPERATOR) and not waiting:
            self._commanding = True
            try:
                self.envelope.track(*self._target(now))
            except Refused as error:
                self._fire(Event.ENVELOPE, now, now, str(error))
                self.envelope.brake()
            self.counts["held_back"] += bool(self.envelope.held_back)
        elif self._commanding:
            self.envelope.brake()
        return self._commanding

    def _target(self, now: int) -> tuple[np.ndarray, np.ndarray, float]:
        """What the source in control wants: position [N], velocity [N], and how far ahead that is [s]."""
        if self.authority is Authority.OPERATOR:
            ahead = OPERATOR_LOOKAHEAD
            position, velocity = self._clutch.target(now + int(ahead * SECOND))
        else:
            ahead = LOOKAHEAD
            position, velocity = self._tracker.target(self._chunk_instant(now))
            correction, its_velocity = self._correction.at(now + int(ahead * SECOND))
            position, velocity = position + correction, velocity + its_velocity
        if self._squeeze_is_limited:
            # A gripper that is driven by position presses harder the farther its command is below its width.
            position, grippers = position.copy(), self.columns.is_gripper
            narrowest = self.feedback.position[grippers] - self._squeeze
            position[grippers] = np.maximum(position[grippers], narrowest)
        return position, velocity, ahead

    def _chunk_instant(self, now: int) -> int:
        """For which instant [ns] a chunk is asked at ``now``: beyond the lookahead by what the robot is late, if so set."""
        lead = (self.latency.seconds or 0.0) if self._lead == "measured" else self._lead
        return now + int((LOOKAHEAD + lead) * SECOND)

    def _plan(self, stamp: int, now: int) -> Plan:
        times, positions, velocities = self.envelope.stop_plan()
        waiting = self.authority in DRIVING and not self._tracker.has_chunk
        if not self.first_command and not waiting:
            self.first_command = now
            self.first_step = positions[0] - self.feedback.position
        self._setpoint_known, self._sent_at = True, stamp
        return Plan(stamp, times + self.period, positions, velocities)

    def _supervise(self, now: int) -> None:
        # A button that was never heard keeps the arm from being given away; one that falls silent stops it.
        button = self.inputs.estop
        if button is not None and button.heard and (late := button.overdue(now)):
            self._fire(Event.ESTOP, now, now, str(late))
        stopped = self._stopped_by_itself(now)
        if self.authority not in (*DRIVING, Authority.OPERATOR):
            return
        if stopped:
            # A robot that is cleared must not be sent to where its commands went meanwhile.
            self._commanding = self._setpoint_known = False
            self._fire(Event.NOT_FOLLOWING, now, now, stopped)
        elif not self._lockstep and (late := self.inputs.joint_states.overdue(now)):
            self._fire(Event.STALE_JOINT_STATES, now, now, str(late))
        elif self.authority is Authority.OPERATOR:
            if late := self.inputs.operator.overdue(now):
                self._fire(Event.RELEASE, now, now, str(late))
                self._needs_release = False  # the link failed, not the hand: it may resume where it is
        elif self._tracker.stale(now) or self.inputs.chunk.overdue(now):
            refusal = f"; last refused: {self.last_refusal}" if self.last_refusal else ""
            self._fire(Event.STALE_CHUNK, now, now, "; ".join(self._silent(now)) + refusal)
        elif missing := self.inputs.missing(now):
            self._fire(Event.MISSING, now, now, "; ".join(missing))

    def _stopped_by_itself(self, now: int) -> str:
        if not self._commanding:
            self.robot.follows(now)
            return ""
        setpoint, measured = self.envelope.setpoint, self.feedback.position
        self.latency.add(setpoint.position, setpoint.velocity, measured)
        return self.robot.stopped(setpoint.position, measured, now)

    def _silent(self, now: int) -> list[str]:
        return self.inputs.missing(now) or ["chunk: the newest one is older than its horizon"]

    # Transitions ----------------------------------------------------------------------------------------------

    def _blocked(self, event: Event, now: int) -> str:
        if self.authority is Authority.ESTOP:
            return "the e-stop is latched: call arm/reset first"
        if not self.machine.allows(event):
            return f"{self.authority.name} has control"
        if unsafe := self.inputs.estop_silence(now) or self.robot.fault:
            return unsafe
        missing = self.inputs.absent(now)
        if missing and self.last_refusal:
            missing.append(f"last refused: {self.last_refusal}")
        return (
            "; ".join(missing)
            or self.feedback.outside(CLOSE)
            or self.envelope.workspace.outside(self.feedback.position)
        )

    def _give_to_policy(self, event: Event, event_stamp: int, now: int, reason: str) -> Answer:
        if blocked := self._blocked(event, now):
            return Answer(False, f"{event.value} refused: {blocked}")
        self._fire(event, event_stamp, now, reason)
        self.inputs.begin(now + BEGIN_TIME)
        self._anchor()
        self._correction.clear()
        self._tracker.restart(self.envelope.rest_position, now)
        return Answer(True, reason)

    def _take_over(self, command: OperatorCommand, now: int) -> bool:
        if self._needs_release or not self.machine.allows(Event.TAKE_OVER):
            return False
        if not self.inputs.joint_states.fresh(now):
            self._refuse("take_over", f"take over refused: {self.inputs.joint_states.silence(now)}")
            return False
        if refused := self.inputs.estop_silence(now) or self.robot.fault or self.feedback.outside(CLOSE):
            self._refuse("take_over", f"take over refused: {refused}")
            return False
        self._fire(Event.TAKE_OVER, command.stamp, now, "the operator holds the deadman")
        self._anchor()
        self._clutch.engage(self.envelope.rest_position)
        self._clutch.accept(command, now)
        return True

    def _correct(self, command: OperatorCommand, now: int) -> bool:
        if self._needs_release:
            return False
        self._correction.begin(self.envelope.rest_position, now + int(LOOKAHEAD * SECOND))
        self._correction.accept(command, now)
        return self._fire(Event.CORRECT, command.stamp, now, "the operator corrects the policy")

    @property
    def _in_motion(self) -> bool:
        return self._commanding and not self.envelope.at_rest

    def _anchor(self) -> None:
        """Start a source where the arm is: at the setpoint while commands flow, else at the measured pose.

        At rest the setpoint is kept as far as it is close to that pose, so that the hardware feels no step. The gripper
        goes on from its setpoint: its distance to the measured width is the force on what it holds.
        """
        if self._commanding:
            return
        measured = self.feedback.position
        if not self._setpoint_known:
            self.envelope.anchor(measured)
            return
        setpoint = self.envelope.setpoint.position
        close = np.clip(setpoint, measured - CLOSE, measured + CLOSE)
        position = np.where(self.columns.is_gripper, setpoint, close)
        self.envelope.anchor(position)
        self._setpoint_known = bool(np.array_equal(position, setpoint))

    def _request(self, event: Event, now: int, reason: str) -> Answer:
        if self._fire(event, now, now, reason):
            return Answer(True, reason)
        refusal = self.machine.fire(event, now, now, reason)
        assert isinstance(refusal, Refusal), "a request that was just refused is refused again"
        return Answer(False, refusal.reason)

    def _fire(self, event: Event, event_stamp: int, now: int, reason: str) -> bool:
        """Apply an event if the table allows it; whether it did."""
        if not self.machine.allows(event):
            return False
        had_operator = self.authority in (Authority.OPERATOR, Authority.BLENDED)
        self.machine.fire(event, event_stamp, now, reason)
        if had_operator and event is not Event.RELEASE:
            self._needs_release = True  # a deadman that is still held must not take control back by itself
        if had_operator:
            self._correction.release(now + int(LOOKAHEAD * SECOND))
        self.first_command = 0
        self.first_step = np.zeros(len(self.columns))
        return True

    def _refuse(self, kind: str, reason: str) -> None:
        self.counts[kind] += 1
        if kind != "late_chunk":
            self.last_refusal = reason
