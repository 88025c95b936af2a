"""Which of several measured samplers to use: the cheapest inside a budget that is not worse than the best.

"Not worse" is judged by intervals, so the answer depends on how much was measured; `Recommendation.caveats` says where
it rests on too little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vigil.errors import VigilError
from vigil.run.statistics import wilson

MARGIN = 0.10  # a loss of success that an interval should be able to show
FEWEST_DEMONSTRATIONS = 5  # below which a bootstrap over them says nothing


@dataclass(frozen=True)
class Measured:
    """One sampler of one bundle, and what was measured of it.

    Attributes:
        name: how it is called in tables and messages.
        limit_ms: what one inference may take for another reason than the budget: a streaming sampler is due with every
            step that it emits.
        latency_ms, p99_ms: one inference with the rig's K, encoder included; median and 99th percentile.
        error, error_low, error_high: action error against demonstrations, and its 95 % interval; None: not measured.
        error_episodes: number of these demonstrations.
        successes, n: closed-loop episodes; n = 0: none were run.
    """

    name: str
    latency_ms: float
    p99_ms: float
    limit_ms: float = math.inf
    error: float | None = None
    error_low: float | None = None
    error_high: float | None = None
    error_episodes: int = 0
    successes: int = 0
    n: int = 0

    @property
    def rate(self) -> float | None:
        """Share of episodes that succeeded."""
        return self.successes / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson(self.successes, self.n)

    def fits(self, budget_ms: float) -> bool:
        """Whether one inference is done in time at its 99th percentile."""
        return self.p99_ms <= min(budget_ms, self.limit_ms)


@dataclass(frozen=True)
class Recommendation:
    """The sampler to use, why, and what speaks against relying on that; all in words."""

    name: str
    why: str
    caveats: tuple[str, ...]


def require_one_inside(measured: Sequence[Measured], budget_ms: float) -> None:
    """VigilError if no sampler is fast enough; says which one comes nearest."""
    if any(m.fits(budget_ms) for m in measured):
        return
    nearest = min(measured, key=lambda m: m.p99_ms - min(budget_ms, m.limit_ms))
    limit = min(budget_ms, nearest.limit_ms)
    raise VigilError(
        f"no sampler is inside {limit:g} ms: {nearest.name} comes nearest with {nearest.p99_ms:.1f} ms at the 99th percentile. "
        "Raise --budget, lower policy.samples in the rig file, or export a sampler with fewer steps"
    )


def recommend(measured: Sequence[Measured], budget_ms: float) -> Recommendation:
    """The cheapest of ``measured`` inside ``budget_ms`` that is not worse than the best of all.

    Success decides: not worse is whose rate lies within the 95 % interval of the best one's. Without episodes the action
    error takes its place, which tells less: chunks that differ from the demonstrations may succeed all the same.

    Raises:
        VigilError: none is inside the budget, or neither success nor error was measured.
    """
    require_one_inside(measured, budget_ms)
    inside = [m for m in measured if m.fits(budget_ms)]
    if all(m.n for m in measured):
        return _by_success(measured, inside, budget_ms)
    if all(m.error is not None for m in measured):
        return _by_error(measured, inside, budget_ms)
    raise VigilError(
        "nothing to choose by: measure closed-loop episodes (--episodes) or give demonstrations (--data)"
    )


def _by_success(measured: Sequence[Measured], inside: Sequence[Measured], budget_ms: float) -> Recommendation:
    best = max(measured, key=lambda m: (m.rate, m.n, -m.latency_ms))
    low, _ = best.interval
    good = [m for m in inside if m.rate >= low]
    told = (
        f"{best.name}, which succeeds most often ({_rate(best)}, {_share(low)} to {_share(best.interval[1])})"
    )
    if not good:
        chosen = max(inside, key=lambda m: (m.rate, -m.latency_ms))
        why = f"of those inside {budget_ms:g} ms it succeeds most often ({_rate(chosen)})"
        worse = f"it is worse than {told}, whose inference takes {best.p99_ms:.1f} ms at the 99th percentile"
        return Recommendation(chosen.name, why, (worse, *_too_few([chosen, best])))
    chosen = min(good, key=lambda m: m.latency_ms)
    if chosen is best:
        why = f"it succeeds most often ({_rate(chosen)}), and none that is faster comes within the interval of that"
        if len(measured) == 1:
            why = f"it is the only one ({_rate(chosen)} succeeded)"
        elif chosen is min(measured, key=lambda m: m.latency_ms):
            why = f"it is the fastest, and none succeeds more often ({_rate(chosen)})"
    else:
        why = (
            f"it is the fastest inside {budget_ms:g} ms ({chosen.latency_ms:.1f} ms) whose success ({_rate(chosen)}) lies within "
            f"the interval of {told}"
        )
    return Recommendation(chosen.name, why, _too_few([chosen, best]))


def _by_error(measured: Sequence[Measured], inside: Sequence[Measured], budget_ms: float) -> Recommendation:
    best = min(measured, key=lambda m: (m.error, m.latency_ms))
    good = [m for m in inside if m.error <= best.error_high]
    if len(measured) == 1:
        chosen, why = best, f"it is the only one (action error {best.error:.3f})"
    elif good:
        chosen = min(good, key=lambda m: m.latency_ms)
        why = (
            f"it is the fastest inside {budget_ms:g} ms ({chosen.latency_ms:.1f} ms) whose action error ({chosen.error:.3f}) lies "
            f"within the interval of the smallest ({best.name}, {best.error:.3f})"
        )
    else:
        chosen = min(inside, key=lambda m: m.error)
        why = (
            f"of those inside {budget_ms:g} ms it has the smallest action error ({chosen.error:.3f}; {best.name} has "
            f"{best.error:.3f}, but is outside)"
        )
    caveats = ["it rests on the action error alone, which does not tell how often the task succeeds"]
    if best.error_episodes < FEWEST_DEMONSTRATIONS:
        caveats.append(
            f"too few demonstrations: {best.error_episodes}, of which no interval can be trusted; give {FEWEST_DEMONSTRATIONS} or more"
        )
    return Recommendation(chosen.name, why, tuple(caveats))


def _too_few(compared: Sequence[Measured]) -> tuple[str, ...]:
    """What the numbers of episodes do not allow to say."""
    loose = [m for m in dict.fromkeys(compared) if m.rate - m.interval[0] > MARGIN]
    if not loose:
        return ()
    worst = max(loose, key=lambda m: m.rate - m.interval[0])
    return (
        f"too few episodes: {_rate(worst)} of {worst.name} is compatible with a true rate of {_share(worst.interval[0])}. About "
        f"{episodes_needed(worst.rate)} each would show a loss of {_share(MARGIN)}",
    )


def episodes_needed(rate: float, margin: float = MARGIN) -> int:
    """Episodes at which Wilson's interval of ``rate`` ends no more than ``margin`` below it."""
    n = 1
    while True:
        successes = round(rate * n)
        if successes / n - wilson(successes, n)[0] <= margin and abs(successes / n - rate) < margin / 4:
            return n
        n += 1


def _rate(measured: Measured) -> str:
    return f"{measured.successes} of {measured.n}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
