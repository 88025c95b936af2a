"""What happened in one recorded episode: who was in control when, what the monitor said, how fast the arm answered.

Works on decoded messages, so every figure comes from recorded stamps. Times inside a recording are in ns of the rig's
clock; what is handed out is in s since the episode's start, which is when the policy (or else an operator) got control.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.run.story import Event, ScoreSeries, Span

KINDS = ("observation", "action")  # FailureStatus.score_kinds
DRIVING = ("POLICY", "BLENDED")  # the policy moves the arm, by itself or corrected


@dataclass(frozen=True)
class Recorded:
    """One message of a recording; ``at`` is when the recorder received it, ``published`` when it was sent [ns]."""

    at: int
    published: int
    message: Any


@dataclass(frozen=True)
class Change:
    """One change of authority, of ``ControlState``; stamps in ns, ``first_command`` 0 if nothing was sent."""

    authority: str
    event: str
    reason: str
    raised: int
    made: int
    first_command: int
    first_step: dict[str, float]  # first command minus measured position, by joint [rad, m]


class Timeline:
    """One episode's control states, verdicts and task states, on one time axis.

    Attributes:
        start, end: the episode in ns: control was given; the task ended (or the recording did).
        changes: every change of authority from ``start`` on.
    """

    def __init__(
        self,
        arm: Sequence[Recorded],
        verdicts: Sequence[Recorded],
        task: Sequence[Recorded],
        hold_on: Iterable[str],
    ) -> None:
        """``hold_on``: verdicts that ask for a hold (``monitor.hold_on`` of the rig).

        Raises:
            VigilError: nobody ever had control in this recording.
        """
        self._changes_all = _changes([r.message for r in arm])
        starts = [c.made for c in self._changes_all if c.authority in ("POLICY", "OPERATOR")]
        if not starts:
            raise VigilError(
                "the recording has no change of authority to POLICY or OPERATOR: nothing happened in it"
            )
        self.start = starts[0]
        self._last = max(nanoseconds(r.message.header.stamp) for r in arm)
        self._task = [r.message for r in task if nanoseconds(r.message.header.stamp) >= self.start]
        ended = [m for m in self._task if m.success or m.failure]
        self.end = nanoseconds(ended[0].header.stamp) if ended else self._last
        self.changes = tuple(c for c in self._changes_all if c.made >= self.start)
        self._arm = [r.message for r in arm]
        self._asks = frozenset(hold_on)
        self.verdicts = [r for r in verdicts if nanoseconds(r.message.header.stamp) >= self.start]

    # Times ----------------------------------------------------------------------------------------------------

    def seconds(self, stamp: int) -> float:
        """A stamp in s since the episode's start."""
        return (stamp - self.start) / 1e9

    @property
    def duration(self) -> float:
        """From control given to the task's end [s]."""
        return max(self.seconds(self.end), 0.0)

    @property
    def length(self) -> float:
        """From control given to the end of the recording [s]."""
        return max(self.seconds(self._last), self.duration)

    # Monitor --------------------------------------------------------------------------------------------------

    def alarms(self) -> list[Recorded]:
        """The first verdict of each series of verdicts that ask for a hold, while the policy had control."""
        found, before = [], False
        for recorded in self.verdicts:
            stamp = nanoseconds(recorded.message.header.stamp)
            asks = recorded.message.verdict_name in self._asks and stamp <= self.end
            if asks and not before and self.authority_at(stamp) in DRIVING:
                found.append(recorded)
            before = asks
        return found

    def first_alarm_s(self) -> float | None:
        """Observation time of the first alarm [s]; None without one."""
        alarms = self.alarms()
        return max(self.seconds(nanoseconds(alarms[0].message.header.stamp)), 0.0) if alarms else None

    def verdict_names(self) -> list[str]:
        """Each verdict that occurred while the policy had control, once, in order of appearance."""
        names = (
            r.message.verdict_name
            for r in self.verdicts
            if self.authority_at(nanoseconds(r.message.header.stamp)) in DRIVING
        )
        return list(dict.fromkeys(names))

    def scores(self) -> tuple[ScoreSeries, ...]:
        """Every score over the episode, by name."""
        names = dict.fromkeys(n for r in self.verdicts for n in r.message.score_names)
        series = []
        for name in names:
            rows = []
            kind = 0
            for recorded in self.verdicts:
                message = recorded.message
                if name in message.score_names:
                    i = list(message.score_names).index(name)
                    kind = int(message.score_kinds[i])
                    at = self.seconds(nanoseconds(message.header.stamp))
                    rows.append((at, message.windowed[i], message.thresholds[i]))
            stamps, windowed, thresholds = np.array(rows, float).reshape(-1, 3).T
            series.append(ScoreSeries(name, KINDS[kind], stamps, windowed, thresholds))
        return tuple(series)

    # Control --------------------------------------------------------------------------------------------------

    def authority_at(self, stamp: int) -> str:
        """Who had control at ``stamp`` [ns]."""
        name = "HOLD"
        for change in self._changes_all:
            if change.made > stamp:
                break
            name = change.authority
        return name

    def spans(self) -> tuple[Span, ...]:
        """Who had control, from the start to the end of the recording."""
        edges = [self.seconds(c.made) for c in self.changes] + [self.length]
        return tuple(
            Span(edges[i], edges[i + 1], change.authority, change.reason)
            for i, change in enumerate(self.changes)
        )

    def first(self, event: str) -> Change | None:
        """The first change of authority that ``event`` caused."""
        return next((c for c in self.changes if c.event == event), None)

    def holds(self) -> list[dict[str, Any]]:
        """Every change to HOLD before the task's end that nobody asked for: ``at_s``, ``event``, ``reason``."""
        return [
            {"at_s": round(self.seconds(c.made), 3), "event": c.event, "reason": c.reason}
            for c in self.changes
            if c.authority == "HOLD" and c.event not in ("release", "hold") and c.made <= self.end
        ]

    def alarm_to_hold_ms(self) -> float | None:
        """From the monitor's sending of the alarm to the change of authority [ms]; None without such a change.

        Sending is the time that DDS attached to the verdict, on the same host's clock as the arm's stamps. In lock
        step, where the arm's clock is simulated, the arm's own receipt of the verdict stands for it.
        """
        change, alarms = self.first("alarm"), self.alarms()
        if change is None or not alarms:
            return None
        sent = alarms[0].published
        same_clock = 0 <= change.made - sent < 60_000_000_000
        return (change.made - (sent if same_clock else change.raised)) / 1e6

    def takeover(self) -> Change | None:
        """The first takeover by an operator."""
        return next((c for c in self.changes if c.authority == "OPERATOR"), None)

    def handed_back(self) -> bool:
        """The policy had control again after an operator."""
        names = [c.authority for c in self.changes]
        return "OPERATOR" in names and "POLICY" in names[names.index("OPERATOR") :]

    def period_p99(self) -> float:
        """99 % quantile of the arm's control period, of its stamps [s]."""
        stamps = np.array([nanoseconds(m.header.stamp) for m in self._arm], float)
        periods = np.diff(stamps[stamps >= self.start]) / 1e9
        return float(np.quantile(periods, 0.99)) if len(periods) else 0.0

    def perturbed_s(self) -> float | None:
        """When the scripted perturbation began [s]; None if it did not."""
        begun = [m for m in self._task if m.perturbation_active]
        return self.seconds(nanoseconds(begun[0].header.stamp)) if begun else None

    def events(self) -> tuple[Event, ...]:
        """What to mark in a drawing."""
        marks = []
        if (begun := self.perturbed_s()) is not None and self._task[0].perturbation not in ("", "none"):
            marks.append(Event(max(begun, 0.0), "end", self._task[0].perturbation.replace("_", " ")))
        for recorded in self.alarms():
            at = self.seconds(nanoseconds(recorded.message.header.stamp))
            marks.append(Event(at, "alarm", recorded.message.verdict_name.lower().replace("_", " ")))
        words = {
            "HOLD": "hold",
            "OPERATOR": "operator takes over",
            "POLICY": "handed to the policy",
            "BLENDED": "operator corrects the policy",
            "ESTOP": "e-stop",
        }
        for change in self.changes[1:]:
            why = f" ({change.event.replace('_', ' ')})" if change.authority == "HOLD" else ""
            marks.append(
                Event(self.seconds(change.made), change.authority.lower(), words[change.authority] + why)
            )
        if self._task and (self._task[-1].success or self._task[-1].failure):
            reason = "task done" if self._task[-1].success else self._task[-1].failure_reason
            marks.append(Event(self.duration, "end", reason))
        return tuple(marks)


def nanoseconds(stamp: Any) -> int:
    """A message stamp (``sec``, ``nanosec``) in ns."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _changes(states: Sequence[Any]) -> tuple[Change, ...]:
    """Changes of authority in a series of control states; the one that was in force at the beginning is left out."""
    last: dict[int, Any] = {}
    for state in states:
        last[state.transition] = state  # the last state of each has the stamp of the first command
    before = states[0].transition if states else 0
    return tuple(
        Change(
            authority=s.authority_name,
            event=s.event,
            reason=s.reason,
            raised=nanoseconds(s.event_stamp),
            made=nanoseconds(s.transition_stamp),
            first_command=nanoseconds(s.first_command_stamp),
            first_step={name: float(step) for name, step in zip(s.names, s.first_step, strict=False)},
        )
        for number, s in sorted(last.items())
        if number != before
    )
