"""Counting what got lost on the way to the recorder."""

from __future__ import annotations

from collections import Counter


class GapCounter:
    """Finds lost messages by gaps in the sequence numbers that the middleware gives each publisher's messages."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self.lost: Counter[str] = Counter()

    def note(self, topic: str, number: int | None) -> None:
        """The next message of ``topic``. ``number`` None (a middleware without numbers) tells nothing."""
        if number is None:
            return
        last = self._last.get(topic)
        # A number that is not higher belongs to another publisher: the node was started anew.
        if last is not None and number > last:
            self.lost[topic] += number - last - 1
        self._last[topic] = number

    def forget(self, topic: str) -> None:
        """The topic was not listened to for a while."""
        self._last.pop(topic, None)

    def restart(self) -> None:
        """Count losses from zero; the sequence goes on."""
        self.lost = Counter()
