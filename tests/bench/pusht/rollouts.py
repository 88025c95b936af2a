"""Record roll-outs of the Push-T policy: `python tests/bench/pusht/rollouts.py --out DIR`.

Writes DIR/calibration/NNN (nominal starts, until enough of them succeeded) and DIR/test/NNN (by turns nominal, under
a benign shift, under a failing one) in the format of `vigil.record.rollout`. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pymunk
from policy import EXECUTED, HORIZON, SAMPLER_STEPS, SAMPLES, Policy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from world import (
    LIMIT,
    START_PX,
    START_RAD,
    STEP_DT,
    WORLD,
    PushTEnv,
    make_env,
    move_block,
    observe,
    place,
    rotation,
    sample_start,
)

from vigil.record.rollout import EPISODE_FILE, POLICY, Episode, Rollout, load_episode, save_rollout

Observe = Callable[[np.ndarray], np.ndarray]  # true state [5] -> what the policy sees of it
Act = Callable[[np.ndarray], np.ndarray]  # target [2] of the policy -> what the agent is told


@dataclass
class Changes:
    """What a perturbation does to an episode from its begin on."""

    observe: Observe = field(default=lambda state: state)
    act: Act = field(default=lambda target: target)


@dataclass(frozen=True)
class Perturbation:
    """``apply`` changes the environment in place and says what becomes of observations and actions."""

    apply: Callable[[PushTEnv, np.random.Generator], Changes | None] = lambda env, rng: None
    start: Callable[[np.random.Generator], np.ndarray] = sample_start
    begins: tuple[int, int] = (0, 1)  # first and past-the-last step at which it may begin


def noisy(px: float, rad: float) -> Callable[[PushTEnv, np.random.Generator], Changes]:
    """White noise on every observation: ``px`` on agent and block, ``rad`` on the angle."""
    scale = np.array([px, px, px, px, rad])
    return lambda env, rng: Changes(observe=lambda state: state + rng.normal(0, scale))


def block_bias(env: PushTEnv, rng: np.random.Generator) -> Changes:
    """The block is seen 20 px beside where it is."""
    direction = rng.uniform(-math.pi, math.pi)
    shift = 20 * np.array([0, 0, math.cos(direction), math.sin(direction), 0])
    return Changes(observe=lambda state: state + shift)


def block_moved_unseen(env: PushTEnv, rng: np.random.Generator) -> Changes:
    """The block jumps 60 px and turns by half a radian, and is still seen where it was."""
    seen, direction = observe(env)[2:], rng.uniform(-math.pi, math.pi)
    jump = np.array([60 * math.cos(direction), 60 * math.sin(direction), rng.choice([-0.5, 0.5])])
    move_block(env, seen + jump)
    return Changes(observe=lambda state: np.concatenate([state[:2], seen]))


def pinned(env: PushTEnv, rng: np.random.Generator) -> None:
    """A nail through the block's centre: it turns, but does not slide."""
    centre = env.block.local_to_world(env.block.center_of_gravity)
    env.space.add(pymunk.PivotJoint(env.space.static_body, env.block, centre))


def dead_band(env: PushTEnv, rng: np.random.Generator) -> Changes:
    """The agent does not react to targets within 35 px."""

    def act(target: np.ndarray) -> np.ndarray:
        here = np.array(env.agent.position)
        return target if np.linalg.norm(target - here) > 35 else here

    return Changes(act=act)


def weak(env: PushTEnv, rng: np.random.Generator) -> None:
    """The agent follows its targets five times slower."""
    env.k_p /= 5


def turned_actions(env: PushTEnv, rng: np.random.Generator) -> Changes:
    """The agent moves 50 degrees to the left or to the right of where it is told to."""
    turn = rotation(math.radians(50) * rng.choice([-1, 1]))

    def act(target: np.ndarray) -> np.ndarray:
        here = np.array(env.agent.position)
        return here + turn @ (target - here)

    return Changes(act=act)


