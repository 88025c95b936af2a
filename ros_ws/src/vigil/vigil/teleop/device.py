"""What every operator's device is to the teleop node, and what it may look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

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
        pressed: buttons that ask other nodes for something (`vigil.teleop.settings.REQUEST_ROLES`); their rising edges count.
    """

    deadman: bool
    positions: np.ndarray | None = None
    mode: Mode = Mode.RELATIVE
    hand_back: bool = False
    pressed: Collection[str] = frozenset()


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
        deadman: whether the button beside the device that is the deadman is pressed; None: there is none, or it is silent.
        world: None on a real rig, or if too old.
        authority, event, transition: of the arm's state; ``transition`` counts changes of authority.
        reason, blocked_by: of the arm's state, in words: why this authority holds, what keeps the policy from driving.
        arm_silent: the arm has not told its state for so long that all this may be history.
        episode: name of the episode that is being recorded; empty if none is.
        answer, answers: what became of the last press of a button that asks another node for something, and of how many.
        scene, success, failure: of the simulated task.
    """

    measured: np.ndarray | None = None
    deadman: bool | None = None
    world: World | None = None
    authority: str = ""
    event: str = ""
    transition: int = -1
    reason: str = ""
    blocked_by: str = ""
    arm_silent: bool = False
    episode: str = ""
    answer: str = ""
    answers: int = 0
    scene: int = -1
    success: bool = False
    failure: bool = False


# What comes over topics ---------------------------------------------------------------------------------------


class BadInput(ValueError):
    """A message that says nothing sure; the text says what was passed and what is needed."""


@dataclass(frozen=True)
class Input:
    """A topic that is to be fed to a device: joint states, poses, or one button (a Bool)."""

    topic: str
    kind: Literal["joints", "poses", "button"]


@dataclass(frozen=True)
class Joints:
    """Joint states by name; rad and m."""

    names: Sequence[str]
    positions: Sequence[float]


@dataclass(frozen=True)
class Poses:
    """K poses: ``positions`` [K, 3] m and ``quaternions`` [K, 4] (x, y, z, w)."""

    positions: np.ndarray
    quaternions: np.ndarray


Sample = Joints | Poses | bool


class Fresh:
    """The newest value of something that has to be told again and again.

    Args:
        timeout: silence after which it is unknown [s].
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._value: object = None
        self._at = -np.inf

    def tell(self, value: object, now: float) -> None:
        """It is ``value`` at ``now`` [s]."""
        self._value, self._at = value, now

    def get(self, now: float) -> object:
        """The value, or None if there was none for too long."""
        return self._value if now - self._at <= self._timeout else None


class Deadman:
    """A deadman that has to be seen released before it counts as held: at first, and again after it was unknown."""

    def __init__(self) -> None:
        self._armed = False

    def step(self, pressed: bool | None) -> bool:
        """Whether it is held; ``pressed`` is None while it is unknown, or while the device cannot drive."""
        if not pressed:
            self._armed = pressed is not None
        return self._armed and bool(pressed)


# Devices ------------------------------------------------------------------------------------------------------


class Device:
    """One way for an operator to command the arm."""

    name: str

    @property
    def inputs(self) -> Sequence[Input]:
        """Topics that are to be fed to it; known before it is opened."""
        return ()

    def feed(self, topic: str, sample: Sample, now: float) -> None:
        """One message of ``topic``, received at ``now`` [s].

        Raises:
            BadInput: it cannot be used; it then counts as not received.
        """

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

    @property
    def trouble(self) -> str:
        """Why nobody can drive with it just now; empty if somebody can."""
        return ""


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
