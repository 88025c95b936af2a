"""A scripted operator that picks the cube and places it on the tray, from ground truth.

It is a state feedback: every command follows from the state of the world and from its own set-point, so it starts
at any pose without a jump, comes back from disturbances, and grasps again when the object is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vigil.kinematics import FRANKA, rotation_from_vector, rotation_vector
from vigil.sim import scene
from vigil.sim.task import on_tray

_DOWN = np.array([[0.5**0.5, -(0.5**0.5), 0.0], [-(0.5**0.5), -(0.5**0.5), 0.0], [0.0, 0.0, -1.0]])
_FUNNEL = 0.010  # [m] horizontal error from which the approach descends
_REACH = 0.75  # [m] horizontal, with the tool pointing down over the table


@dataclass(frozen=True)
class Limits:
    """Of the Cartesian set-point."""

    speed: float = 0.35  # [m/s]
    acceleration: float = 1.2  # [m/s^2]
    turn: float = 0.8  # [rad/s]
    turn_acceleration: float = 3.0  # [rad/s^2]


@dataclass(frozen=True)
class Goal:
    """Where the set-point is to go."""

    position: np.ndarray
    yaw: float
    width: float
    phase: str


def object_pose(qpos: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre [3] m and yaw [rad] of the object, from the scene's generalised positions."""
    w, x, y, z = qpos[-4:]
    return np.array(qpos[-7:-4]), float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