def other_shape(env: PushTEnv, rng: np.random.Generator) -> None:
    """The stem stands at an end of the bar: an L, its goal an L in the same place."""
    side = float(rng.choice([-1, 1])) * 45
    old = env.block.shapes
    bar, stem = sorted(old, key=lambda shape: max(v.y for v in shape.get_vertices()))
    moved = pymunk.Poly(env.block, [(v.x + side, v.y) for v in stem.get_vertices()])
    moved.filter = stem.filter
    env.space.remove(stem)
    env.space.add(moved)
    here, angle = env.block.position, env.block.angle
    env.block.center_of_gravity = (bar.center_of_gravity + moved.center_of_gravity) / 2
    env.block.angle, env.block.position = angle, here


def friction(env: PushTEnv, rng: np.random.Generator) -> None:
    """Agent and block no longer slide freely along each other: Coulomb friction of 0.16."""
    for shape in (*env.block.shapes, *env.agent.shapes):
        shape.friction = 0.4


def hard_to_turn(env: PushTEnv, rng: np.random.Generator) -> None:
    """The block's moment of inertia grows by a third."""
    env.block.moment *= 4 / 3


def slippery(env: PushTEnv, rng: np.random.Generator) -> None:
    """The block keeps half of its speed from one step of the physics to the next."""
    env.space.damping = 0.5 ** (1 / env.dt)


def delayed(env: PushTEnv, rng: np.random.Generator) -> Changes:
    """Actions come one step late."""
    waiting: deque[np.ndarray] = deque()

    def act(target: np.ndarray) -> np.ndarray:
        waiting.append(target)
        return waiting.popleft() if len(waiting) > 1 else np.array(env.agent.position)

    return Changes(act=act)


def wide_start(rng: np.random.Generator) -> np.ndarray:
    """Up to a quarter farther from the goal than any nominal start."""
    return sample_start(rng, 1.25 * START_PX, 1.25 * START_RAD, inner=0.8)


def far_start(rng: np.random.Generator) -> np.ndarray:
    """Up to 140 px and half a turn from the goal."""
    return sample_start(rng, 140, math.pi, inner=0.6)


MIDDLE = (12, 40)  # a nominal episode takes some 70 steps
BENIGN = {
    "light_noise": Perturbation(noisy(0.7, 0.007)),
    "friction": Perturbation(friction),
    "hard_to_turn": Perturbation(hard_to_turn),
    "slippery": Perturbation(slippery),
    "delayed": Perturbation(delayed),
    "wide_start": Perturbation(start=wide_start),
}
FAILING = {
    "heavy_noise": Perturbation(noisy(8, 0.1), begins=MIDDLE),
    "block_bias": Perturbation(block_bias, begins=MIDDLE),
    "block_moved_unseen": Perturbation(block_moved_unseen, begins=MIDDLE),
    "pinned": Perturbation(pinned, begins=MIDDLE),
    "dead_band": Perturbation(dead_band, begins=MIDDLE),
    "weak": Perturbation(weak, begins=MIDDLE),
    "turned_actions": Perturbation(turned_actions, begins=MIDDLE),
    "other_shape": Perturbation(other_shape),
    "far_start": Perturbation(start=far_start),
}
ALL = {"none": Perturbation()} | BENIGN | FAILING


