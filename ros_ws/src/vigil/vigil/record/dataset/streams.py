"""Recorded samples on one time axis: acquisition stamps that strictly increase, and where they have holes.

Stamps come from clocks that may be set while a robot runs, and from devices that fall silent. Neither is repaired
here: what does not fit the axis is left out, and every such place becomes a `Gap` with its kind and its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# A hole is a gap when it is longer than so many periods: a single lost frame is an ordinary repeat.
LONGEST_PERIODS = 2.5


@dataclass(frozen=True)
class Gap:
    """A stretch of one stream without samples.

    Attributes:
        stream: whose; ``camera wrist``, ``joint states`` and so on.
        kind: ``silent``: nothing came. ``clock_step``: the clock was set back, what was stamped twice is left out.
            ``ended``: nothing came until the episode's end. ``odd_stamp``: one sample from the future was left out.
        start, end: stamps [ns] of the last sample before and the first one after (``ended``: the episode's end).
        discarded: samples left out because their stamps lay in the past.
        back_s: how far the clock was set back [s].
    """

    stream: str
    kind: str
    start: int
    end: int
    discarded: int = 0
    back_s: float = 0.0


@dataclass(frozen=True)
class Stream:
    """Samples of one source.

    Attributes:
        name: for messages and labels.
        stamps: int64 [n], ns, strictly increasing.
        index: int64 [n], each sample's place among all messages of its topic.
        steps: places where the clock was set back.
    """

    name: str
    stamps: np.ndarray
    index: np.ndarray
    steps: tuple[Gap, ...] = ()
    period: int = field(init=False, default=0)  # median distance of two stamps [ns]; 0 if there are not two

    def __post_init__(self) -> None:
        if len(self.stamps) > 1:
            object.__setattr__(self, "period", int(np.median(np.diff(self.stamps))))

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def rate(self) -> float:
        """Samples per second, by the median of the periods; 0 if there are not two samples."""
        return 1e9 / self.period if self.period else 0.0

    def gaps(self, start: int, end: int, frame: int) -> list[Gap]:
        """Holes between ``start`` and ``end``, clock steps included; ``frame`` is the period wanted; all in ns."""
        limit = LONGEST_PERIODS * max(self.period, frame)
        places = np.flatnonzero(np.diff(self.stamps) > limit)
        stepped = {step.start for step in self.steps}
        found = [
            Gap(self.name, "silent", int(self.stamps[i]), int(self.stamps[i + 1]))
            for i in places
            if int(self.stamps[i]) not in stepped
        ]
        found += self.steps
        if len(self.stamps) and end - self.stamps[-1] > limit:
            last = int(self.stamps[-1])
            found = [gap for gap in found if gap.start != last]
            step = next((gap for gap in self.steps if gap.start == last), None)
            kind, discarded, back = (
                ("ended", 0, 0.0) if step is None else (step.kind, step.discarded, step.back_s)
            )
            found.append(Gap(self.name, kind, last, end, discarded, back))
        return sorted((g for g in found if g.end >= start and g.start <= end), key=lambda g: g.start)

    def nearest(self, times: np.ndarray) -> np.ndarray:
        """Place in ``stamps`` of the sample nearest to each of ``times`` [ns]; the earlier one of two."""
        right = np.clip(np.searchsorted(self.stamps, times), 1, max(len(self.stamps) - 1, 1))
        left = right - 1
        if len(self.stamps) < 2:
            return np.zeros(len(times), np.int64)
        return np.where(times - self.stamps[left] <= self.stamps[right] - times, left, right)

    def before(self, times: np.ndarray) -> np.ndarray:
        """Place of the newest sample at or before each of ``times`` [ns]; -1 where there is none."""
        return np.searchsorted(self.stamps, times, side="right") - 1


def make_stream(name: str, stamps: Sequence[int] | np.ndarray, usable: np.ndarray | None = None) -> Stream:
    """A stream of the stamps [ns] in the order of arrival; ``usable`` [n] bool leaves samples out (not finite, say)."""
    stamps = np.asarray(stamps, np.int64)
    index = np.arange(len(stamps)) if usable is None else np.flatnonzero(usable)
    stamps = stamps[index]
    if len(stamps) < 2 or (np.diff(stamps) > 0).all():
        return Stream(name, stamps, index)
    kept, steps = _in_order(name, stamps)
    return Stream(name, stamps[kept], index[kept], steps)


def told(gaps: Sequence[Gap]) -> list[str]:
    """Gaps in words: a line for each kind in each stream."""
    lines = []
    for stream, kind in dict.fromkeys((gap.stream, gap.kind) for gap in gaps):
        alike = [gap for gap in gaps if (gap.stream, gap.kind) == (stream, kind)]
        longest = max(gap.end - gap.start for gap in alike) / 1e9
        discarded, back = sum(gap.discarded for gap in alike), max(gap.back_s for gap in alike)
        what = {
            "silent": f"silent for {longest:.3f} s",
            "ended": f"nothing in the last {longest:.3f} s",
            "late": f"nothing in the first {longest:.3f} s",
            "missing": "nothing came",
            "clock_step": f"clock set back by {back:.3f} s, {discarded} samples left out",
            "odd_stamp": f"{discarded} samples stamped in the future left out",
        }[kind]
        lines.append(f"{stream}: {what}" + (f" ({len(alike)} times)" if len(alike) > 1 else ""))
    return lines


def _in_order(name: str, stamps: np.ndarray) -> tuple[np.ndarray, tuple[Gap, ...]]:
    """Places of the stamps that are newer than all before them, and the steps back between them."""
    # One stamp from the future must not make all that follow look old: it is the one that is wrong.
    lone = np.zeros(len(stamps), bool)
    lone[1:-1] = (stamps[1:-1] > stamps[2:]) & (stamps[2:] > stamps[:-2])
    kept: list[int] = []
    steps: list[Gap] = []
    newest, old, back = np.iinfo(np.int64).min, 0, 0
    for i, stamp in enumerate(stamps.tolist()):
        if lone[i]:
            steps.append(Gap(name, "odd_stamp", newest, int(stamps[i + 1]), 1))
            continue
        if stamp <= newest:
            # The same instant twice is no step: a simulation may show one before and after it is reset.
            old += stamp < newest
            back = max(back, newest - stamp)
            continue
        if old:
            steps.append(Gap(name, "clock_step", newest, stamp, old, back / 1e9))
        kept.append(i)
        newest, old, back = stamp, 0, 0
    if old:
        steps.append(Gap(name, "clock_step", newest, newest, old, back / 1e9))
    return np.array(kept, np.int64), tuple(steps)
