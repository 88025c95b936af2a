"""When a scripted operator takes over, lets go and hands back. No commands are made here, only decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vigil.teleop.device import Surroundings

PRESS = 0.5  # [s] the deadman is held without being given control, before it is let go for another try
LET_GO = 0.15  # [s] it is let go for
AFTER_SUCCESS = 0.5  # [s] the arm is still moved clear after the task succeeded
PULSE, PULSE_PERIOD = 0.1, 0.3  # [s] the button that hands back is pressed, repeatedly
PATIENCE = 10.0  # [s] for the policy to take over


class Phase(Enum):
    """What the operator is doing."""

    WATCHING = "watching"
    REACTING = "reacting to an alarm"
    DRIVING = "driving"
    LETTING_GO = "letting go"
    HANDING_BACK = "handing back"


@dataclass(frozen=True)
class Act:
    """Buttons at one instant; ``drive``: the arm listens, so the commands may move."""

    deadman: bool = False
    drive: bool = False
    hand_back: bool = False


class ScriptedOperator:
    """Drives on request (`ask`), and if ``on_alarm`` whenever an alarm holds the arm.

    On request it drives until the request is withdrawn. After an alarm it finishes the task, lets go and hands back
    to the policy; if the task fails it lets go only.

    Args:
        on_alarm: take over by itself.
        reaction: time that a person takes from the alarm to the deadman [s].
    """

    def __init__(self, on_alarm: bool = False, reaction: float = 0.5) -> None:
        self._on_alarm, self._reaction = on_alarm, reaction
        self.phase = Phase.WATCHING
        self._since = 0.0  # of the phase
        self._asked = False
        self._answered = -1  # transition to HOLD that needs no answer any more
        self._scene = -1
        self._succeeded: float | None = None
        self._pressed: float | None = None  # since when the deadman is held in vain

    def ask(self, active: bool) -> None:
        """Take over now, or release now."""
        self._asked = active
        if not active:
            self.phase = Phase.WATCHING

    def step(self, now: float, around: Surroundings) -> Act:
        """Decide for the instant ``now`` [s]."""
        if around.scene != self._scene:
            self._scene = around.scene
            self._answered = around.transition
            if not self._asked:
                self._enter(Phase.WATCHING, now)
        if around.authority == "ESTOP":
            self._asked = False
            self._enter(Phase.WATCHING, now)
        elif self._asked and self.phase is not Phase.DRIVING:
            self._enter(Phase.DRIVING, now)
        return {
            Phase.WATCHING: self._watch,
            Phase.REACTING: self._react,
            Phase.DRIVING: self._drive,
            Phase.LETTING_GO: self._let_go,
            Phase.HANDING_BACK: self._hand_back,
        }[self.phase](now, around)

    def _enter(self, phase: Phase, now: float) -> Act:
        self.phase, self._since = phase, now
        self._succeeded = self._pressed = None
        return Act()

    def _watch(self, now: float, around: Surroundings) -> Act:
        if self._on_alarm and _alarmed(around) and around.transition != self._answered:
            if around.success or around.failure:
                self._answered = around.transition  # nothing is left to save
            else:
                self._enter(Phase.REACTING, now)
        return Act()

    def _react(self, now: float, around: Surroundings) -> Act:
        if not _alarmed(around):
            return self._enter(Phase.WATCHING, now)  # somebody else was quicker
        if now - self._since < self._reaction:
            return Act()
        self._answered = around.transition
        self._enter(Phase.DRIVING, now)
        return self._drive(now, around)

    def _drive(self, now: float, around: Surroundings) -> Act:
        if not self._asked:
            if around.failure:
                return self._enter(Phase.WATCHING, now)
            if around.success:
                self._succeeded = now if self._succeeded is None else self._succeeded
                if now - self._succeeded >= AFTER_SUCCESS:
                    return self._enter(Phase.LETTING_GO, now)
        if around.authority == "OPERATOR":
            self._pressed = None
            return Act(deadman=True, drive=True)
        # The arm ignores a deadman that was held through a fault: it has to be let go before it counts again.
        self._pressed = now if self._pressed is None else self._pressed
        held = (now - self._pressed) % (PRESS + LET_GO)
        return Act(deadman=held < PRESS)

    def _let_go(self, now: float, around: Surroundings) -> Act:
        if around.authority != "OPERATOR" and now - self._since >= LET_GO:
            return self._enter(Phase.HANDING_BACK, now)
        return Act()

    def _hand_back(self, now: float, around: Surroundings) -> Act:
        if around.authority != "HOLD" or now - self._since > PATIENCE:
            return self._enter(Phase.WATCHING, now)
        return Act(hand_back=(now - self._since) % PULSE_PERIOD < PULSE)


def _alarmed(around: Surroundings) -> bool:
    return around.authority == "HOLD" and around.event == "alarm"
