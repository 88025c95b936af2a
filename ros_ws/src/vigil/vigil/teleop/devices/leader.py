"""Leader arms, such as GELLO's and ALOHA's: the arms go where their leaders are.

A leader is heard by its joint states, by name. Its trigger is the gripper, and may be the deadman too: squeezed a little it
holds the deadman, squeezed on it closes the gripper. Whoever lets go of such a trigger lets go of the arm, and opens the
gripper on the way; a foot pedal (``buttons.deadman``) is better where things are carried.
"""

from __future__ import annotations

import numpy as np

from vigil.joints import BadNames, ByName
from vigil.rig import ArmConfig, RigConfig
from vigil.teleop.device import (
    BadInput,
    Deadman,
    Device,
    DeviceOptions,
    Fresh,
    Input,
    Joints,
    Mode,
    Reading,
    Sample,
    Surroundings,
)
from vigil.teleop.settings import LeaderArm, LeaderJoint, LeaderSettings

RELEASE = (
    0.7  # share of the squeeze that holds the deadman below which it is released: no chatter at the edge
)


class Leader:
    """One leader's joint states as positions of the arm that follows it.

    Attributes:
        topic: of its joint states.
    """

    def __init__(self, settings: LeaderArm, arm: ArmConfig) -> None:
        self.topic = settings.topic
        self._names = [settings.joints.get(joint, LeaderJoint()).name or joint for joint in arm.joints]
        self._by_name = ByName((*self._names, settings.gripper.name))
        joints = [settings.joints.get(joint, LeaderJoint()) for joint in arm.joints]
        self._factor = np.array([joint.sign * joint.scale for joint in joints])
        self._offset = np.array([joint.offset for joint in joints])
        self._gripper = settings.gripper

    def read(self, sample: Joints) -> tuple[np.ndarray, float]:
        """Positions [J] rad of the arm's joints, and how far the trigger is squeezed (0 open to 1 closed).

        Raises:
            BadInput: a joint is missing or repeated, sizes differ, or a value is not finite.
        """
        values = np.asarray(sample.positions, float)
        if values.shape != (len(sample.names),):
            raise BadInput(f"{self.topic} has {len(sample.names)} names and {values.size} positions")
        try:
            values = values[self._by_name.order(sample.names)]
        except BadNames as error:
            raise BadInput(f"{self.topic}: {error}") from None
        if not np.isfinite(values).all():
            bad = [
                name
                for name, value in zip(self._by_name.names, values, strict=True)
                if not np.isfinite(value)
            ]
            raise BadInput(f"{self.topic}: the positions of {bad} are not finite")
        grip = self._gripper
        squeezed = (values[-1] - grip.open) / (grip.closed - grip.open)
        return self._factor * values[:-1] + self._offset, float(np.clip(squeezed, 0.0, 1.0))


class LeaderDevice(Device):
    """Drives every arm of the rig, each by its own leader."""

    name = "leader"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        settings: LeaderSettings = rig.teleop
        by_arm = {settings.arm_name(leader, rig.arms): leader for leader in settings.leaders}
        self._leaders = [Leader(by_arm[arm.name], arm) for arm in rig.arms]
        self._widths = [(arm.gripper.limits.lower, arm.gripper.limits.upper) for arm in rig.arms]
        self._newest = [Fresh(settings.timeout) for _ in self._leaders]
        self._timeout, self._threshold = settings.timeout, settings.squeeze
        self._deadman, self._squeezed = Deadman(), False
        self._silent: list[str] = [leader.topic for leader in self._leaders]

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(leader.topic, "joints") for leader in self._leaders)

    def feed(self, topic: str, sample: Sample, now: float) -> None:
        for leader, newest in zip(self._leaders, self._newest, strict=True):
            if leader.topic == topic:
                newest.tell(leader.read(sample), now)

    def poll(self, now: float, around: Surroundings) -> Reading:
        heard = [newest.get(now) for newest in self._newest]
        self._silent = [
            leader.topic for leader, told in zip(self._leaders, heard, strict=True) if told is None
        ]
        if self._silent or around.measured is None:
            self._deadman.step(None)
            self._squeezed = False
            return Reading(False, None, Mode.ABSOLUTE)
        if not self._deadman.step(self._pressed([squeezed for _, squeezed in heard], around)):
            return Reading(False, None, Mode.ABSOLUTE)
        columns = [
            np.append(joints, self._width(squeezed, *widths))
            for (joints, squeezed), widths in zip(heard, self._widths, strict=True)
        ]
        return Reading(True, np.concatenate(columns), Mode.ABSOLUTE)

    def _pressed(self, squeezes: list[float], around: Surroundings) -> bool | None:
        if self._threshold is None:
            return around.deadman
        edge = self._threshold * (RELEASE if self._squeezed else 1.0)
        self._squeezed = min(squeezes) >= edge  # of two leaders both hands have to be there
        return self._squeezed

    def _width(self, squeezed: float, lower: float, upper: float) -> float:
        spent = self._threshold or 0.0
        closed = max(squeezed - spent, 0.0) / (1.0 - spent)
        return upper - closed * (upper - lower)

    @property
    def state(self) -> str:
        return "following " + ", ".join(leader.topic for leader in self._leaders)

    @property
    def trouble(self) -> str:
        if not self._silent:
            return ""
        return f"no joint states from {', '.join(self._silent)} for more than {self._timeout:g} s: start the leader's driver"
