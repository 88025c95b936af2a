"""An expert that plans pushes, and the demonstrations it gives: `python expert.py --out demos.npz`.

Push-T's block has no friction and comes to rest within a step, so one push at one point of its outline, along the
normal there, turns it about one fixed axis in its own frame: a closed form in push depth. The expert searches short
sequences of such pushes for the one that brings the block home soonest, walks around the block to where the
next push begins, pushes, and plans again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from world import (
    AGENT_RADIUS,
    CENTRE,
    GOAL,
    INERTIA,
    LIMIT,
    WORLD,
    distance_to_block,
    make_env,
    observe,
    place,
    rotation,
    sample_start,
)

DEPTHS = np.array([0.6, 1.2, 2, 3, 4.5, 6.5, 9, 13, 18, 25, 34, 46, 60, 80, 100])  # px of one push
CLEARANCE = AGENT_RADIUS + 4  # px between the agent's centre and the block while walking
GAP = 8.0  # px between agent and block where a push begins
WALK_LEAD, PUSH_LEAD = 40.0, 20.0  # px by which the target leads the agent: sets its speed


def _outline() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [C, 2] where to push, outward normals [C, 2], and how far along the outline [C] each one is."""
    faces = [  # start, end, outward normal; clear of the inner corners, into which the agent does not fit
        ((-56, 0), (56, 0), (0, -1)),
        ((60, 4), (60, 26), (1, 0)),
        ((56, 30), (36, 30), (0, 1)),
        ((15, 52), (15, 116), (1, 0)),
        ((12, 120), (-12, 120), (0, 1)),
        ((-15, 116), (-15, 52), (-1, 0)),
        ((-36, 30), (-56, 30), (0, 1)),
        ((-60, 26), (-60, 4), (-1, 0)),
    ]
    points, normals = [], []
    for start, end, normal in faces:
        start, end = np.array(start, float), np.array(end, float)
        count = 1 + round(np.linalg.norm(end - start) / 4)
        points.append(np.linspace(start, end, count))
        normals.append(np.tile(np.array(normal, float), (count, 1)))
    points, normals = np.concatenate(points), np.concatenate(normals)
    walked = points + normals * (AGENT_RADIUS + GAP)
    steps = np.linalg.norm(np.diff(walked, axis=0, append=walked[:1]), axis=1)
    return points, normals, np.concatenate([[0], np.cumsum(steps)])


POINTS, NORMALS, _ARC = _outline()
ARC, PERIMETER = _ARC[:-1], _ARC[-1]
_along = np.abs(ARC[:, None] - ARC[None])
TRAVEL = np.minimum(_along, PERIMETER - _along)  # [C, C] px between where two pushes begin
CORNERS = np.array(
    [(-82, -22), (82, -22), (82, 52), (37, 142), (-37, 142), (-82, 52)], float
)  # to walk around


