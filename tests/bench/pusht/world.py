"""Push-T as this benchmark uses it: gym-pusht's environment, its starts, and the geometry of its block.

A state is float64 [5]: agent x, y, block x, y [px], block angle [rad]. The block's frame has its origin in the
middle of the bar's outer edge, x along the bar and y along the stem; the world is 512 by 512 px.
"""

from __future__ import annotations

import math
import os
import warnings

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gym_pusht.envs.pusht import PushTEnv

STEP_DT = 0.1  # s, one step of the environment
LIMIT = 300  # steps in an episode
COVERAGE = 0.95  # of the goal, above which an episode is a success
WORLD = 512.0  # px
GOAL = np.array([256.0, 256.0, math.pi / 4])

# Half of what a nominal start may be away from the goal.
START_PX = 60.0
START_RAD = math.pi / 4

AGENT_RADIUS = 15.0
BOXES = np.array([[-60.0, 0.0, 60.0, 30.0], [-15.0, 30.0, 15.0, 120.0]])  # x0, y0, x1, y1: bar and stem
CENTRE = np.array([0.0, 45.0])  # of gravity
INERTIA = 3000.0  # px², moment of inertia about CENTRE over mass


def make_env() -> PushTEnv:
    """The environment, never rendered, that ends an episode at COVERAGE."""
    env = PushTEnv(obs_type="state")
    env.success_threshold = COVERAGE
    return env


def place(env: PushTEnv, state: np.ndarray) -> None:
    """Begin an episode in exactly this state (gym-pusht's own reset shifts the block as it turns it)."""
    env.reset(seed=0)
    env.agent.position = tuple(map(float, state[:2]))
    env.agent.velocity = (0, 0)
    move_block(env, state[2:])


def move_block(env: PushTEnv, pose: np.ndarray) -> None:
    """Put the block at rest at pose [3]: x, y [px], angle [rad] of its frame."""
    # The angle turns about the centre of gravity, so the position comes second.
    env.block.angle = float(pose[2])
    env.block.position = tuple(map(float, pose[:2]))
    env.block.velocity, env.block.angular_velocity = (0, 0), 0
    env.space.reindex_shapes_for_body(env.block)


def observe(env: PushTEnv) -> np.ndarray:
    """The true state; the angle is unwrapped."""
    return np.array([*env.agent.position, *env.block.position, env.block.angle])


def sample_start(
    rng: np.random.Generator, px: float = START_PX, rad: float = START_RAD, inner: float = 0.0
) -> np.ndarray:
    """A state with the block's centre up to ``px`` and its angle up to ``rad`` from the goal, the agent clear of it.

    With ``inner`` the block is at least that share of ``px`` or of ``rad`` away.
    """
    goal_centre = GOAL[:2] + rotation(GOAL[2]) @ CENTRE
    while True:
        offset = rng.uniform(-1, 1, 3)
        if np.abs(offset).max() >= inner:
            break
    angle = GOAL[2] + offset[2] * rad
    position = goal_centre + offset[:2] * px - rotation(angle) @ CENTRE
    while True:
        agent = rng.uniform(50, 450, 2)
        if distance_to_block(rotation(angle).T @ (agent - position)) > AGENT_RADIUS + 10:
            return np.array([*agent, *position, angle])


def rotation(angle: float) -> np.ndarray:
    """[2, 2], from the block's frame to the world's."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


def distance_to_block(points: np.ndarray) -> np.ndarray:
    """Signed distance [px] of points [..., 2] in the block's frame to the block; negative inside."""
    middle, half = (BOXES[:, :2] + BOXES[:, 2:]) / 2, (BOXES[:, 2:] - BOXES[:, :2]) / 2
    beyond = np.abs(points[..., None, :] - middle) - half
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
    return (outside + np.minimum(beyond.max(-1), 0)).min(-1)
