"""Every pair of authority and event against the table of the design."""

import itertools

import pytest

from vigil.arm.authority import TRANSITIONS, Authority, AuthorityMachine, Event, Refusal, Transition

HELD, POLICY, HAND, STOPPED = Authority.HOLD, Authority.POLICY, Authority.OPERATOR, Authority.ESTOP
BOTH = Authority.BLENDED
# Written out again from the design, source by source: what is not here must be refused.
ALLOWED = {
    HELD: {Event.ENGAGE: POLICY, Event.HAND_BACK: POLICY, Event.TAKE_OVER: HAND, Event.ESTOP: STOPPED},
    POLICY: {
        Event.ALARM: HELD,
        Event.STALE_CHUNK: HELD,
        Event.BAD_CHUNK: HELD,
        Event.MISSING: HELD,
        Event.STALE_JOINT_STATES: HELD,
        Event.JOINT_JUMP: HELD,
        Event.ENVELOPE: HELD,
        Event.NOT_FOLLOWING: HELD,
        Event.ROBOT_FAULT: HELD,
        Event.HOLD: HELD,
        Event.TAKE_OVER: HAND,
        Event.CORRECT: BOTH,
        Event.ESTOP: STOPPED,
    },
    HAND: {
        Event.RELEASE: HELD,
        Event.HOLD: HELD,
        Event.BAD_COMMAND: HELD,
        Event.STALE_JOINT_STATES: HELD,
        Event.JOINT_JUMP: HELD,
        Event.ENVELOPE: HELD,
        Event.NOT_FOLLOWING: HELD,
        Event.ROBOT_FAULT: HELD,
        Event.HAND_BACK: POLICY,
        Event.ESTOP: STOPPED,
    },
    BOTH: {
        Event.ALARM: HELD,
        Event.STALE_CHUNK: HELD,
        Event.BAD_CHUNK: HELD,
        Event.MISSING: HELD,
        Event.BAD_COMMAND: HELD,
        Event.STALE_JOINT_STATES: HELD,
        Event.JOINT_JUMP: HELD,
        Event.ENVELOPE: HELD,
        Event.NOT_FOLLOWING: HELD,
        Event.ROBOT_FAULT: HELD,
        Event.HOLD: HELD,
        Event.RELEASE: POLICY,
        Event.ESTOP: STOPPED,
    },
    STOPPED: {Event.RESET: HELD},
}
TO = {
    HELD: (),
    POLICY: (Event.ENGAGE,),
    HAND: (Event.TAKE_OVER,),
    STOPPED: (Event.ESTOP,),
    BOTH: (Event.ENGAGE, Event.CORRECT),
}


def machine_in(authority):
    machine = AuthorityMachine()
    for event in TO[authority]:
        machine.fire(event, 1, 2, "set up")
    assert machine.authority is authority
    return machine


@pytest.mark.parametrize(("source", "event"), list(itertools.product(Authority, Event)))
def test_every_pair(source, event):
    machine = machine_in(source)
    before = machine.last
    result = machine.fire(event, 10, 20, "because")
    expected = ALLOWED[source].get(event)
    if expected is None:
        assert isinstance(result, Refusal) and machine.last is before
        assert event.value in result.reason and source.name in result.reason.upper().replace(
            "E-STOP", "ESTOP"
        )
    else:
        assert result == Transition(before.count + 1, source, expected, event.value, "because", 10, 20)
        assert machine.authority is expected and machine.last is result


def test_allows_agrees_with_the_table():
    for source, event in itertools.product(Authority, Event):
        assert machine_in(source).allows(event) is ((source, event) in TRANSITIONS)


def test_starts_in_hold():
    assert AuthorityMachine().authority is Authority.HOLD


def test_only_reset_leaves_a_latched_estop():
    machine = machine_in(Authority.ESTOP)
    for event in Event:
        if event is not Event.RESET:
            assert "arm/reset" in machine.fire(event, 0, 0, "").reason
    machine.fire(Event.RESET, 0, 0, "")
    assert machine.authority is Authority.HOLD
