"""Kinematics of serial arms in numpy, vectorised over leading dimensions.

An arm is a `Chain` of revolute joints in modified Denavit-Hartenberg parameters (Craig). Frames: ``base`` is the robot's
base, ``flange`` the mounting face; the tool is a fixed offset in the flange frame (``tool_offset`` in the rig file).
"""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Link:
    """A straight piece of the arm's body, from the end of the piece before it to ``end``.

    Attributes:
        frame: of the joint that ``end`` is fixed to; -1 is the base.
        end: [m] in that frame.
        radius: of what is around it [m].
    """

    frame: int
    end: Vector
    radius: float


@dataclass(frozen=True)
class InverseResult:
    """Joint angles found, and what is left of the pose error."""

    q: np.ndarray  # [J] rad
    position_error: float  # [m]
    rotation_error: float  # [rad]

    def reached(self, position: float = 1e-3, rotation: float = 1e-2) -> bool:
        """True when both errors are below the given bounds."""
        return self.position_error <= position and self.rotation_error <= rotation


class Chain:
    """J revolute joints, each turned against the one before it by a multiple of a quarter turn.

    Args:
        a, d: [J] m.
        quarters: [J] -1, 0 or 1: alpha of each joint in quarter turns.
        zero: [J] rad; added to the joint angles.
        flange: where the flange is along the last joint's axis [m].
        body: the arm's body from the base to the flange, for those who keep it away from things.
        hand: [m] radius of what is around the way from the flange to the tool.
        names: [J] how the joints' names end, from the base on.
    """

    def __init__(
        self,
        a: Sequence[float],
        d: Sequence[float],
        quarters: Sequence[int],
        zero: Sequence[float],
        flange: float,
        body: Sequence[Link],
        hand: float,
        names: Sequence[str],
    ) -> None:
        self.joints, self.names = len(a), tuple(names)
        self.flange, self.body, self.hand = flange, tuple(body), hand
        self._a, self._d = tuple(map(float, a)), tuple(map(float, d))
        self._zero = np.array(zero, float)
        self._sin = tuple(float(quarter) for quarter in quarters)
        self._cos = tuple(float(quarter == 0) for quarter in quarters)
        # Number, zero, a, d and sin(alpha) of each joint, from the tool to the base; where the sine is 0 the cosine is 1.
        self._links = tuple(
            zip(range(self.joints), self._zero.tolist(), self._a, self._d, self._sin, strict=True)
        )[::-1]

    def _checked(self, q: np.ndarray) -> np.ndarray:
        q = np.asarray(q)
        if q.dtype != np.float32:
            q = q.astype(float)
        if q.shape[-1:] != (self.joints,):
            raise ValueError(f"expected joint angles of shape [..., {self.joints}], got {q.shape}")
        return q + self._zero.astype(q.dtype)

    def _joint_frames(self, q: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Origins ([..., 3] each) and rotations ([..., 3, 3] each) of the joint frames in the base."""
        q = self._checked(q).astype(float)
        rotation = np.broadcast_to(np.eye(3), (*q.shape[:-1], 3, 3))
        origin = np.zeros((*q.shape[:-1], 3))
        origins, rotations = [], []
        for i, (sine, cosine) in enumerate(zip(self._sin, self._cos, strict=True)):
            s, c = np.sin(q[..., i]), np.cos(q[..., i])
            zero = np.zeros_like(s)
            local = np.stack(
                [
                    np.stack([c, -s, zero], axis=-1),
                    np.stack([s * cosine, c * cosine, zero - sine], axis=-1),
                    np.stack([s * sine, c * sine, zero + cosine], axis=-1),
                ],
                axis=-2,
            )
            origin = origin + rotation @ np.array([self._a[i], -sine * self._d[i], cosine * self._d[i]])
            rotation = rotation @ local
            origins.append(origin)
            rotations.append(rotation)
        return origins, rotations

    def _tip(self, tool_offset: Vector) -> np.ndarray:
        return np.add(tool_offset, (0.0, 0.0, self.flange))

    def forward(self, q: np.ndarray, tool_offset: Vector = (0.0, 0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
        """Tool position [..., 3] m and flange rotation [..., 3, 3] in the base, for joint angles ``q`` [..., J] rad."""
        origins, rotations = self._joint_frames(q)
        return origins[-1] + rotations[-1] @ self._tip(tool_offset), rotations[-1]

    def positions(self, q: np.ndarray, tool_offset: Vector = (0.0, 0.0, 0.0)) -> np.ndarray:
        """Tool positions [..., 3] m in the base, for joint angles ``q`` [..., J] rad.

        One point is carried from the tool back to the base, without any rotation matrix: four times as fast as
        `forward`, for those who ask for thousands of positions at every tick. Single precision in, single precision out.
        """
        angles = np.ascontiguousarray(np.moveaxis(self._checked(q), -1, 0))
        sines, cosines = np.sin(angles), np.cos(angles)
        # Python's own numbers: numpy's would turn single precision into double.
        x, y, z = (float(value) for value in self._tip(tool_offset))
        for i, _, a, d, sine in self._links:
            x, turned, z = cosines[i] * x - sines[i] * y + a, sines[i] * x + cosines[i] * y, z + d
            cosine = self._cos[i]
            y, z = cosine * turned - sine * z, sine * turned + cosine * z
        return np.stack([x, y, z], axis=-1)

    def position(self, q: Sequence[float], tool_offset: Vector = (0.0, 0.0, 0.0)) -> Vector:
        """Tool position (x, y, z) m in the base, for joint angles ``q`` [J] rad (what follows them is ignored).

        As `positions`, in Python's own numbers: ten times as fast for a single one.
        """
        x, y, z = tool_offset
        z += self.flange
        for joint, zero, a, d, sine in self._links:
            turned = complex(x, y) * cmath.rect(1.0, q[joint] + zero)
            x, y, z = turned.real + a, turned.imag, z + d
            if sine:
                y, z = -sine * z, sine * y
        return x, y, z

    def skeleton(self, q: Sequence[float], tool_offset: Vector = (0.0, 0.0, 0.0)) -> list[Vector]:
        """Ends of the body's links and then of the tool [m, base] for joint angles ``q`` [J] rad (what follows them is ignored)."""
        turns = [cmath.rect(1.0, q[joint] + zero) for joint, zero, _, _, _ in self._links]
        ends = [*((link.frame, link.end) for link in self.body)]
        x, y, z = tool_offset
        ends.append((self.joints - 1, (x, y, z + self.flange)))
        points = []
        for frame, (x, y, z) in ends:
            first = self.joints - 1 - frame  # joints beyond the frame do not move it
            for turn, (_, _, a, d, sine) in zip(turns[first:], self._links[first:], strict=True):
                turned = complex(x, y) * turn
                x, y, z = turned.real + a, turned.imag, z + d
                if sine:
                    y, z = -sine * z, sine * y
            points.append((x, y, z))
        return points

    def jacobian(self, q: np.ndarray, tool_offset: Vector = (0.0, 0.0, 0.0)) -> np.ndarray:
        """Geometric Jacobian [..., 6, J] of the tool in the base: rows are linear (m/rad), then angular velocity."""
        origins, rotations = self._joint_frames(q)
        tip = origins[-1] + rotations[-1] @ self._tip(tool_offset)
        axes = np.stack([rotation[..., :, 2] for rotation in rotations], axis=-1)
        levers = np.stack([tip - origin for origin in origins], axis=-1)
        linear = np.cross(axes, levers, axisa=-2, axisb=-2, axisc=-2)
        return np.concatenate([linear, axes], axis=-2)

    def inverse(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        start: np.ndarray,
        *,
        lower: np.ndarray,
        upper: np.ndarray,
        tool_offset: Vector = (0.0, 0.0, 0.0),
        posture: np.ndarray | None = None,
        posture_weight: np.ndarray | float = 0.0,
        max_step: float = 0.2,
        iterations: int = 30,
        damping: float = 0.01,
        tolerance: float = 1e-5,
    ) -> InverseResult:
        """Joint angles that bring the tool to a pose, by damped least squares from ``start``.

        What the pose leaves free is pulled towards ``posture`` [J] inside the null space, each joint by
        ``posture_weight`` (0 to 1 per iteration). Every iteration moves each joint by at most ``max_step`` rad and stays
        within ``lower`` and ``upper`` [J]. Does not raise when the pose cannot be reached: ask the result.
        """
        q = np.clip(np.asarray(start, dtype=float), lower, upper)
        for iteration in range(iterations + 1):
            tip, current = self.forward(q, tool_offset)
            error = np.concatenate([position - tip, rotation_vector(rotation @ current.T)])
            if iteration == iterations or (posture is None and np.linalg.norm(error) < tolerance):
                break
            matrix = self.jacobian(q, tool_offset)
            pseudo = matrix.T @ np.linalg.inv(matrix @ matrix.T + damping**2 * np.eye(6))
            step = pseudo @ error
            if posture is not None:
                step = step + (np.eye(self.joints) - pseudo @ matrix) @ (posture_weight * (posture - q))
            largest = np.max(np.abs(step))
            if largest < tolerance:
                break
            q = np.clip(q + step * min(1.0, max_step / largest), lower, upper)
        return InverseResult(q, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:])))


