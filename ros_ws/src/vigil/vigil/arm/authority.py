"""Who may move the arm: one state machine, written as a table of allowed transitions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Authority(IntEnum):
    """Who controls the arm. Values equal the constants of ``ControlState``. BLENDED: the policy, corrected by the operator."""

    HOLD = 0
    POLICY = 1
    OPERATOR = 2
    ESTOP = 3
    BLENDED = 4


class Event(Enum):
    """What can change the authority; the value is the name that is published."""

    ENGAGE = "engage"
    HAND_BACK = "hand_back"
    TAKE_OVER = "take_over"
    CORRECT = "correct"
    RELEASE = "release"
    HOLD = "hold"
    ESTOP = "estop"
    RESET = "reset"
    ALARM = "alarm"
    STALE_CHUNK = "stale_chunk"
    BAD_CHUNK = "bad_chunk"
    BAD_COMMAND = "bad_command"
    STALE_JOINT_STATES = "stale_joint_states"
    JOINT_JUMP = "joint_jump"
    ENVELOPE = "envelope_violation"
    NOT_FOLLOWING = "not_following"
    ROBOT_FAULT = "robot_fault"
    MISSING = "missing_input"


_REQUESTS: dict[tuple[Authority, Event], Authority] = {
    (Authority.HOLD, Event.ENGAGE): Authority.POLICY,
    (Authority.HOLD, Event.HAND_BACK): Authority.POLICY,
    (Authority.OPERATOR, Event.HAND_BACK): Authority.POLICY,
    (Authority.HOLD, Event.TAKE_OVER): Authority.OPERATOR,
    (Authority.POLICY, Event.TAKE_OVER): Authority.OPERATOR,
    (Authority.OPERATOR, Event.RELEASE): Authority.HOLD,
    (Authority.POLICY, Event.CORRECT): Authority.BLENDED,
    (Authority.BLENDED, Event.RELEASE): Authority.POLICY,
    (Authority.POLICY, Event.HOLD): Authority.HOLD,
    (Authority.OPERATOR, Event.HOLD): Authority.HOLD,
    (Authority.BLENDED, Event.HOLD): Authority.HOLD,
    (Authority.ESTOP, Event.RESET): Authority.HOLD,
}
_ESTOPS = {
    (authority, Event.ESTOP): Authority.ESTOP for authority in Authority if authority is not Authority.ESTOP
}
# A fault holds the source that it concerns: what the policy needs does not stop an operator.
_OF_POLICY = (Authority.POLICY, Authority.BLENDED)
_OF_OPERATOR = (Authority.OPERATOR, Authority.BLENDED)
_OF_BOTH = (Authority.POLICY, Authority.OPERATOR, Authority.BLENDED)
_FAULTS = {
    Event.ALARM: _OF_POLICY,
    Event.STALE_CHUNK: _OF_POLICY,
    Event.BAD_CHUNK: _OF_POLICY,
    Event.MISSING: _OF_POLICY,
    Event.BAD_COMMAND: _OF_OPERATOR,
    Event.STALE_JOINT_STATES: _OF_BOTH,
    Event.JOINT_JUMP: _OF_BOTH,
    Event.ENVELOPE: _OF_BOTH,
    Event.NOT_FOLLOWING: _OF_BOTH,
    Event.ROBOT_FAULT: _OF_BOTH,
}
TRANSITIONS: dict[tuple[Authority, Event], Authority] = {
    **_REQUESTS,
    **_ESTOPS,
    **{(source, event): Authority.HOLD for event, sources in _FAULTS.items() for source in sources},
}
"""(authority, event) -> next authority. A pair that is not here is refused."""


@dataclass(frozen=True)
class Transition:
    """The last change of authority; stamps in ns of the node's clock."""

    count: int
    source: Authority
    target: Authority
    event: str
    reason: str
    event_stamp: int
    stamp: int


@dataclass(frozen=True)
class Refusal:
    """Why an event did not change the authority."""

    reason: str


class AuthorityMachine:
    """Holds the authority and its last transition; starts in HOLD."""

    def __init__(self) -> None:
        self.last = Transition(
            0, Authority.HOLD, Authority.HOLD, "start", "started: waiting for engage", 0, 0
        )

    @property
    def authority(self) -> Authority:
        """Who controls the arm now."""
        return self.last.target

    def allows(self, event: Event) -> bool:
        """Whether ``event`` would change the authority now."""
        return (self.authority, event) in TRANSITIONS

    def fire(self, event: Event, event_stamp: int, stamp: int, reason: str) -> Transition | Refusal:
        """Apply ``event``.

        Args:
            event: what happened.
            event_stamp: when it was raised [ns].
            stamp: now [ns], the time of the change.
            reason: in words, published with the state.

        Returns:
            The transition, or a Refusal (the authority is then unchanged).
        """
        target = TRANSITIONS.get((self.authority, event))
        if target is None:
            return Refusal(self._why_not(event))
        self.last = Transition(
            self.last.count + 1, self.authority, target, event.value, reason, event_stamp, stamp
        )
        return self.last

    def _why_not(self, event: Event) -> str:
        if self.authority is Authority.ESTOP:
            return f"{event.value} refused: the e-stop is latched, call arm/reset first"
        allowed = sorted(source.name for source, known in TRANSITIONS if known is event)
        return f"{event.value} refused: authority is {self.authority.name}, allowed from {', '.join(allowed)}"
