"""Steps of a joint or of the tool, added up to a target that stays reachable.

A step of the tool is solved by damped least squares (`vigil.kinematics.Chain.inverse`) within the joint limits; what it
leaves free is drawn towards the home posture, so that the elbow does not wander off over many steps.
"""

from __future__ import annotations

import numpy as np

from vigil.kinematics import CHAINS, rotation_from_vector
from vigil.rig import ArmConfig, RigConfig

ITERATIONS = 4
POSTURE_TIME = 4.0  # [s] of motion in which what is free goes most of the way home
REACHED_POSITION, REACHED_ROTATION = 2e-3, 2e-2  # m, rad; a Cartesian step that misses by more is not made


class JogTarget:
    """A target [N] in the order of the rig's columns, moved in small steps within the joint limits."""

    def __init__(self, arm: ArmConfig) -> None:
        self._names = arm.columns
        self._lower = np.array([arm.limits[name].lower for name in self._names])
        self._upper = np.array([arm.limits[name].upper for name in self._names])
        self._joints = len(arm.joints)
        self._chain, self._tool = CHAINS[arm.kinematics], arm.tool_offset
        self._posture = np.array([arm.home[name] for name in arm.joints])
        self._target = np.zeros(len(self._names))

    @property
    def positions(self) -> np.ndarray:
        """[N] rad and m."""
        return self._target.copy()

    def restart(self, measured: np.ndarray) -> None:
        """Begin at the measured pose [N]."""
        self._target = np.array(measured, float)

    def step_column(self, index: int, step: float) -> bool:
        """Move one column by ``step`` (rad or m); False at its limit."""
        before = self._target[index]
        self._target[index] = np.clip(before + step, self._lower[index], self._upper[index])
        return bool(self._target[index] != before)

    def step_gripper(self, step: float) -> bool:
        """Open (positive) or close by ``step`` [m]; False at its limit."""
        return self.step_column(self._joints, step)

    def step_tool(self, translation: np.ndarray, rotation: np.ndarray, duration: float) -> bool:
        """Move the tool by ``translation`` [3] m and turn it by ``rotation`` [3] rad (axis times angle), both seen in
        the base, in ``duration`` [s]. False, and no step, if the arm cannot get there.
        """
        joints = self._target[: self._joints]
        position, orientation = self._chain.forward(joints, self._tool)
        found = self._chain.inverse(
            position + translation,
            rotation_from_vector(np.asarray(rotation, float)) @ orientation,
            joints,
            lower=self._lower[: self._joints],
            upper=self._upper[: self._joints],
            tool_offset=self._tool,
            posture=self._posture,
            posture_weight=duration / POSTURE_TIME / ITERATIONS,
            max_step=0.05,
            iterations=ITERATIONS,
        )
        if not found.reached(REACHED_POSITION, REACHED_ROTATION):
            return False
        self._target[: self._joints] = found.q
        return True


class JogTargets:
    """The targets of all arms of a rig, one of which is moved at a time."""

    def __init__(self, rig: RigConfig) -> None:
        self._arms = rig.arms
        self._targets = [JogTarget(arm) for arm in rig.arms]
        ends = np.cumsum([len(arm.columns) for arm in rig.arms])
        self._parts = [slice(end - len(arm.columns), end) for arm, end in zip(rig.arms, ends, strict=True)]
        self._active = 0

    @property
    def active(self) -> JogTarget:
        """The target that is moved."""
        return self._targets[self._active]

    @property
    def arm(self) -> ArmConfig:
        """The arm that it belongs to."""
        return self._arms[self._active]

    def switch(self) -> None:
        """Go on with the next arm; all targets stay."""
        self._active = (self._active + 1) % len(self._targets)

    @property
    def positions(self) -> np.ndarray:
        """[N] rad and m, in the order of the rig's columns."""
        return np.concatenate([target.positions for target in self._targets])

    def restart(self, measured: np.ndarray) -> None:
        """Begin at the measured pose [N]."""
        for target, part in zip(self._targets, self._parts, strict=True):
            target.restart(measured[part])
