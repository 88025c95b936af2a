"""What recordings say of the commands to the arm: their rates, and how soon they answer an event."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import RigConfig

GAP = 1.5  # periods after which commands do not belong to one motion


class Commands:
    """What was sent to the arm's trajectory controller in one recording.

    Attributes:
        sent: [M] ns, when each message was published.
        speeds: [M] rad/s, of its first point, of the fastest joint.
        stamps: [T] ns, of each control period.
        positions: [T, N] rad, first point of the first message of each control period.
    """

    def __init__(self, path: Path, rig: RigConfig) -> None:
        self.period = 1.0 / rig.control_rate
        topic = f"{rig.arm.name}/{rig.arm.controller}/joint_trajectory"
        reader = EpisodeReader(path)
        self.sent = np.array([published for _, _, published, _ in reader.raw([topic])])
        by_tick, speeds = {}, []
        for _, message in reader.messages(topic):
            by_tick[stamp_ns(message.header.stamp)] = message.points[0].positions
            speeds.append(np.abs(message.points[0].velocities).max())
        self.speeds = np.array(speeds)
        self.stamps = np.array(sorted(by_tick))
        self.positions = np.array([by_tick[stamp] for stamp in self.stamps])

    def motions(self) -> list[np.ndarray]:
        """[T, N] each: commands that follow each other without a pause."""
        breaks = np.flatnonzero(np.diff(self.stamps) > GAP * self.period * 1e9) + 1
        return [motion for motion in np.split(self.positions, breaks) if len(motion) > 3]

    def first_after(self, instant: int) -> int | None:
        """When the first message after ``instant`` [ns] was published; None if there is none."""
        index = int(np.searchsorted(self.sent, instant))
        return int(self.sent[index]) if index < len(self.sent) else None

    def slower_after(self, instant: int) -> int | None:
        """When the first message after ``instant`` [ns] was published whose setpoint is slower than the one before it."""
        first = int(np.searchsorted(self.sent, instant))
        slower = np.flatnonzero(np.diff(self.speeds) < 0) + 1
        slower = slower[slower >= first]
        return int(self.sent[slower[0]]) if len(slower) else None

    def step_at(self, instant: int) -> float | None:
        """Largest joint step [rad] from the last period before ``instant`` [ns] to the first one after it.

        None if nothing was commanded before, or after.
        """
        after = int(np.searchsorted(self.stamps, instant))
        if not 0 < after < len(self.stamps):
            return None
        return float(np.abs(self.positions[after] - self.positions[after - 1]).max())


def transitions(path: Path) -> list[tuple[str, str, int, int]]:
    """(authority, event, when it was raised, when it took effect) of each change in a recording; times in ns."""
    found = {}
    for _, state in EpisodeReader(path).messages("arm/state"):
        found[state.transition] = (
            state.authority_name,
            state.event,
            stamp_ns(state.event_stamp),
            stamp_ns(state.transition_stamp),
        )
    return [found[number] for number in sorted(found)]
