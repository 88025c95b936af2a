"""Kinematics of the Franka arms (Panda and FR3 share them) in numpy, vectorised over leading dimensions.

Modified Denavit-Hartenberg parameters from Franka's interface documentation. Frames: ``base`` is the robot's base,
``flange`` the mounting face; the tool is a fixed offset in the flange frame (``RigConfig.arm.tool_offset``).
"""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = (0.0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2)
_FLANGE = 0.107  # along the last joint's axis [m]
_SIN, _COS = np.round(np.sin(_ALPHA)), np.round(np.cos(_ALPHA))

# Number, a, d and sin(alpha) of each joint, from the tool to the base; where the sine is 0 the cosine is 1.
_LINKS = tuple(zip(range(7), _A, _D, _SIN.tolist(), strict=True))[::-1]

Vector = tuple[float, float, float]


def _joint_frames(q: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Origins ([..., 3] each) and rotations ([..., 3, 3] each) of the seven joint frames in the base."""
    q = np.asarray(q, dtype=float)
    if q.shape[-1:] != (7,):
        raise ValueError(f"expected joint angles of shape [..., 7], got {q.shape}")
    rotation = np.broadcast_to(np.eye(3), (*q.shape[:-1], 3, 3))
    origin = np.zeros((*q.shape[:-1], 3))
    origins, rotations = [], []
    for i in range(7):
        s, c = np.sin(q[..., i]), np.cos(q[..., i])
        zero = np.zeros_like(s)
        local = np.stack(
            [
                np.stack([c, -s, zero], axis=-1),
                np.stack([s * _COS[i], c * _COS[i], zero - _SIN[i]], axis=-1),
                np.stack([s * _SIN[i], c * _SIN[i], zero + _COS[i]], axis=-1),
            ],
            axis=-2,
        )
        origin = origin + rotation @ np.array([_A[i], -_SIN[i] * _D[i], _COS[i] * _D[i]])
        rotation = rotation @ local
        origins.append(origin)
        rotations.append(rotation)
    return origins, rotations


def forward(q: np.ndarray, tool_offset: Vector = (0.0, 0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Tool position [..., 3] m and flange rotation [..., 3, 3] in the base, for joint angles ``q`` [..., 7] rad."""
    origins, rotations = _joint_frames(q)
    tip = np.add(tool_offset, (0.0, 0.0, _FLANGE))
    return origins[-1] + rotations[-1] @ tip, rotations[-1]


def positions(q: np.ndarray, tool_offset: Vector = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Tool positions [..., 3] m in the base, for joint angles ``q`` [..., 7] rad.

    One point is carried from the tool back to the base, without any rotation matrix: four times as fast as `forward`,
    for those who ask for thousands of positions at every tick. Single precision in, single precision out.
    """
    q = np.asarray(q)
    if q.dtype != np.float32:
        q = q.astype(float)
    if q.shape[-1:] != (7,):
        raise ValueError(f"expected joint angles of shape [..., 7], got {q.shape}")
    angles = np.ascontiguousarray(np.moveaxis(q, -1, 0))
    sines, cosines = np.sin(angles), np.cos(angles)
    # Python's own numbers: numpy's would turn single precision into double.
    x, y, z = (float(value) for value in np.add(tool_offset, (0.0, 0.0, _FLANGE)))
    for i in range(6, -1, -1):
        x, turned, z = cosines[i] * x - sines[i] * y + _A[i], sines[i] * x + cosines[i] * y, z + _D[i]
        y, z = (
            float(_COS[i]) * turned - float(_SIN[i]) * z,
            float(_SIN[i]) * turned + float(_COS[i]) * z,
        )
    return np.stack([x, y, z], axis=-1)


def position(q: Sequence[float], tool_offset: Vector = (0.0, 0.0, 0.0)) -> Vector:
    """Tool position (x, y, z) m in the base, for joint angles ``q`` [7] rad.

    As `positions`, in Python's own numbers: ten times as fast for a single one.
    """
    x, y, z = tool_offset
    z += _FLANGE
    for angle, a, d, sine in _LINKS:
        turned = complex(x, y) * cmath.rect(1.0, q[angle])
        x, y, z = turned.real + a, turned.imag, z + d
        if sine:
            y, z = -sine * z, sine * y
    return x, y, z


def jacobian(q: np.ndarray, tool_offset: Vector = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Geometric Jacobian [..., 6, 7] of the tool in the base: rows are linear (m/rad), then angular velocity."""
    origins, rotations = _joint_frames(q)
    tip = origins[-1] + rotations[-1] @ np.add(tool_offset, (0.0, 0.0, _FLANGE))
    axes = np.stack([rotation[..., :, 2] for rotation in rotations], axis=-1)
    levers = np.stack([tip - origin for origin in origins], axis=-1)
    linear = np.cross(axes, levers, axisa=-2, axisb=-2, axisc=-2)
    return np.concatenate([linear, axes], axis=-2)


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


@dataclass(frozen=True)
class InverseResult:
    """Joint angles found, and what is left of the pose error."""

    q: np.ndarray  # [7] rad
    position_error: float  # [m]
    rotation_error: float  # [rad]

    def reached(self, position: float = 1e-3, rotation: float = 1e-2) -> bool:
        """True when both errors are below the given bounds."""
        return self.position_error <= position and self.rotation_error <= rotation


def inverse(
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

    The arm's seventh degree of freedom is pulled towards ``posture`` [7] inside the null space, each joint by
    ``posture_weight`` (0 to 1 per iteration). Every iteration moves each joint by at most ``max_step`` rad and stays
    within ``lower`` and ``upper`` [7]. Does not raise when the pose cannot be reached: ask the result.
    """
    q = np.clip(np.asarray(start, dtype=float), lower, upper)
    for iteration in range(iterations + 1):
        tip, current = forward(q, tool_offset)
        error = np.concatenate([position - tip, rotation_vector(rotation @ current.T)])
        if iteration == iterations or (posture is None and np.linalg.norm(error) < tolerance):
            break
        matrix = jacobian(q, tool_offset)
        pseudo = matrix.T @ np.linalg.inv(matrix @ matrix.T + damping**2 * np.eye(6))
        step = pseudo @ error
        if posture is not None:
            step = step + (np.eye(7) - pseudo @ matrix) @ (posture_weight * (posture - q))
        largest = np.max(np.abs(step))
        if largest < tolerance:
            break
        q = np.clip(q + step * min(1.0, max_step / largest), lower, upper)
    return InverseResult(q, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:])))
