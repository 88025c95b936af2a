"""Joint states as robots publish them, read into the columns of a rig: joints by name, grippers as widths.

A rig has one topic of joint states per arm, and one more where a gripper has a driver of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vigil.rig import ArmConfig, GripperConfig, RigConfig


class BadNames(ValueError):
    """Names that do not say which value is which; the text says what was passed and what is needed."""


class BadJointState(ValueError):
    """A joint state that says nothing sure; the text says what was passed and what is needed."""


class ByName:
    """Where to find values that are known by name, whatever order a sender has them in.

    Args:
        names: N names that have to be there; others may be.
    """

    _KNOWN = 64  # a sender of ever new names must not fill the memory

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._orders: dict[tuple[str, ...], np.ndarray] = {}

    def order(self, given: Sequence[str]) -> np.ndarray:
        """[N] index of each name in ``given``; BadNames if one is missing or repeated."""
        given = tuple(given)
        known = self._orders.get(given)
        if known is None:
            if missing := [name for name in self.names if name not in given]:
                raise BadNames(f"{missing} are missing: got names {list(given)}, needed {list(self.names)}")
            if repeated := [name for name in self.names if given.count(name) > 1]:
                raise BadNames(f"{repeated} are given more than once in {list(given)}")
            known = np.array([given.index(name) for name in self.names])
            if len(self._orders) < self._KNOWN:
                self._orders[given] = known
        return known


def width_of(gripper: GripperConfig) -> tuple[float, float]:
    """(factor, offset): opening width [m] = factor * what the gripper's joint says + offset."""
    if gripper.open is None or gripper.closed is None:
        return 1.0, 0.0
    limits = gripper.limits
    factor = (limits.upper - limits.lower) / (gripper.open - gripper.closed)
    return factor, limits.lower - factor * gripper.closed


class JointSource:
    """One topic of joint states.

    Attributes:
        topic: relative to the rig's namespace.
        columns: C columns of the rig that it tells.
        joints: their names there.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.columns: tuple[str, ...] = ()
        self.joints: tuple[str, ...] = ()
        self._factor = self._offset = np.zeros(0)
        self._by_name = ByName(())

    @property
    def scale(self) -> tuple[tuple[float, float], ...]:
        """(factor, offset) of each column: rad or m = factor * what its joint says + offset."""
        return tuple(zip(self._factor.tolist(), self._offset.tolist(), strict=True))

    def add(
        self, columns: Sequence[str], joints: Sequence[str], factor: float = 1.0, offset: float = 0.0
    ) -> None:
        """It tells ``columns`` too: factor times what ``joints`` say, plus offset."""
        self.columns, self.joints = (*self.columns, *columns), (*self.joints, *joints)
        self._by_name = ByName(self.joints)
        self._factor = np.append(self._factor, np.full(len(joints), factor))
        self._offset = np.append(self._offset, np.full(len(joints), offset))

    def read(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
        """[C] rad and m, in the order of `columns`.

        Raises:
            BadJointState: a joint is missing or repeated, sizes differ, or a value is not finite.
        """
        values = np.asarray(positions, float)
        if values.shape != (len(names),):
            raise BadJointState(f"{self.topic} has {len(names)} names and {values.size} positions")
        try:
            values = values[self._by_name.order(names)]
        except BadNames as error:
            raise BadJointState(f"{self.topic}: {error}") from None
        finite = np.isfinite(values)
        if not finite.all():
            bad = [joint for joint, known in zip(self.joints, finite, strict=True) if not known]
            raise BadJointState(f"{self.topic}: the positions of {bad} are not finite")
        return self._factor * values + self._offset


def joint_sources(rig: RigConfig) -> tuple[JointSource, ...]:
    """Where the columns of ``rig`` are told, each by one topic."""
    sources: dict[str, JointSource] = {}
    for arm in rig.arms:
        topic = f"{arm.name}/joint_states"
        source = sources.setdefault(topic, JointSource(topic))
        source.add(arm.joint_columns, tuple(arm.joints))
        gripper_topic = arm.gripper.joint_states or topic
        source = sources.setdefault(gripper_topic, JointSource(gripper_topic))
        source.add((arm.gripper_column,), (gripper_joint(arm),), *width_of(arm.gripper))
    return tuple(sources.values())


def gripper_joint(arm: ArmConfig) -> str:
    """The gripper's name in joint states."""
    return arm.gripper.joint or arm.gripper.name


def raw_width(gripper: GripperConfig, width: float) -> float:
    """What the gripper's joint says at an opening ``width`` [m]."""
    factor, offset = width_of(gripper)
    return (width - offset) / factor
