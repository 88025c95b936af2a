"""The policy's chunks as lines over time, in as few series as they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vigil.record.reader import EpisodeReader, stamp_ns


@dataclass
class Line:
    """One series of a plot; ``lengths`` says of each stamp whether it has a value (1), or breaks the line (0)."""

    stamps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, stamps: Sequence[int], values: Sequence[float]) -> None:
        """A stretch that is not joined to what follows it."""
        self.stamps += [*stamps, stamps[-1] + 1]
        self.values += values
        self.lengths += [1] * len(stamps) + [0]


def chunk_lines(reader: EpisodeReader) -> dict[tuple[str, int], Line]:
    """Targets of the policy's chunks by column and lane, [rad], [m].

    Chunks overlap, since each is replaced before its end. Those of one lane do not, so that few series hold them all.
    """
    lines: dict[tuple[str, int], Line] = {}
    ends: list[int] = []  # of the newest chunk in each lane [ns]
    for _, chunk in reader.messages("policy/chunk") if reader.has("policy/chunk") else ():
        targets = np.asarray(chunk.positions)
        if not targets.size or targets.size != chunk.horizon * len(chunk.names):
            continue
        due = stamp_ns(chunk.header.stamp) + np.round(np.arange(chunk.horizon) * chunk.step_dt * 1e9).astype(
            np.int64
        )
        lane = next((i for i, end in enumerate(ends) if end + 1 < due[0]), len(ends))
        ends[lane : lane + 1] = [int(due[-1])]
        for name, values in zip(chunk.names, targets.reshape(chunk.horizon, -1).T, strict=True):
            lines.setdefault((name, lane), Line()).add(due.tolist(), values.tolist())
    return lines
