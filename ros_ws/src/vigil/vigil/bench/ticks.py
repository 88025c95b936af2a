"""The policy node's ticks as they were heard, and what they cost above the bare graph."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vigil.policy.timing import Timing

SETTLING = 5  # first ticks that do not count
RESAMPLES = 2_000  # of a bootstrap


@dataclass
class Tick:
    """One tick of the policy node; stamps in ns of the system clock, 0: not heard.

    Attributes:
        observed: stamp of the observation.
        published: when the chunk was handed to the middleware.
        inference_s: what the node says of the time from the complete observation to the chunk [s].
        proven: when the evidence was.
    """

    number: int
    observed: int
    published: int
    inference_s: float
    proven: int = 0


@dataclass
class Ticks:
    """All that were heard. May be used from several threads."""

    heard: dict[int, Tick] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        with self._lock:
            return len(self.heard)

    def add(self, tick: Tick) -> None:
        with self._lock:
            self.heard[tick.number] = tick

    def complete(self, number: int, proven: int) -> None:
        """The evidence of a tick is there."""
        with self._lock:
            if number in self.heard:
                self.heard[number].proven = proven

    def counted(self) -> list[Tick]:
        """Those with evidence, without the first few."""
        with self._lock:
            ticks = [tick for _, tick in sorted(self.heard.items())]
        return [tick for tick in ticks[SETTLING:] if tick.proven]


@dataclass(frozen=True)
class NodeTimes:
    """What one K took in the node, and in the bare graph beside it.

    Attributes:
        samples: K.
        chunk: from the observation's stamp to the published chunk.
        given: of that the part until the last of its inputs was handed to the middleware: a source that is late is not the node's doing.
        complete: of that the part until the middleware had received the last input in the node's process.
        evidence: from the observation's stamp to the published evidence, which has all K.
        bare_chunk, bare_evidence: the graph alone: encoder and the first few samples; encoder and all of them.
        resize: of the pictures, alone.
        missed: ticks that were due and did not come.
        period: of the rig [s].
    """

    samples: int
    chunk: Timing
    given: Timing
    complete: Timing
    evidence: Timing
    bare_chunk: Timing
    bare_evidence: Timing
    resize: Timing
    missed: int
    period: float

    @property
    def fits(self) -> bool:
        """Whether a tick ends before the next one is due; chunks wait for the samples of the tick before where it does not."""
        return self.evidence.p99 < self.period * 1e3

    @property
    def response(self) -> Timing:
        """From the last input, as it was handed to the middleware, to the chunk."""
        return Timing(self.chunk.seconds - self.given.seconds)

    @property
    def evidence_response(self) -> Timing:
        """The same to the evidence."""
        return Timing(self.evidence.seconds - self.given.seconds)

    @property
    def inside(self) -> Timing:
        """From the last input's arrival in the node's process to the chunk: reading it, resizing, choice, publication and the graph."""
        return Timing(self.chunk.seconds - self.complete.seconds)


def overhead(whole: Timing, bare: Timing) -> tuple[float, float]:
    """What is added to the graph [ms]: difference of the medians, and of the 99th percentiles."""
    return whole.median - bare.median, whole.p99 - bare.p99


def interval(whole: Timing, bare: Timing) -> tuple[float, float]:
    """95 % of the difference of the 99th percentiles [ms], which are of few ticks: bootstrap over ticks and calls, seed 0."""
    rng = np.random.default_rng(0)

    def tails(timing: Timing) -> np.ndarray:
        return np.percentile(rng.choice(timing.seconds, (RESAMPLES, len(timing.seconds))), 99, axis=1)

    low, high = np.percentile(tails(whole) - tails(bare), [2.5, 97.5]) * 1e3
    return float(low), float(high)


def read_handed_over(logs: Iterable[Path]) -> dict[int, int]:
    """By stamp, when the last source handed over what it took then, both in ns; each log has a line ``stamp instant`` for each message."""
    last: dict[int, int] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            stamp, instant = map(int, line.split())
            last[stamp] = max(instant, last.get(stamp, 0))
    return last


def node_times(
    samples: int,
    ticks: list[Tick],
    period: float,
    bare: Mapping[str, np.ndarray],
    handed_over: Mapping[int, int],
) -> NodeTimes:
    """The figures of one K.

    Args:
        ticks: in order, at least two.
        period: between two of them, as the rig says [s].
        bare: seconds [n] of ``resize``, ``encoder``, ``first`` and ``rest``, the calls of one tick.
        handed_over: see `read_handed_over`; has the stamps of all ticks.
    """
    observed = np.array([tick.observed for tick in ticks])
    chunk = np.array([tick.published for tick in ticks]) - observed
    evidence = np.array([tick.proven for tick in ticks]) - observed
    given = np.array([handed_over[tick.observed] for tick in ticks]) - observed
    inference = np.array([tick.inference_s for tick in ticks])
    due = round((observed[-1] - observed[0]) / 1e9 / period) + 1
    return NodeTimes(
        samples=samples,
        chunk=Timing(chunk / 1e9),
        given=Timing(given / 1e9),
        complete=Timing(chunk / 1e9 - inference),
        evidence=Timing(evidence / 1e9),
        bare_chunk=Timing(bare["encoder"] + bare["first"]),
        bare_evidence=Timing(bare["encoder"] + bare["first"] + bare["rest"]),
        resize=Timing(bare["resize"]),
        missed=max(0, due - len(ticks)),
        period=period,
    )