FRANKA = Chain(
    # Franka's interface documentation; Panda and FR3 share it.
    a=(0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088),
    d=(0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0),
    quarters=(0, -1, 1, 1, -1, 1, 1),
    zero=(0.0,) * 7,
    flange=0.107,
    body=(
        Link(-1, (0.0, 0.0, 0.0), 0.0),
        Link(-1, (0.0, 0.0, 0.333), 0.09),
        Link(2, (0.0825, 0.0, 0.0), 0.09),
        Link(4, (0.0, 0.0, 0.0), 0.08),
        Link(5, (0.088, 0.0, 0.0), 0.08),
        Link(6, (0.0, 0.0, 0.107), 0.07),
    ),
    hand=0.07,
    names=[f"joint{number}" for number in range(1, 8)],
)

_ELBOW = (0.05955, 0.3)  # [m] of the ViperX from its shoulder, forward and up
_LEAN = float(np.arctan2(_ELBOW[1], _ELBOW[0]))
VIPERX_300S = Chain(
    # Interbotix' description of the vx300s: what ALOHA's followers are. The flange is that of the gripper's motor.
    a=(0.0, 0.0, float(np.hypot(*_ELBOW)), 0.0, 0.0, 0.0),
    d=(0.12705, 0.0, 0.0, 0.3, 0.0, 0.069744),
    quarters=(0, -1, 0, -1, 1, -1),
    zero=(0.0, -_LEAN, _LEAN - np.pi / 2, 0.0, 0.0, 0.0),
    flange=0.0,
    body=(
        Link(-1, (0.0, 0.0, 0.0), 0.0),
        Link(-1, (0.0, 0.0, 0.12705), 0.07),
        Link(1, (float(np.hypot(*_ELBOW)), 0.0, 0.0), 0.06),
        Link(3, (0.0, 0.0, 0.0), 0.05),
        Link(5, (0.0, 0.0, 0.0), 0.05),
    ),
    hand=0.06,
    names=("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
)

CHAINS = {"franka": FRANKA, "viperx300s": VIPERX_300S}
"""By the name that a rig file uses."""


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle [3] rad of one rotation matrix [3, 3] (logarithm; angles below pi)."""
    skew = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = 0.5 * np.linalg.norm(skew), 0.5 * (np.trace(rotation) - 1.0)
    if sine > 1e-9:
        return skew * (np.arctan2(sine, cosine) / (2.0 * sine))
    if cosine > 0.0:
        return 0.5 * skew
    # Half a turn: the axis is the column of R + I with the largest norm.
    columns = rotation + np.eye(3)
    axis = columns[:, np.argmax(np.linalg.norm(columns, axis=0))]
    return np.pi * axis / np.linalg.norm(axis)


def rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] of an axis times angle [3] rad (Rodrigues' formula)."""
    angle = np.linalg.norm(vector)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1.0 - np.cos(angle)) * skew @ skew