class Expert:
    """Call `start` with the measured joints, then `command` at a steady rate."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self.start(scene.HOME)

    def start(self, q: np.ndarray) -> None:
        """Take over at the measured joint angles ``q`` [7]; the first command equals them."""
        self._q = np.array(q, dtype=float)
        self._position, self._rotation = FRANKA.forward(self._q, scene.TOOL_OFFSET)
        self._velocity, self._spin = np.zeros(3), np.zeros(3)
        self._gripping = False
        self._released = False
        self._fresh = True
        self.phase = "approach"

    @property
    def done(self) -> bool:
        """The object lies on the tray and the arm is back above it."""
        return self.phase == "done"

    def command(
        self, positions: np.ndarray, qpos: np.ndarray, half: np.ndarray | None = None, dt: float = 0.05
    ) -> np.ndarray:
        """Joint targets for now.

        Args:
            positions: [8] measured joints [rad] and gripper width [m], columns as in `scene.COLUMNS`.
            qpos: generalised positions of the scene (SimState.qpos).
            half: [3] half edges of the object [m]; the cube's when left out.
            dt: [s] since the last call.

        Returns:
            [8] joint targets [rad] and the gripper's width [m], for one ``dt`` ahead.
        """
        half = np.full(3, scene.CUBE_HALF) if half is None else np.asarray(half)
        measured, _ = FRANKA.forward(positions[:7], scene.TOOL_OFFSET)
        goal = self._goal(measured, float(positions[7]), *object_pose(qpos), half)
        goal = replace(goal, position=_within_reach(goal.position))
        self.phase = goal.phase
        if self._fresh:  # nothing moves with the first command: whoever takes over sees no step
            self._fresh = False
            return np.append(self._q, positions[7])
        # The set-point waits for an arm that cannot follow.
        lag = float(np.linalg.norm(self._position - measured))
        patience = float(np.clip(1.0 - (lag - 0.04) / 0.06, 0.0, 1.0))
        self._advance(goal, dt, patience)
        posture = np.where(np.arange(7) == 2, 0.0, self._q)
        solution = FRANKA.inverse(
            self._position,
            self._rotation,
            self._q,
            lower=scene.JOINT_LOWER + 0.02,
            upper=scene.JOINT_UPPER - 0.02,
            tool_offset=scene.TOOL_OFFSET,
            posture=posture,
            posture_weight=min(1.0, 0.5 * dt / max(0.05, abs(self._q[2]))),
            iterations=4,
            damping=0.02,
        )
        reach = 1.5 * dt
        self._q = self._q + np.clip(solution.q - self._q, -reach, reach)
        return np.append(self._q, goal.width)

    # Deciding -------------------------------------------------------------------------------------------------

    def _goal(self, tip: np.ndarray, width: float, cube: np.ndarray, yaw: float, half: np.ndarray) -> Goal:
        edge = 2.0 * float(half[0])
        yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # the nearest of the four faces
        offset = cube - tip
        between = np.linalg.norm(offset[:2]) < 0.02 and abs(offset[2]) < 0.02
        held = self._gripping and between and abs(width - edge) < 0.008
        if on_tray(cube, half) and not (held and not self._over_tray(cube)):
            return self._leave(tip, width, cube, held)
        self._released = False
        if held:
            return self._carry(cube, tip)
        return self._fetch(tip, width, cube, yaw, between, edge)

    @staticmethod
    def _over_tray(cube: np.ndarray) -> bool:
        return bool(np.linalg.norm(cube[:2] - scene.TRAY_CENTRE) < 0.045)

    def _fetch(
        self, tip: np.ndarray, width: float, cube: np.ndarray, yaw: float, between: bool, edge: float
    ) -> Goal:
        """Above the object, down through a funnel, close."""
        away = float(np.linalg.norm(self._position[:2] - cube[:2]))
        turn = abs((self._yaw() - yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)
        real = float(np.linalg.norm(tip[:2] - cube[:2]))
        if self._gripping:
            lost = not between or width < edge - 0.010
            if lost:
                self._gripping = False
        if not self._gripping and width < edge + 0.02 and real < 0.05 and tip[2] < cube[2] + 0.05:
            # Fingers closed at the object: open where they are, it may still hang between them.
            return Goal(self._position.copy(), self._yaw(), scene.MAX_WIDTH, "approach")
        spread = max(away - _FUNNEL, 0.0) + max(real - 0.02, 0.0) + 0.03 * max(turn - 0.05, 0.0)
        clearance = min(0.10, 4.0 * spread)
        if not self._gripping and width < edge + 0.02:
            clearance = max(clearance, 0.05)  # not yet open
        grasp = np.array([cube[0], cube[1], max(cube[2], 0.018)])
        near = np.linalg.norm(self._position - grasp) < 0.004 and np.linalg.norm(tip - grasp) < 0.017
        if near and np.linalg.norm(self._velocity) < 0.03 and edge < scene.MAX_WIDTH - 0.005:
            self._gripping = True
        if self._gripping:
            return Goal(grasp, yaw, 0.0, "grasp")
        return Goal(np.add(grasp, (0.0, 0.0, clearance)), yaw, scene.MAX_WIDTH, "approach")

    def _carry(self, cube: np.ndarray, tip: np.ndarray) -> Goal:
        """Up, across, down onto the tray."""
        away = float(np.linalg.norm(self._position[:2] - scene.TRAY_CENTRE))
        low = scene.TRAY_FLOOR + scene.CUBE_HALF + 0.004 + (tip[2] - cube[2])
        height = low + min(0.10, 2.5 * max(away - 0.015, 0.0))
        # Across only as far as the height allows: nothing is dragged over the table.
        freedom = float(np.clip((self._position[2] - 0.05) / 0.03, 0.0, 1.0)) if away > 0.05 else 1.0
        across = self._position[:2] + freedom * (scene.TRAY_CENTRE - self._position[:2])
        phase = "place" if away < scene.TRAY_HALF else "carry"
        return Goal(np.array([*across, height]), 0.0, 0.0, phase)

    def _leave(self, tip: np.ndarray, width: float, cube: np.ndarray, held: bool) -> Goal:
        """Open, straight up, home."""
        opened = width > 0.06
        settled = np.linalg.norm(self._velocity) < 0.04
        if held and not settled and not self._released:
            low = scene.TRAY_FLOOR + scene.CUBE_HALF + 0.001 + (tip[2] - cube[2])
            return Goal(np.array([*self._position[:2], low]), 0.0, 0.0, "place")
        self._gripping, self._released = False, True
        here = np.linalg.norm(tip[:2] - cube[:2]) < 0.06
        if here and not opened and tip[2] < cube[2] + 0.06:
            return Goal(self._position.copy(), self._yaw(), scene.MAX_WIDTH, "place")
        if here and tip[2] < cube[2] + 0.08:
            return Goal(
                np.array([*self._position[:2], cube[2] + 0.14]), self._yaw(), scene.MAX_WIDTH, "place"
            )
        home, _ = FRANKA.forward(scene.HOME, scene.TOOL_OFFSET)
        return Goal(home, 0.0, scene.MAX_WIDTH, "done")

    def _yaw(self) -> float:
        """Turn of the set-point about the vertical, 0 at home."""
        turned = self._rotation @ _DOWN.T
        return float(np.arctan2(turned[1, 0] - turned[0, 1], turned[0, 0] + turned[1, 1]))

    # Moving ---------------------------------------------------------------------------------------------------

    def _advance(self, goal: Goal, dt: float, patience: float) -> None:
        limits = self._limits
        self._velocity = _towards(
            goal.position - self._position, self._velocity, limits.speed * patience, limits.acceleration, dt
        )
        self._position = self._position + self._velocity * dt
        wanted = rotation_from_vector(np.array([0.0, 0.0, goal.yaw])) @ _DOWN
        error = rotation_vector(wanted @ self._rotation.T)
        self._spin = _towards(error, self._spin, limits.turn * patience, limits.turn_acceleration, dt)
        self._rotation = rotation_from_vector(self._spin * dt) @ self._rotation


def _within_reach(position: np.ndarray) -> np.ndarray:
    """The nearest position that the arm reaches without stretching out."""
    radius = float(np.linalg.norm(position[:2]))
    return (
        position
        if radius <= _REACH
        else np.array([*(position[:2] * (_REACH / radius)), max(position[2], 0.10)])
    )


def _towards(
    error: np.ndarray, velocity: np.ndarray, speed: float, acceleration: float, dt: float
) -> np.ndarray:
    """Next velocity on the way to a goal at ``error``: speed and acceleration bounded, stops without overshoot."""
    distance = float(np.linalg.norm(error))
    if distance < 1e-9:
        wanted = np.zeros_like(error)
    else:
        # Fastest speed from which 0.6 of the acceleration still stops in time; close by a linear law without chatter.
        braking = 0.6 * acceleration
        fastest = min(
            speed, np.sqrt(2.0 * braking * distance), distance / (4.0 * dt) if dt > 0.02 else 5.0 * distance
        )
        wanted = error * (fastest / distance)
    change = wanted - velocity
    size = float(np.linalg.norm(change))
    if size > acceleration * dt:
        change = change * (acceleration * dt / size)
    return velocity + change
