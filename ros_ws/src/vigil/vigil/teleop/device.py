"""What every operator's device is to the teleop node, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Mode(IntEnum):
    """How positions are meant. Values equal the constants of ``TeleopCommand``."""

    RELATIVE = 0  # only their changes count: the offset at takeover stays
    ABSOLUTE = 1  # true targets: the offset at takeover is bled off


@dataclass(frozen=True)
class Reading:
    """What the operator commands at one instant.

    Attributes:
        deadman: the operator has, or asks for, control.
        positions: [N] in the order of the rig's columns, rad and m; None without a command.
        hand_back: button that gives control to the policy; its rising edge counts.
    """

    deadman: bool
    positions: np.ndarray | None = None
    mode: Mode = Mode.RELATIVE
    hand_back: bool = False


@dataclass(frozen=True)
class World:
    """The simulated world, for the scripted operator, as in ``SimState``."""

    qpos: np.ndarray
    appearance: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What is known at one instant.

    Attributes:
        measured: [N] in the order of the rig's columns, rad and m; None if unknown or too old.
        world: None on a real rig, or if too old.
        authority, event, transition: of the arm's state; ``transition`` counts changes of authority.
        scene, success, failure: of the simulated task.
    """

    measured: np.ndarray | None = None
    world: World | None = None
    authority: str = ""
    event: str = ""
    transition: int = -1
    scene: int = -1
    success: bool = False
    failure: bool = False


class Device:
    """One way for an operator to command the arm."""

    name: str

    def open(self) -> None:
        """Take hold of the hardware.

        Raises:
            VigilError: it is missing or not permitted; says what to do.
        """

    def close(self) -> None:
        """Let go of it; harmless if it was never opened."""

    def poll(self, now: float, around: Surroundings) -> Reading:
        """What the operator commands at ``now`` [s]; called at a steady rate, never blocks."""
        raise NotImplementedError

    def set_active(self, active: bool) -> str:
        """Take over or release on request; gives why not, empty if done. Only a scripted operator obeys."""
        return f"device {self.name} obeys its operator's hand only: hold or release its deadman"

    @property
    def state(self) -> str:
        """In a few words, for diagnostics."""
        return "ok"


@dataclass(frozen=True)
class DeviceOptions:
    """Settings that are not the rig's but the run's.

    Attributes:
        period: time between two polls [s].
        on_alarm: the scripted operator takes over by itself when an alarm holds the arm.
        reaction: how long it takes to do so [s].
        tty: terminal that the keyboard is read from; empty: the process's own.
    """

    period: float
    on_alarm: bool = False
    reaction: float = 0.5
    tty: str = ""