def push(poses: np.ndarray, points: np.ndarray, normals: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Poses [..., 3] of the block's *centre* after pushes at points [..., 2] along -normals, ``depths`` [...] px deep."""
    lever = points - CENTRE
    moment = -(lever[..., 0] * normals[..., 1] - lever[..., 1] * normals[..., 0])
    share = 1 / (1 + moment**2 / INERTIA)
    turn = depths * share * moment / INERTIA
    # The block moves along a circle: its chord, in the block's frame, is the arc turned by half and shortened.
    chord = depths * share * np.sinc(turn / (2 * math.pi))
    angle = poses[..., 2] + turn / 2
    c, s = np.cos(angle), np.sin(angle)
    x = poses[..., 0] - chord * (c * normals[..., 0] - s * normals[..., 1])
    y = poses[..., 1] - chord * (s * normals[..., 0] + c * normals[..., 1])
    return np.stack([x, y, poses[..., 2] + turn], -1)


def mismatch(poses: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Root mean square distance [px] of the block's mass to where it is at ``goal``; both are poses of the centre."""
    away = ((poses[..., :2] - goal[..., :2]) ** 2).sum(-1)
    return np.sqrt(away + 2 * INERTIA * (1 - np.cos(poses[..., 2] - goal[..., 2])))


def centre_pose(pose: np.ndarray) -> np.ndarray:
    """From the pose [3] of the block's frame to that of its centre of gravity."""
    return np.array([*(pose[:2] + rotation(pose[2]) @ CENTRE), pose[2]])


GOAL_CENTRE = centre_pose(GOAL)


@dataclass
class _Push:
    contact: int
    target: np.ndarray  # pose of the block's centre where this push ends
    begun: bool = False
    steps: int = 0


class Expert:
    """Drives one episode; `act` is called once per step of the environment."""

    def __init__(self, beam: int = 24, pushes: int = 3):
        self.beam, self.pushes = beam, pushes
        self._push: _Push | None = None

    def act(self, state: np.ndarray) -> np.ndarray:
        """Target position [2] of the agent, px."""
        turn = rotation(state[4])
        agent = turn.T @ (state[:2] - state[2:4])
        pose = centre_pose(state[2:])
        if self._push is None:
            self._push = self._plan(agent, pose)
        move = self._push
        move.steps += 1
        point, normal = POINTS[move.contact], NORMALS[move.contact]
        if move.begun:
            target = self._press(agent, pose, point, normal)
            if target is None:
                move = self._push = self._plan(agent, pose)
                point, normal = POINTS[move.contact], NORMALS[move.contact]
        if not move.begun:
            target = self._walk(agent, point, normal)
        if move.steps > 60:
            self._push = None
        return np.clip(state[2:4] + turn @ target, 0, WORLD)

    def _plan(self, agent: np.ndarray, pose: np.ndarray) -> _Push:
        """The first of the pushes that bring the block home in the fewest steps."""
        begin = POINTS + NORMALS * (AGENT_RADIUS + GAP)
        walk = np.linalg.norm(begin - agent, axis=1)
        nearest = int(walk.argmin())
        travel = (walk[nearest] + np.maximum(TRAVEL[nearest], walk - walk[nearest]))[None]  # [1, C]
        poses, cost, first = pose[None], np.zeros(1), None
        best, best_cost = None, math.inf
        for _ in range(self.pushes):
            after = push(poses[:, None, None], POINTS[:, None], NORMALS[:, None], DEPTHS)  # [B, C, D, 3]
            spent = cost[:, None, None] + 3 + travel[:, :, None] / 22 + DEPTHS / 11
            error = mismatch(after, GOAL_CENTRE)
            total = spent + 2.5 * error + 6 * (error > 1.5)
            i = np.unravel_index(total.argmin(), total.shape)
            if total[i] < best_cost:
                best_cost = total[i]
                best = first[i[0]] if first else (int(i[1]), after[i])
            # Per contact the one best depth goes on, ranked by a guess of what the rest will cost.
            guess = spent + 0.35 * error
            kept = guess.argmin(-1)
            b, c = np.unravel_index(_lowest(guess.min(-1), self.beam), kept.shape)
            # So do all depths of the contacts that bring most.
            b2, c2, d2 = np.unravel_index(_lowest(guess, self.beam), guess.shape)
            b, c, d = np.concatenate([b, b2]), np.concatenate([c, c2]), np.concatenate([kept[b, c], d2])
            first = [first[i] if first else (int(j), after[i, j, k]) for i, j, k in zip(b, c, d, strict=True)]
            poses, cost, travel = after[b, c, d], spent[b, c, d], TRAVEL[c]
        return _Push(*best)

    def _walk(self, agent: np.ndarray, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Target in the block's frame on the way to where the push begins; starts the push once there."""
        begin = point + normal * (AGENT_RADIUS + GAP)
        side = np.array([-normal[1], normal[0]])
        away = agent - point
        if abs(away @ side) < 3 and AGENT_RADIUS - 2 < away @ normal < AGENT_RADIUS + GAP + 6:
            self._push.begun, self._push.steps = True, 0
            return agent - normal * PUSH_LEAD / 2
        path = _path(agent, begin)
        # Aim a fixed lead along the path, and nearer where the straight line there would touch the block.
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        for lead in (WALK_LEAD, 30.0, 22.0, 14.0):
            at = min(lead, length[-1])
            aim = np.array([np.interp(at, length, path[:, axis]) for axis in (0, 1)])
            if _touch(agent[None], aim[None])[0] <= _touch(agent[None], path[1][None])[0] + 1:
                break
        return aim

    def _press(
        self, agent: np.ndarray, pose: np.ndarray, point: np.ndarray, normal: np.ndarray
    ) -> np.ndarray | None:
        """Target in the block's frame that goes on with the push; none once it brings nothing more."""
        side = np.array([-normal[1], normal[0]])
        away = agent - point
        slip = np.clip(away @ side, -6, 6)
        depths = np.linspace(0, 100, 201)
        error = mismatch(push(pose, point + slip * side, normal, depths), self._push.target)
        left = depths[error.argmin()]
        gap = away @ normal - AGENT_RADIUS
        if (left < 0.5 and gap < 2) or abs(away @ side) > 9 or self._push.steps > 40:
            return None
        forward = min(max(gap, 0) + left, PUSH_LEAD)
        return agent - normal * forward - side * np.clip(away @ side, -4, 4)


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Flat indices of the ``count`` lowest values, in no order."""
    return np.argpartition(values, count, axis=None)[:count]


def _touch(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """By how much straight lines from starts [N, 2] to ends [N, 2] come too near the block, summed along them [px²]."""
    share = np.linspace(0, 1, 24)[:, None]
    points = starts[:, None] * (1 - share) + ends[:, None] * share
    near = np.maximum(CLEARANCE - distance_to_block(points), 0).mean(1)
    return near * np.linalg.norm(ends - starts, axis=1)


def _path(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Shortest way [N, 2] around the block, in its frame, by way of the corners."""
    nodes = np.concatenate([start[None], CORNERS, end[None]])
    a, b = np.triu_indices(len(nodes), 1)
    edges = np.linalg.norm(nodes[a] - nodes[b], axis=1) + 3 * _touch(nodes[a], nodes[b])
    cost = np.zeros((len(nodes), len(nodes)))
    cost[a, b] = cost[b, a] = edges
    before = np.tile(np.arange(len(nodes))[:, None], len(nodes))
    for k in range(len(nodes)):  # Floyd and Warshall's
        through = cost[:, k, None] + cost[None, k]
        shorter = through < cost - 1e-9
        cost = np.where(shorter, through, cost)
        before = np.where(shorter, before[None, k].repeat(len(nodes), 0), before)
    way = [len(nodes) - 1]
    while way[-1] != 0:
        way.append(int(before[0, way[-1]]))
    return nodes[way[::-1]]


def demonstrate(
    env, rng: np.random.Generator, noise: float, goal_coverage: float = 0.96
) -> tuple[np.ndarray, np.ndarray, bool]:
    """States [N, 5], the expert's targets [N, 2] in them, and whether it brought the block home.

    What is executed is disturbed by slowly varying noise of ``noise`` px, so that demonstrations show how to
    recover; what is recorded is what the expert wanted.
    """
    place(env, sample_start(rng))
    expert, drift = Expert(), np.zeros(2)
    states, actions = [], []
    for _ in range(LIMIT):
        state = observe(env)
        action = expert.act(state)
        states.append(state)
        actions.append(action)
        drift = 0.7 * drift + rng.normal(0, noise, 2) * math.sqrt(1 - 0.7**2)
        _, _, _, _, info = env.step(np.clip(action + drift, 0, WORLD))
        if info["coverage"] > goal_coverage:
            return np.array(states), np.array(actions), True
    return np.array(states), np.array(actions), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/pusht/demos.npz"))
    parser.add_argument("--episodes", type=int, default=1200)
    parser.add_argument(
        "--noise", type=float, default=3.5, help="px, disturbs what is executed: at most so much"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    given = parser.parse_args()
    env = make_env()
    states, actions, episode = [], [], []
    failed, began = 0, time.monotonic()
    for i in range(given.episodes):
        rng = np.random.default_rng([given.seed, i])
        s, a, done = demonstrate(env, rng, noise=rng.uniform(0, given.noise))
        failed += not done
        if done:  # the others would teach how to fail
            states.append(s)
            actions.append(a)
            episode.append(np.full(len(s), i))
        minutes = (time.monotonic() - began) / 60
        if (i + 1) % 50 == 0:
            steps = np.mean([len(s) for s in states])
            print(
                f"{i + 1:5d} episodes, {failed} failed, {steps:.0f} steps each, {minutes:.1f} min", flush=True
            )
        if minutes > given.minutes:
            break
    given.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        given.out,
        states=np.concatenate(states).astype(np.float32),
        actions=np.concatenate(actions).astype(np.float32),
        episode=np.concatenate(episode).astype(np.int32),
    )
    print(f"{given.out}: {len(states)} demonstrations")


if __name__ == "__main__":
    main()
