"""Where the arms' tools may be and how fast: boxes and a speed limit, each in its arm's base frame.

The envelope asks twice per control period. First `within` moves a target to where the tools may go, so that a source that
wants too much is led along the wall instead of stopping at it. Then `forbids` judges the next setpoint together with the
stop that follows from it: what cannot stop inside is not begun. There the arms' bodies count as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from vigil.arm.bodies import Bodies
from vigil.kinematics import CHAINS, Vector
from vigil.rig import ArmConfig, RigConfig

SHARE = 0.9
"""Of the speed limit that targets use: columns do not speed up alike."""
JUDGED = 0.94
"""Of the speed limit, above which a way is forbidden: within a stop the tool can be faster than where it is looked at."""
MARGIN = 0.003
"""[m] Targets stay this far from walls, and arms do not cut into them on their way."""
SLIDE = 0.01
"""[m] Longest step along a wall."""
SOON = 1e-4
"""[s] In which speeds are measured."""
TOLERANCE = 1e-9

Motion = tuple[np.ndarray, np.ndarray]
"""Position [N] rad, m and velocity [N]."""


class Workspace:
    """Limits of all arms of a rig; columns as in the rig file."""

    def __init__(self, rig: RigConfig) -> None:
        self._tools = [(columns, ToolSpace(arm)) for arm, columns in rig.parts]
        self._bodies = Bodies(rig)

    def slow_down(self, share: float) -> None:
        """Allow ``share`` (0 to 1) of the rig file's speeds."""
        for _, tool in self._tools:
            tool.slow_down(share)

    def outside(self, position: np.ndarray) -> str:
        """Why the arms may not be where they are for columns [N], in words; empty if they may."""
        for part, tool in self._tools:
            if outside := tool.outside(position[part]):
                return outside
        return self._bodies.outside(position)

    def within(self, now: Motion, target: Motion, ahead: float) -> Motion:
        """What to follow instead of ``target``, due in ``ahead`` seconds; each is position [N] and velocity [N].

        A target that is allowed comes back as it is; instead of one that is too far, one on the way to it.
        """
        if len(self._tools) == 1:
            return self._tools[0][1].within(now, target, ahead)
        led = [
            tool.within((now[0][part], now[1][part]), (target[0][part], target[1][part]), ahead)
            for part, tool in self._tools
        ]
        return np.concatenate([p for p, _ in led]), np.concatenate([v for _, v in led])

    def forbids(self, times: np.ndarray, positions: np.ndarray, velocities: np.ndarray) -> str:
        """Why the arms may not take a way, in words; empty if they may.

        Args:
            times: [P] s, increasing.
            positions: [P, N] from the present setpoint on.
            velocities: [P - 1, N], without the present one.

        Who is outside already may go where it is less far outside.
        """
        for part, tool in self._tools:
            if forbidden := tool.forbids(times, positions[:, part], velocities[:, part]):
                return forbidden
        return self._bodies.forbids(positions)


