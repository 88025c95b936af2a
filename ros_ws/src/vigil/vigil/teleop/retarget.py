"""A person's arm on a Franka: shoulder, elbow, wrist and the hand's orientation to seven joint angles, in closed form.

The kind of solution is that of SEW-Mimic (the directions of upper arm and forearm and the hand's orientation are kept, lengths
are not), with the Franka's own geometry. Its shoulder is the point S where axes 1 to 3 meet, its wrist the point W where axes
5 and 6 meet, its elbow the point E of axis 4 in the plane of S and W. Upper arm and forearm are the lines S-E and E-W. Axis 4
lies ``OFFSET`` beside the axes 3 and 5, so these lines are tilted against them by ``UPPER_TILT`` and ``FORE_TILT``: they are
in line at q4 = -(UPPER_TILT + FORE_TILT) = -26.7 degrees, and a person's straight arm is not at a limit of the joint.

With t = -q4 the modified Denavit-Hartenberg parameters in `vigil.kinematics` come to

    rotation of link 3             A = Rz(q1) Ry(q2) Rz(q3)     its y is the normal of the arm's plane
    rotation of link 4, turned     B = A Ry(t)                  t = bend of the elbow + UPPER_TILT + FORE_TILT
    rotation R of the flange       B^T R Rx(pi) = Rz(q5) Ry(-q6) Rz(-q7)

A and B^T R Rx(pi) have two decompositions each, and the plane may be turned over with a bend of opposite sign: eight
solutions, of which one within the limits and close to the present angles is taken. Where a limit is met the joint stays there,
and the joints beyond it make up for it as far as they can, so that the hand's orientation is given up last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vigil.errors import VigilError

SHOULDER_HEIGHT = 0.333  # [m] of S above the base
UPPER, FORE, OFFSET = 0.316, 0.384, 0.0825  # [m] along axes 3 and 5 to axis 4, and beside them
UPPER_TILT, FORE_TILT = float(np.arctan2(OFFSET, UPPER)), float(np.arctan2(OFFSET, FORE))
UPPER_LENGTH = float(np.hypot(UPPER, OFFSET))  # [m] from S to E
STRAIGHT = 0.05  # sine of the bend below which the plane is drawn to the present one: a line has none
SINGULAR = 1e-4  # sine below which two axes count as parallel, and the first of them keeps its angle
SHORTEST = 0.03  # [m] of a tracked upper arm or forearm
# What a rad beyond a limit counts against a rad of motion when a solution is chosen.
LIMITS_FIRST, STAY = 1e6, 4.0

_SIDES = np.array([1.0, 1.0, -1.0, -1.0])  # of the plane
_RELUCTANCE = np.array([1.0, 1.0, 10.0, 10.0])  # turned over, the elbow bends by 18 degrees only
_SHOULDERS = np.array([1.0, -1.0, 1.0, -1.0])  # decompositions of A
_WRISTS = np.array([1.0, -1.0])  # decompositions of B^T R Rx(pi)
_HALF_TURN = np.array([1.0, -1.0, -1.0])  # R Rx(pi) is R with its second and third column turned round
_SIGNS = np.array([1.0, -1.0, -1.0])  # it is q5, -q6 and -q7 that the wrist's decomposition gives
_SINE, _COSINE = OFFSET / UPPER_LENGTH, UPPER / UPPER_LENGTH  # of UPPER_TILT
_TURN = 2.0 * np.pi


@dataclass(frozen=True)
class Retargeted:
    """Joint angles and what they cost.

    Attributes:
        q: [..., 7] rad, within the limits.
        clipped: [...] rad by which a limit kept back the joint that it kept back most; 0: all is as tracked.
    """

    q: np.ndarray
    clipped: np.ndarray


def retarget(
    shoulder: np.ndarray,
    elbow: np.ndarray,
    wrist: np.ndarray,
    rotation: np.ndarray,
    near: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    stay: bool = False,
) -> Retargeted:
    """Angles of a Franka whose upper arm and forearm point as a person's do, and whose flange is turned by ``rotation``.

    Vectorised over leading dimensions ``...``, which all arguments but the limits have.

    Args:
        shoulder, elbow, wrist: [..., 3] m along the axes of the arm's base; only the directions between them count.
        rotation: [..., 3, 3] of the flange in the base.
        near: [..., 7] rad; of several solutions the one that needs the least motion from here is taken.
        lower, upper: [7] limits, rad.
        stay: rather be kept back by a limit than go over to another solution, which swings the whole arm.

    Raises:
        VigilError: a point or rotation is not finite, or two neighbouring points coincide.
    """
    upper_arm, forearm = directions(shoulder, elbow, wrist)
    rotation, near = np.asarray(rotation, float), np.asarray(near, float)
    if not np.isfinite(rotation).all():
        raise VigilError("the hand's orientation is not finite: wait until it is tracked")
    bend, normal = _bend_and_normal(upper_arm, forearm, near)
    leading = bend.shape

    # The arm: two sides of the plane times two decompositions, [..., 4].
    q = np.empty((*leading, 4, 7))
    excess = np.zeros((*leading, 4))
    across = _cross(normal, upper_arm)[..., None, :] * _SIDES[:, None]
    along = upper_arm[..., None, :]
    rows = np.empty((*leading, 4, 3, 3))  # x, y and z of A
    rows[..., 0, :] = _SINE * along + _COSINE * across
    rows[..., 1, :] = normal[..., None, :] * _SIDES[:, None]
    rows[..., 2, :] = _COSINE * along - _SINE * across
    q[..., 0], q[..., 1], q[..., 2] = _decompose(
        rows, _SHOULDERS, near[..., None, 0], lower[:3], upper[:3], excess
    )
    q4 = -(_SIDES * bend[..., None] + UPPER_TILT + FORE_TILT)
    q[..., 3] = np.clip(q4, lower[3], upper[3])
    np.maximum(excess, _RELUCTANCE * np.abs(q4 - q[..., 3]), out=excess)

    # The wrist, from where the limits leave the forearm: two decompositions for each, [..., 4, 2].
    needed = np.swapaxes(_forearm_rows(q) @ (rotation * _HALF_TURN)[..., None, :, :], -1, -2)
    both = np.empty((*leading, 4, 2, 7))
    both[..., :4] = q[..., None, :4]
    excess = np.repeat(excess[..., None], 2, axis=-1)
    ends = _SIGNS * lower[4:], _SIGNS * upper[4:]
    found = _decompose(
        needed[..., None, :, :],
        _WRISTS,
        near[..., None, None, 4],
        np.minimum(*ends),
        np.maximum(*ends),
        excess,
    )
    both[..., 4], both[..., 5], both[..., 6] = found[0], -found[1], -found[2]

    excess = excess.reshape(-1, 8)
    motion = both - near[..., None, None, :]
    motion = np.sqrt((motion * motion).sum(axis=-1)).reshape(-1, 8)
    best = np.argmin(motion + (STAY if stay else LIMITS_FIRST) * excess, axis=-1)
    chosen = np.arange(len(best)), best
    return Retargeted(both.reshape(-1, 8, 7)[chosen].reshape(*leading, 7), excess[chosen].reshape(leading))


def keypoints(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S, E and W, each [..., 3] m in the base, of a Franka with angles ``q`` [..., 7] rad."""
    q = np.asarray(q, float)
    x, _, z = np.moveaxis(_upper_arm_rows(q), -2, 0)
    sine, cosine = np.sin(-q[..., 3, None]), np.cos(-q[..., 3, None])
    shoulder = np.broadcast_to([0.0, 0.0, SHOULDER_HEIGHT], x.shape)
    elbow = shoulder + OFFSET * x + UPPER * z
    return shoulder, elbow, elbow - OFFSET * (cosine * x - sine * z) + FORE * (sine * x + cosine * z)


