"""The arms' bodies as spheres along their links, kept out of boxes and away from each other.

A link is a row of spheres that covers a capsule around it. Like the tool's workspace it is judged with the stop that follows
from a setpoint: what could not stop in time is not begun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from vigil.kinematics import CHAINS
from vigil.rig import ArmConfig, RigConfig

TOLERANCE = 1e-9


class Body:
    """The spheres of one arm.

    Args:
        arm: the arm.
        columns: where its columns are among the rig's.

    Attributes:
        radii: [S] m.
    """

    def __init__(self, arm: ArmConfig, columns: slice) -> None:
        self.name = arm.name
        self._chain, self._tool, self._columns = CHAINS[arm.kinematics], arm.tool_offset, columns
        self._position = np.array(arm.base.position)
        sine, cosine = math.sin(arm.base.yaw), math.cos(arm.base.yaw)
        self._rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        boxes = arm.workspace.keep_out
        self.boxes = tuple(boxes)
        self._lower = np.array([box.lower for box in boxes.values()]).reshape(-1, 1, 1, 3)
        self._upper = np.array([box.upper for box in boxes.values()]).reshape(-1, 1, 1, 3)
        self._shares, self.radii = self._cover()

    def _cover(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares [S, K] of the skeleton's K points in each sphere's centre, and radii [S]."""
        points = np.array(self._chain.skeleton([0.0] * self._chain.joints, self._tool))
        lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
        links = [link.radius for link in self._chain.body[1:]]
        # The hand ends before the tool: what it is to touch is not in its way.
        ends = [1.0] * len(links) + [max(1.0 - self._chain.hand / lengths[-1], 0.0)]
        shares, radii = [], []
        for link, (radius, end) in enumerate(zip([*links, self._chain.hand], ends, strict=True)):
            count = max(math.ceil(lengths[link] * end / radius), 1)
            for along in np.linspace(0.0, end, count + 1):
                share = np.zeros(len(points))
                share[link], share[link + 1] = 1.0 - along, along
                shares.append(share)
                radii.append(math.hypot(radius, 0.5 * lengths[link] * end / count))
        return np.array(shares), np.array(radii)

    def centres(self, positions: Sequence[Sequence[float]]) -> np.ndarray:
        """[P, S, 3] m in the arm's base, for P positions of all columns."""
        skeletons = [self._chain.skeleton(position[self._columns], self._tool) for position in positions]
        return self._shares @ np.array(skeletons)

    def shared(self, centres: np.ndarray) -> np.ndarray:
        """The same in the frame that all arms share."""
        return centres @ self._rotation.T + self._position

    def gap_to_boxes(self, centres: np.ndarray) -> np.ndarray:
        """[P, boxes] m between the arm and each of its keep-out boxes; negative inside."""
        beyond = np.maximum(self._lower - centres, centres - self._upper)
        outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1)
        distance = np.where(outside > 0.0, outside, beyond.max(axis=-1))
        return (distance - self.radii).min(axis=-1).T


class Bodies:
    """All arms of a rig, against boxes and against each other."""

    def __init__(self, rig: RigConfig) -> None:
        self._bodies = [Body(arm, columns) for arm, columns in rig.parts]
        self._distance = rig.arm_distance
        self._needed = len(self._bodies) > 1 or any(body.boxes for body in self._bodies)

    def outside(self, position: np.ndarray) -> str:
        """Why the arms may not be where they are for columns [N], in words; empty if they may."""
        return self._worst(position[None], judged_from=0)

    def forbids(self, positions: np.ndarray) -> str:
        """Why the arms may not take a way, in words; empty if they may.

        Who is too close already may go where it is less close.

        Args:
            positions: [P, N] from the present setpoint on.
        """
        return self._worst(positions, judged_from=1)

    def _worst(self, positions: np.ndarray, judged_from: int) -> str:
        if not self._needed:
            return ""
        rows = positions.tolist()
        all_centres = [body.centres(rows) for body in self._bodies]
        # Between two positions that were looked at nothing sticks out by more than half of the way between them.
        slack = [
            0.5 * np.linalg.norm(np.diff(centres, axis=0), axis=-1).max(initial=0.0)
            for centres in all_centres
        ]
        for body, centres, margin in zip(self._bodies, all_centres, slack, strict=True):
            if not body.boxes:
                continue
            gaps = body.gap_to_boxes(centres) - margin
            for box, gap in zip(body.boxes, gaps.T, strict=True):
                if _too_close(gap, judged_from):
                    return f"{body.name} would enter {box}"
        shared = [body.shared(centres) for body, centres in zip(self._bodies, all_centres, strict=True)]
        for a, b in combinations(range(len(shared)), 2):
            apart = np.linalg.norm(shared[a][:, :, None] - shared[b][:, None, :], axis=-1)
            reach = self._bodies[a].radii[:, None] + self._bodies[b].radii
            gap = (apart - reach).min(axis=(1, 2)) - self._distance - slack[a] - slack[b]
            if _too_close(gap, judged_from):
                return f"{self._bodies[a].name} and {self._bodies[b].name} would come closer than {self._distance:g} m"
        return ""


def _too_close(gap: np.ndarray, judged_from: int) -> bool:
    """Whether a gap [P] m closes; one that was closed to begin with may not get smaller."""
    allowed = min(gap[0], 0.0) if judged_from else 0.0
    return bool(gap[judged_from:].min() < allowed - TOLERANCE)