def roll_out(policy: Policy, name: str, seed: tuple[int, ...]) -> Rollout:
    """One episode under the perturbation ``name``."""
    perturbation = ALL[name]
    # Four streams, so that a start does not depend on the perturbation, nor the policy's draws on its noise.
    starts, draws, begins, shifts = (np.random.default_rng([*seed, stream]) for stream in range(4))
    env = make_env()
    place(env, perturbation.start(starts))
    begin = int(begins.integers(*perturbation.begins))
    changes, active, succeeded, step = Changes(), False, False, 0
    seen: np.ndarray | None = None
    rows: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
    while step < LIMIT and not succeeded:
        if name != "none" and not active and step >= begin:
            changes, active = perturbation.apply(env, shifts) or Changes(), True
        before, seen = seen, changes.observe(observe(env))
        if step % EXECUTED == 0:
            noise = draws.standard_normal((SAMPLES, HORIZON, 2), np.float32)
            states = np.stack([seen if before is None else before, seen])
            embedding, samples = policy.sample(states, noise)
            rows.append((step * STEP_DT, embedding, samples, seen[:2]))
            chunk = samples[0].astype(float)
        target = np.clip(changes.act(chunk[step % EXECUTED]), 0, WORLD)
        _, _, succeeded, _, _ = env.step(target)
        step += 1
    stamps, embeddings, samples, positions = zip(*rows, strict=True)
    kind = "nominal" if name == "none" else "benign" if name in BENIGN else "failing"
    columns = ("x", "y")
    return Rollout(
        stamps=np.array(stamps),
        tick=np.arange(len(rows)),
        embedding=np.stack(embeddings),
        samples=np.stack(samples),
        names=columns,
        step_dt=STEP_DT,
        authority=np.full(len(rows), POLICY, np.uint8),
        joint_positions=np.stack(positions),
        joint_names=columns,
        episode=Episode(
            rig="pusht",
            task="push_t",
            seed=seed[-1],
            perturbation=name,
            outcome="success" if succeeded else "failure",
            termination_reason="success" if succeeded else "timeout",
            duration_s=round(step * STEP_DT, 3),
            perturbation_active_s=round(begin * STEP_DT, 3) if active else None,
            bundle_hash=policy.hash,
            sampler="ddim",
            sampler_steps=SAMPLER_STEPS,
            end_effectors=[{"chain": "position", "columns": list(columns), "tool_offset": [0, 0, 0]}],
            shift=kind,
            ood=active,
            stream=list(seed),
        ),
    )


def perturbation_of(index: int) -> str:
    """By turns none, a benign one and a failing one, each kind as often as any other of its group."""
    group = ("none",), tuple(BENIGN), tuple(FAILING)
    names = group[index % 3]
    return names[index // 3 % len(names)]


def record(out: Path, calibration: int, test: int, seed: int, progress: Progress) -> None:
    policy = Policy()

    def episode(split: str, index: int, name: str) -> Episode:
        folder = out / split / f"{index:03d}"
        if not (folder / EPISODE_FILE).is_file():
            save_rollout(folder, roll_out(policy, name, (seed, ("calibration", "test").index(split), index)))
        found = load_episode(folder)
        if (found.perturbation, found.bundle_hash) != (name, policy.hash):
            sys.exit(f"{folder} is of another policy or perturbation: name an empty folder")
        return found

    bar = progress.add_task("calibration", total=calibration, note="")
    succeeded = index = 0
    while succeeded < calibration:
        succeeded += episode("calibration", index, "none").outcome == "success"
        index += 1
        progress.update(bar, completed=succeeded, note=f"successes, of {index} nominal episodes")
    bar = progress.add_task("test", total=test, note="")
    failed = 0
    for index in range(test):
        failed += episode("test", index, perturbation_of(index)).outcome == "failure"
        progress.update(bar, completed=index + 1, note=f"episodes, {failed} failed")


def summary(out: Path) -> Table:
    """Successes per split and perturbation."""
    table = Table(
        "split", Column("perturbation", min_width=18), "shift", "episodes", "succeeded", "mean duration"
    )
    for split in ("calibration", "test"):
        episodes = [load_episode(path.parent) for path in sorted((out / split).glob(f"*/{EPISODE_FILE}"))]
        count = Counter(e.perturbation for e in episodes)
        for name in (n for n in ALL if count[n]):
            of = [e for e in episodes if e.perturbation == name]
            good = sum(e.outcome == "success" for e in of)
            duration = np.mean([e.duration_s for e in of])
            shares = f"{good} ({100 * good / len(of):.0f} %)"
            table.add_row(split, name, of[0].shift, str(len(of)), shares, f"{duration:.1f} s")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=60, help="successful nominal episodes")
    parser.add_argument("--test", type=int, default=220, help="episodes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    console = Console()
    columns = (
        TextColumn("{task.description:11s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    try:
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            record(given.out, given.calibration, given.test, given.seed, progress)
    except KeyboardInterrupt:
        console.print("stopped: the same command goes on from here")
        sys.exit(130)
    console.print(summary(given.out))


if __name__ == "__main__":
    main()