def elbow_angle(shoulder: np.ndarray, elbow: np.ndarray, wrist: np.ndarray) -> np.ndarray:
    """[...] rad between upper arm and forearm; 0: straight."""
    one, other = np.subtract(elbow, shoulder), np.subtract(wrist, elbow)
    return np.arctan2(np.linalg.norm(_cross(one, other), axis=-1), (one * other).sum(axis=-1))


def directions(shoulder: np.ndarray, elbow: np.ndarray, wrist: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [..., 3] along upper arm and forearm.

    Raises:
        VigilError: a point is not finite, or two neighbouring points coincide.
    """
    return _direction(shoulder, elbow, "upper arm"), _direction(elbow, wrist, "forearm")


# Parts --------------------------------------------------------------------------------------------------------


def _direction(start: np.ndarray, end: np.ndarray, what: str) -> np.ndarray:
    way = np.subtract(end, start, dtype=float)
    length = np.sqrt((way * way).sum(axis=-1, keepdims=True))
    if not (length >= SHORTEST).all():
        raise VigilError(
            f"the tracked {what} is {np.min(length):.3g} m long, needed are at least {SHORTEST} m: wait until it is tracked"
        )
    return way / length


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As ``np.cross`` of vectors [..., 3], at a third of its time for a single pair."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    across = np.empty(np.broadcast_shapes(a.shape, b.shape))
    across[..., 0], across[..., 1], across[..., 2] = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    return across


def _bend_and_normal(
    upper_arm: np.ndarray, forearm: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bend of the elbow [...] rad, and the normal [..., 3] of the arm's plane.

    Near a straight arm the normal is drawn to that of the angles ``near``: the forearm's direction is then wrong by less
    than the bend, but a tremor of the keypoints does not turn the arm about itself.
    """
    normal = _cross(upper_arm, forearm)
    sine = np.sqrt((normal * normal).sum(axis=-1, keepdims=True))
    bend = np.arctan2(sine[..., 0], (upper_arm * forearm).sum(axis=-1))
    if (sine >= STRAIGHT).all():
        return bend, normal / sine
    present = _upper_arm_rows(near)[..., 1, :]
    present = present - (present * upper_arm).sum(axis=-1, keepdims=True) * upper_arm
    length = np.sqrt((present * present).sum(axis=-1, keepdims=True))
    # Where the upper arm points along the present normal any other will do: one across an axis of the base.
    other = _cross(upper_arm, np.eye(3)[np.argmin(np.abs(upper_arm), axis=-1)])
    present = np.where(length > SINGULAR, present, other)
    present /= np.sqrt((present * present).sum(axis=-1, keepdims=True))
    present *= np.where((present * normal).sum(axis=-1, keepdims=True) < 0.0, -1.0, 1.0)
    share = np.minimum(sine / STRAIGHT, 1.0) ** 2
    drawn = share * normal / np.maximum(sine, 1e-12) + (1.0 - share) * present
    return bend, drawn / np.sqrt((drawn * drawn).sum(axis=-1, keepdims=True))


def _upper_arm_rows(q: np.ndarray) -> np.ndarray:
    """[..., 3, 3] whose rows are x, y and z of A for angles ``q`` [..., 3 or more]."""
    cosines, sines = np.cos(q[..., :3]), np.sin(q[..., :3])
    ca, cb, cc = cosines[..., 0], cosines[..., 1], cosines[..., 2]
    sa, sb, sc = sines[..., 0], sines[..., 1], sines[..., 2]
    rows = np.empty((*q.shape[:-1], 3, 3))
    rows[..., 0, 0], rows[..., 0, 1], rows[..., 0, 2] = (
        ca * cb * cc - sa * sc,
        sa * cb * cc + ca * sc,
        -sb * cc,
    )
    rows[..., 1, 0], rows[..., 1, 1], rows[..., 1, 2] = (
        -ca * cb * sc - sa * cc,
        ca * cc - sa * cb * sc,
        sb * sc,
    )
    rows[..., 2, 0], rows[..., 2, 1], rows[..., 2, 2] = ca * sb, sa * sb, cb
    return rows


def _forearm_rows(q: np.ndarray) -> np.ndarray:
    """[..., 3, 3] whose rows are x, y and z of B."""
    rows = _upper_arm_rows(q)
    sine, cosine = np.sin(-q[..., 3, None]), np.cos(-q[..., 3, None])
    x, z = rows[..., 0, :].copy(), rows[..., 2, :].copy()
    rows[..., 0, :], rows[..., 2, :] = cosine * x - sine * z, sine * x + cosine * z
    return rows


def _decompose(
    rows: np.ndarray,
    sign: np.ndarray,
    near: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    excess: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, c) [...] rad within limits with Rz(a) Ry(b) Rz(c) as close to a rotation as they allow, a first.

    Args:
        rows: [..., 3, 3] x, y and z of the rotation.
        sign: of sin(b), which tells the two decompositions apart.
        near: the angle that a keeps where b is 0 or half a turn, so that only the sum or difference of a and c counts.
        lower, upper: [3] limits.
        excess: [...] is raised to what the limits kept back.
    """
    lower, upper = lower.tolist(), upper.tolist()
    zx, zy, zz = rows[..., 2, 0], rows[..., 2, 1], rows[..., 2, 2]
    a = np.where(zx * zx + zy * zy > SINGULAR**2, np.arctan2(sign * zy, sign * zx), near)
    a = _limit(a, lower[0], upper[0], excess)
    cosine, sine = np.cos(a), np.sin(a)
    b = _limit(np.arctan2(cosine * zx + sine * zy, zz), lower[1], upper[1], excess)
    c = np.arctan2(
        cosine * rows[..., 0, 1] - sine * rows[..., 0, 0], cosine * rows[..., 1, 1] - sine * rows[..., 1, 0]
    )
    return a, b, _limit(c, lower[2], upper[2], excess)


def _limit(angle: np.ndarray, lower: float, upper: float, excess: np.ndarray) -> np.ndarray:
    """``angle``, give or take whole turns, within limits less than a turn apart; ``excess`` is raised by what is cut off."""
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    turned = (angle + (np.pi - middle)) % _TURN - np.pi  # from the middle
    kept = np.clip(turned, -half, half)
    np.maximum(excess, np.abs(turned - kept), out=excess)
    return kept + middle
