"""Lock step: who has to report on an instant before simulated time goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Participant:
    """A node that time waits for.

    It is waited for from its first report on, at every instant that is a multiple of ``period`` [ns].
    """

    name: str
    period: int
    reported: int = 0  # newest instant it has reported on [ns]
    joined: bool = False


class Barrier:
    """Says when the instant ``now`` is complete.

    A participant that stays silent for ``patience`` wall seconds while it is waited for is dismissed, until it reports
    again: a dead node must not freeze the others.
    """

    def __init__(self, periods: dict[str, int], patience: float) -> None:
        """``periods`` [ns] by name of the participant."""
        self._participants = {name: Participant(name, period) for name, period in periods.items()}
        self._patience = patience
        self._waiting_since = 0.0
        self.now = 0

    def awaits(self, name: str) -> bool:
        """Whether ``name`` is somebody whom time may wait for."""
        return name in self._participants

    def begin(self, now: int, wall: float) -> None:
        """Instant ``now`` [ns] has been published at ``wall`` [s] of a steady clock."""
        self.now, self._waiting_since = now, wall

    def report(self, name: str, stamp: int) -> None:
        """``name`` is done with instant ``stamp`` [ns]; unknown names are nobody's concern."""
        participant = self._participants.get(name)
        if participant is not None:
            participant.joined = True
            participant.reported = max(participant.reported, stamp)

    def leave(self, name: str) -> None:
        """``name`` is not waited for until it reports again."""
        if name in self._participants:
            self._participants[name].joined = False

    def missing(self) -> list[str]:
        """Whom the present instant waits for."""
        return [
            p.name
            for p in self._participants.values()
            if p.joined and self.now % p.period == 0 and p.reported < self.now
        ]

    @property
    def alone(self) -> bool:
        """Nobody has joined: there is nothing to be quick for."""
        return not any(p.joined for p in self._participants.values())

    def waited(self, wall: float) -> float:
        """Wall seconds since the present instant was published."""
        return wall - self._waiting_since

    def dismiss_silent(self, wall: float) -> list[str]:
        """Drop those whom the present instant has waited for too long; returns their names."""
        if self.waited(wall) < self._patience:
            return []
        silent = self.missing()
        for name in silent:
            self.leave(name)
        return silent