class ToolSpace:
    """Limits of one arm's tool. Positions in m, base frame; columns are the joints and then the gripper."""

    def __init__(self, arm: ArmConfig) -> None:
        self._chain, self._joints = CHAINS[arm.kinematics], len(arm.joints)
        self._acceleration = np.array([limits.acceleration for limits in arm.limits.values()])
        self._limits = arm.workspace
        self._offset = arm.tool_offset
        self._speed = arm.workspace.tool_speed
        self._inside = arm.workspace.inside
        self._keep_out = tuple(arm.workspace.keep_out.values())

    def slow_down(self, share: float) -> None:
        """Allow ``share`` (0 to 1) of the rig file's speed."""
        self._speed = share * self._limits.tool_speed

    def outside(self, position: np.ndarray) -> str:
        """Why the tool may not be where it is for columns [N], in words; empty if it may."""
        point = self._tool(position)
        depth = self._depth(point)
        return (
            f"the tool is {depth * 1e3:.0f} mm outside its workspace, at {_told(point)} m"
            if depth > TOLERANCE
            else ""
        )

    def within(self, now: Motion, target: Motion, ahead: float) -> Motion:
        """As `Workspace.within`, for the arm's own columns."""
        position = now[0]
        here = self._tool(position)
        nearer = self._no_farther(position, here, target[0], SHARE * self._speed * ahead)
        if self._depth(self._tool(nearer)) > -MARGIN:
            # Along the wall in short steps: between two of them the tool moves on a bow, which may not cut into the wall.
            nearer = self._led_inside(self._no_farther(position, here, nearer, SLIDE))
            if self._depth(self._tool(nearer)) > 0.0:
                nearer = position.copy()
        return (
            target if nearer is target[0] else (nearer, self._velocity_on(nearer - position, now[1], ahead))
        )

    def _velocity_on(self, way: np.ndarray, velocity: np.ndarray, ahead: float) -> np.ndarray:
        """The velocity [N] at the end of a ``way`` [N] that is gone in ``ahead`` seconds, from ``velocity`` [N] on.

        As much as half of the acceleration limit brings about on that way: for more a joint would take a run-up, away from
        where it is to go.
        """
        along = np.maximum(velocity * np.sign(way), 0.0)
        most = np.sqrt(along**2 + self._acceleration * np.abs(way))
        return np.clip(way / ahead, -most, most)

    def _no_farther(
        self, position: np.ndarray, here: Vector, target: np.ndarray, longest: float
    ) -> np.ndarray:
        """The target, or what lies on the way to it with its tool ``longest`` m from here."""
        distance = math.dist(here, self._tool(target))
        return target if distance <= longest else position + (longest / distance) * (target - position)

    def forbids(self, times: np.ndarray, positions: np.ndarray, velocities: np.ndarray) -> str:
        """As `Workspace.forbids`, for the arm's own columns and its tool."""
        points = [self._tool(position) for position in positions.tolist()]
        steps = [math.dist(a, b) for a, b in pairwise(points)]
        # Joints do not brake alike: the tool can be faster within a stop than at both of its ends.
        soon = (self._tool(position) for position in (positions[1:] + SOON * velocities).tolist())
        speed = max(
            steps[0] / float(times[1] - times[0]),
            *(math.dist(a, b) / SOON for a, b in zip(points[1:], soon, strict=True)),
        )
        if speed > JUDGED * self._speed:
            return f"the tool would move at {speed:.2f} m/s, allowed are {self._speed:g}"
        # Between two points that were looked at nothing sticks out by more than half of the way between them.
        margin = 0.5 * max(steps)
        allowed = max(self._depth(points[0], margin), 0.0) + TOLERANCE
        for point in points[1:]:
            if self._depth(point, margin) > allowed:
                return f"the tool would leave its workspace, to {_told(point)} m"
        return ""

    def _tool(self, position: Sequence[float]) -> Vector:
        return self._chain.position(position, self._offset)

    def _led_inside(self, target: np.ndarray) -> np.ndarray:
        """The target moved so that its tool is at the nearest place inside, by damped least squares."""
        moved, there = target.copy(), self._tool(target)
        for _ in range(3):
            error = [
                min(max(x, low + MARGIN), high - MARGIN) - x
                for x, low, high in zip(there, self._inside.lower, self._inside.upper, strict=True)
            ]
            matrix = self._chain.jacobian(moved[: self._joints], self._offset)[:3]
            moved[: self._joints] += matrix.T @ np.linalg.solve(matrix @ matrix.T + 1e-4 * np.eye(3), error)
            there = self._tool(moved)
        return moved

    def _depth(self, point: Vector, margin: float = 0.0) -> float:
        """How far a point is from where it may be [m]; at most 0 inside. ``margin`` [m] is kept from keep-out boxes."""
        x, y, z = point
        (x0, y0, z0), (x1, y1, z1) = self._inside.lower, self._inside.upper
        depth = max(x0 - x, x - x1, y0 - y, y - y1, z0 - z, z - z1)
        for box in self._keep_out:
            (x0, y0, z0), (x1, y1, z1) = box.lower, box.upper
            depth = max(depth, min(x - x0, x1 - x, y - y0, y1 - y, z - z0, z1 - z) + margin)
        return depth


def _told(point: Vector) -> str:
    return f"({', '.join(f'{value:.3f}' for value in point)})"
