"""Holes in streams that ought to be steady, found while an episode is recorded: by acquisition stamps, as an export finds them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from vigil.record.dataset.streams import Gap, make_stream, told

FRAME = 1_000_000_000 // 30
"""[ns] An export's usual period: what is shorter than two and a half of it is no hole, however fast a stream is."""
LATE = 1_000_000_000
"""[ns] Streams that are subscribed for an episode take a moment to come on; longer than this is a hole."""


class Continuity:
    """Stamps of the streams that are to be steady.

    Args:
        streams: their names by topic.
    """

    def __init__(self, streams: Mapping[str, str]) -> None:
        self._names = {topic: name for topic, name in streams.items() if name}
        self._stamps = {topic: array("q") for topic in self._names}

    def note(self, topic: str, stamp: int) -> None:
        """A message came, stamped with ``stamp`` [ns]; topics that are not steady are passed over."""
        if topic in self._stamps:
            self._stamps[topic].append(stamp)

    def gaps(self, start: int, end: int | None = None) -> dict[str, list[Gap]]:
        """Holes of each stream, by topic, from the episode's ``start`` [ns] to ``end``, or the newest of all stamps.

        Kinds beside those of `Gap`: ``late``: nothing came at first. ``missing``: nothing came at all.
        """
        streams = {topic: make_stream(self._names[topic], np.array(s)) for topic, s in self._stamps.items()}
        newest = max((int(s.stamps[-1]) for s in streams.values() if len(s)), default=start)
        end = newest if end is None else end
        found = {}
        for topic, stream in streams.items():
            if not len(stream):
                found[topic] = [Gap(stream.name, "missing", start, end)] if end - start > LATE else []
                continue
            first = int(stream.stamps[0])
            late = [Gap(stream.name, "late", start, first)] if first - start > LATE else []
            found[topic] = late + stream.gaps(start, end, FRAME)
        return found

    def labels(self, start: int, end: int | None = None) -> list[str]:
        """The holes in words; empty if there are none."""
        return labels_of(self.gaps(start, end))


def labels_of(gaps: Mapping[str, Sequence[Gap]]) -> list[str]:
    """Holes of several streams in words; empty if there are none."""
    return [label for found in gaps.values() for label in told(found)]
