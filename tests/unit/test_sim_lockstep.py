"""When simulated time may go on."""

from __future__ import annotations

from vigil.sim.lockstep import Barrier

TICK = 10


def barrier() -> Barrier:
    return Barrier({"arm": TICK, "policy": 4 * TICK}, patience=2.0)


def test_nobody_is_waited_for_before_the_first_report():
    waits = barrier()
    waits.begin(40, wall=0.0)
    assert waits.alone and not waits.missing()


def test_every_participant_is_waited_for_at_its_own_period():
    waits = barrier()
    waits.report("arm", 30)
    waits.report("policy", 0)
    waits.begin(30, wall=0.0)
    assert waits.missing() == []
    waits.begin(40, wall=0.1)
    assert waits.missing() == ["arm", "policy"]
    waits.report("arm", 40)
    assert waits.missing() == ["policy"]
    waits.report("policy", 40)
    assert waits.missing() == []
    waits.begin(50, wall=0.2)
    assert waits.missing() == ["arm"]


def test_old_and_unknown_reports_do_not_count():
    waits = barrier()
    waits.begin(20, wall=0.0)
    waits.report("arm", 10)
    waits.report("stranger", 20)
    assert waits.missing() == ["arm"]
    waits.report("arm", 20)
    waits.report("arm", 10)
    assert waits.missing() == []


def test_a_silent_participant_is_dismissed_until_it_reports_again():
    waits = barrier()
    waits.report("arm", 10)
    waits.begin(20, wall=1.0)
    assert waits.dismiss_silent(2.9) == []
    assert waits.dismiss_silent(3.1) == ["arm"]
    assert waits.alone and waits.missing() == []
    waits.report("arm", 20)
    waits.begin(30, wall=4.0)
    assert waits.missing() == ["arm"]
    waits.leave("arm")
    assert waits.missing() == []
