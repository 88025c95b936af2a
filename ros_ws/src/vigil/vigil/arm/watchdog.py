"""Named watchdogs: how long ago each input was heard, and which ones are overdue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vigil.arm.curves import SECOND
from vigil.joints import joint_sources
from vigil.rig import RigConfig


@dataclass(frozen=True)
class Overdue:
    """An input that was not heard within its limit; seconds, ``age`` None if it was never heard."""

    name: str
    limit: float
    age: float | None

    def __str__(self) -> str:
        if self.age is None:
            return f"{self.name}: nothing heard yet"
        return f"{self.name}: nothing for {self.age:.2f} s (limit {self.limit} s)"


class Watchdog:
    """Watches one input; instants in ns.

    Args:
        name: what is watched, as published.
        limit: longest silence [s].
    """

    def __init__(self, name: str, limit: float) -> None:
        self.name, self.limit = name, limit
        self._limit = int(limit * SECOND)
        self._heard: int | None = None
        self._excused_until = 0

    def feed(self, instant: int) -> None:
        """The input was heard at ``instant``."""
        self._heard = instant

    def excuse(self, until: int) -> None:
        """Silence counts from ``until`` at the earliest (the input needs time to begin)."""
        self._excused_until = until

    def forget(self) -> None:
        """As if the input had never been heard."""
        self._heard = None

    @property
    def heard(self) -> bool:
        """Whether the input was ever heard."""
        return self._heard is not None

    def fresh(self, now: int) -> bool:
        """Whether the input was truly heard within its limit, excused or not."""
        return self._heard is not None and now - self._heard <= self._limit

    def overdue(self, now: int) -> Overdue | None:
        """What to report if the input is overdue at ``now``, else None."""
        return None if self.fresh(now) or now <= self._excused_until else self.silence(now)

    def silence(self, now: int) -> Overdue:
        """How long the input has been silent."""
        age = None if self._heard is None else (now - self._heard) / SECOND
        return Overdue(self.name, self.limit, age)


class JointWatchdog:
    """Watches every topic of joint states; the arms move only while all of them are heard."""

    def __init__(self, topics: Sequence[str], limit: float) -> None:
        names = ["joint_states"] if len(topics) == 1 else list(topics)
        self._watches = [Watchdog(name, limit) for name in names]

    def feed(self, instant: int, source: int = 0) -> None:
        """The topic number ``source`` was heard at ``instant`` [ns]."""
        self._watches[source].feed(instant)

    def fresh(self, now: int) -> bool:
        """Whether all were heard within their limit."""
        return all(watch.fresh(now) for watch in self._watches)

    def overdue(self, now: int) -> Overdue | None:
        """What to report if one is overdue at ``now``, else None."""
        return next((late for watch in self._watches if (late := watch.overdue(now))), None)

    def silence(self, now: int) -> Overdue:
        """How long the one that was heard the longest time ago has been silent."""
        late = [watch.silence(now) for watch in self._watches]
        return max(late, key=lambda each: float("inf") if each.age is None else each.age)


class Inputs:
    """All inputs of the arm, each with its limit from the rig file.

    In lock step simulated time stands still while an input is awaited, and cameras and operator speak only when they
    have to: then only the chunks, the monitor and a commanding operator are watched.

    Attributes:
        joint_states, chunk, operator: their watchdogs.
        monitor: its verdicts; None if the rig runs without one.
        evidence: what it judges, by its verdicts other than STALE; None likewise.
        cameras: by name.
        estop: the e-stop button; None if the rig has none.
    """

    def __init__(self, rig: RigConfig, lockstep: bool) -> None:
        limits = rig.watchdogs
        self._lockstep = lockstep
        self.joint_states = JointWatchdog(
            [source.topic for source in joint_sources(rig)], limits.joint_states
        )
        self.chunk = Watchdog("chunk", limits.chunk)
        self.operator = Watchdog("operator", limits.operator)
        monitored = rig.monitor.level != "none"
        self.monitor = Watchdog("monitor", limits.monitor) if monitored else None
        self.evidence = Watchdog("evidence", limits.evidence) if monitored else None
        self.cameras = {c.name: Watchdog(f"camera {c.name}", limits.camera) for c in rig.cameras}
        self.estop = None if lockstep or limits.estop is None else Watchdog("estop", limits.estop)
        self._nodes: dict[str, bool] = {}

    def node(self, name: str, alive: bool, left: bool) -> None:
        """A node of the stack is there, died, or (``left``) went in order."""
        if left:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = alive

    @property
    def live_nodes(self) -> list[str]:
        """Nodes whose death would be noticed."""
        return [name for name, alive in self._nodes.items() if alive]

    @property
    def dead_nodes(self) -> list[str]:
        """Nodes that died and are not back."""
        return [name for name, alive in self._nodes.items() if not alive]

    def _policy_needs(self) -> list[Watchdog]:
        needed = [watch for watch in (self.chunk, self.monitor, self.evidence) if watch is not None]
        return needed if self._lockstep else [*needed, *self.cameras.values(), self.operator]

    def estop_silence(self, now: int) -> str:
        """Why the e-stop button does not let the arm move, in words; empty if it does, or if there is none."""
        if self.estop is None or self.estop.fresh(now):
            return ""
        return f"{self.estop.silence(now)}: release the e-stop button, or connect it"

    def begin(self, until: int) -> None:
        """The policy starts anew: chunks and verdicts are not missed before ``until`` [ns]."""
        for watch in (self.chunk, self.monitor, self.evidence):
            if watch is not None:
                watch.excuse(until)

    def missing(self, now: int) -> list[str]:
        """What the policy may not move without and is overdue, in words (without the joint states)."""
        overdue = [f"{name}: the node died" for name in self.dead_nodes]
        overdue += [str(late) for watch in self._policy_needs() if (late := watch.overdue(now))]
        return overdue

    def absent(self, now: int) -> list[str]:
        """What has to be there before the policy may begin and is not, in words."""
        watches = [self.joint_states, *self._policy_needs()]
        absent = [f"{name}: the node died" for name in self.dead_nodes]
        return absent + [str(watch.silence(now)) for watch in watches if not watch.fresh(now)]
