"""How an episode is waited for and, where it was held without an alarm, resumed."""

from types import SimpleNamespace as Message

import pytest

from vigil.errors import VigilError
from vigil.rig import load_rig
from vigil.run.episodes import RESUMES, Resumer, clear, require_simulation, wait_for_end


class Client:
    """A rig of which only the newest messages are known; `wait_until` plays the next of ``script``."""

    def __init__(self, *script):
        self.script = list(script)
        self.engaged = 0
        self.refuses = False
        self.next()

    def next(self):
        self.task, self.arm = self.script.pop(0)

    def engage(self):
        if self.refuses:
            raise VigilError("not ready")
        self.engaged += 1

    def wait_until(self, predicate, timeout, what):
        while self.script:
            self.next()
            if predicate(self):
                return True
        raise VigilError(f"{what}: not within {timeout} s")


def task(elapsed, success=False, failure=False):
    return Message(
        elapsed=elapsed,
        success=success,
        failure=failure,
        failure_reason="timeout" if failure else "",
        header=Message(stamp=elapsed),
    )


def arm(authority="POLICY", event="engage", transition=1, ready=False):
    return Message(
        authority_name=authority,
        event=event,
        transition=transition,
        ready=ready,
        reason=event.replace("_", " "),
    )


def test_the_tasks_truth_ends_an_episode():
    assert wait_for_end(Client((task(0), arm()), (task(1, success=True), arm()))) == (
        "success",
        "task_success",
    )
    assert wait_for_end(Client((task(0), arm()), (task(1, failure=True), arm()))) == ("failure", "timeout")


def test_a_watch_ends_an_episode_as_a_failure():
    client = Client((task(0), arm()), (task(1), arm("ESTOP")))
    said = wait_for_end(client, lambda c: "stopped" if c.arm.authority_name == "ESTOP" else None)
    assert said == ("failure", "stopped")


def test_time_that_stands_still_is_an_error():
    with pytest.raises(VigilError, match="simulated time advances"):
        wait_for_end(Client((task(0), arm()), (task(0), arm())))


def test_a_hold_without_an_alarm_is_resumed_once_the_arm_is_ready():
    watch = Resumer(hold_on_alarm=False)
    client = Client((task(0), arm("HOLD", "stale_chunk", 2)))
    assert watch(client) is None and client.engaged == 0
    client.arm.ready = True
    assert watch(client) is None and client.engaged == 1
    assert watch(client) is None and client.engaged == 1, "answered once per hold"


def test_a_refused_resumption_is_tried_again():
    watch, client = Resumer(hold_on_alarm=False), Client((task(0), arm("HOLD", "stale_chunk", 2, ready=True)))
    client.refuses = True
    assert watch(client) is None
    client.refuses = False
    assert watch(client) is None and client.engaged == 1


def test_resuming_ends_after_a_few_times():
    watch, client = Resumer(hold_on_alarm=False), Client((task(0), arm()))
    for number in range(RESUMES):
        client.arm = arm("HOLD", "stale_chunk", number, ready=True)
        assert watch(client) is None
    client.arm = arm("HOLD", "stale_chunk", RESUMES, ready=True)
    assert watch(client) == "hold: stale chunk" and client.engaged == RESUMES


@pytest.mark.parametrize("ends, said", [(True, "held_on_alarm"), (False, None)])
def test_a_hold_by_an_alarm_is_never_resumed(ends, said):
    client = Client((task(0), arm("HOLD", "alarm", 2, ready=True)))
    assert Resumer(hold_on_alarm=ends)(client) == said and client.engaged == 0


def test_what_an_attempt_left_is_cleared_and_nothing_else(tmp_path):
    for name in ("demo_1.mcap", "demo_1.discarded.json", "demo_1.mcap.discarded", "demo_10.mcap"):
        (tmp_path / name).touch()
    clear(tmp_path, "demo_1")
    assert [p.name for p in tmp_path.iterdir()] == ["demo_10.mcap"]


def test_a_real_robot_is_refused_by_name():
    require_simulation(load_rig("franka_sim"), "evaluation")
    with pytest.raises(VigilError, match="evaluation needs a simulation, and rig franka "):
        require_simulation(load_rig("franka"), "evaluation")
