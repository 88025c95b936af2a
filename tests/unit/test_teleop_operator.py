"""The scripted operator's decisions, instant by instant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from vigil.teleop.device import Surroundings
from vigil.teleop.operator import Act, Phase, ScriptedOperator

TICK = 0.05


@dataclass
class Scene:
    """An arm that answers the operator's buttons as the authority table has it."""

    operator: ScriptedOperator
    around: Surroundings = field(
        default_factory=lambda: Surroundings(authority="HOLD", event="start", transition=0, scene=1)
    )
    now: float = 100.0
    deaf: bool = False
    needs_release: bool = False
    ready: bool = True
    log: list[str] = field(default_factory=list)

    def to(self, authority: str, event: str) -> None:
        self.around = replace(
            self.around, authority=authority, event=event, transition=self.around.transition + 1
        )
        self.log.append(authority)

    def tick(self) -> Act:
        act = self.operator.step(self.now, self.around)
        self.now += TICK
        self.needs_release &= act.deadman
        if (
            act.deadman
            and self.around.authority in ("HOLD", "POLICY")
            and not self.deaf
            and not self.needs_release
        ):
            self.to("OPERATOR", "take_over")
        elif not act.deadman and self.around.authority == "OPERATOR":
            self.to("HOLD", "release")
        elif act.hand_back and self.around.authority == "HOLD" and self.ready:
            self.to("POLICY", "hand_back")
        return act

    def run(self, seconds: float) -> list[Act]:
        return [self.tick() for _ in range(round(seconds / TICK))]


def scene(**options) -> Scene:
    return Scene(ScriptedOperator(**options))


def test_idle_until_asked_and_after_release():
    s = scene()
    assert s.run(1.0) == [Act()] * 20
    s.operator.ask(True)
    assert s.tick() == Act(deadman=True)
    assert s.tick() == Act(deadman=True, drive=True)
    s.around = replace(s.around, success=True)
    assert s.run(2.0) == [Act(deadman=True, drive=True)] * 40  # who asked says when it is enough
    s.operator.ask(False)
    assert s.tick() == Act()
    assert s.log == ["OPERATOR", "HOLD"]


def test_an_alarm_is_answered_finished_and_handed_back():
    s = scene(on_alarm=True, reaction=0.5)
    s.tick()
    s.to("POLICY", "engage")
    assert s.run(1.0) == [Act()] * 20
    s.to("HOLD", "alarm")
    reacting = s.run(0.5)
    assert not any(act.deadman for act in reacting)
    assert s.operator.phase is Phase.REACTING
    s.run(0.1)
    assert s.around.authority == "OPERATOR"
    assert all(act.drive for act in s.run(3.0))
    s.around = replace(s.around, success=True)
    s.run(1.5)
    assert s.log == ["POLICY", "HOLD", "OPERATOR", "HOLD", "POLICY"]
    assert s.operator.phase is Phase.WATCHING


def test_the_button_is_pressed_again_until_the_policy_is_ready():
    s = scene(on_alarm=True, reaction=0.0)
    s.tick()
    s.to("HOLD", "alarm")
    s.run(1.0)
    s.around = replace(s.around, success=True)
    s.ready = False
    acts = s.run(3.0)
    presses = sum(b.hand_back and not a.hand_back for a, b in pairwise(acts))
    assert presses >= 5
    s.ready = True
    s.run(0.5)
    assert s.around.authority == "POLICY"


def test_no_answer_to_other_holds_or_without_on_alarm():
    for options, event in (({"on_alarm": True}, "stale_chunk"), ({"on_alarm": False}, "alarm")):
        s = scene(**options)
        s.to("HOLD", event)
        assert s.run(2.0) == [Act()] * 40


def test_an_alarm_of_the_last_scene_or_after_the_end_is_not_answered():
    s = scene(on_alarm=True, reaction=0.0)
    s.tick()
    s.around = replace(s.around, success=True)
    s.to("HOLD", "alarm")
    assert s.run(1.0) == [Act()] * 20
    s.around = replace(s.around, success=False, scene=2)
    assert s.run(1.0) == [Act()] * 20
    s.to("POLICY", "engage")
    s.tick()
    s.to("HOLD", "alarm")
    s.run(0.2)
    assert s.around.authority == "OPERATOR"


def test_a_new_scene_while_driving_after_an_alarm_lets_go():
    s = scene(on_alarm=True, reaction=0.0)
    s.tick()
    s.to("HOLD", "alarm")
    s.run(0.5)
    assert s.around.authority == "OPERATOR"
    s.around = replace(s.around, scene=2)
    assert not any(act.deadman for act in s.run(1.0))


def test_a_failed_task_is_let_go():
    s = scene(on_alarm=True, reaction=0.0)
    s.tick()
    s.to("HOLD", "alarm")
    s.run(0.5)
    s.around = replace(s.around, failure=True)
    s.run(3.0)
    assert s.log == ["HOLD", "OPERATOR", "HOLD"]


def test_a_deadman_held_in_vain_is_pressed_anew():
    s = scene()
    s.operator.ask(True)
    s.needs_release = True
    s.run(1.0)
    assert s.around.authority == "OPERATOR"


def test_an_emergency_stop_ends_everything():
    s = scene()
    s.operator.ask(True)
    s.run(0.2)
    s.to("ESTOP", "estop")
    assert s.tick() == Act()
    s.to("HOLD", "reset")
    assert s.run(1.0) == [Act()] * 20
