"""Random sequences of inputs to the arm, from every source, valid and broken; every command is checked against the envelope.

    .venv/bin/python tests/bench/fuzz_arm.py [--sequences 1000000] [--rig franka_sim] [--seed 0] [--processes 2]

A sequence is up to four inputs (chunks, verdicts, operator's commands, joint states, requests, e-stop button, robot faults,
dead nodes; with NaN, infinities, huge values, wrong or missing names, stamps of the past and of the future) and then one to
three control periods. Sequences follow each other in one controller, so that they meet it in every state. A million takes
about half an hour on two cores. Ends with status 1 if a command left the envelope.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vigil.arm.authority import Authority
from vigil.arm.clutch import OperatorCommand
from vigil.arm.controller import ArmController
from vigil.arm.curves import SECOND
from vigil.arm.tracking import Chunk
from vigil.joints import joint_sources
from vigil.kinematics import CHAINS
from vigil.rig import ArmConfig, RigConfig, load_rig

BATCH = 2000  # sequences between two checks
RATE = 1 + 1e-6  # rounding, of a limit
DEEP = 1e-3  # m by which a tool may be outside by rounding, and by the bow between two looked-at points
BAD = (np.nan, np.inf, -np.inf, 1e300, -1e300, 1e6)


@dataclass
class Found:
    """What a batch has shown."""

    sequences: int = 0
    commands: int = 0
    authorities: Counter = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.sequences += other.sequences
        self.commands += other.commands
        self.authorities.update(other.authorities)
        for name, share in other.worst.items():
            self.worst[name] = max(self.worst.get(name, 0.0), share)
        self.broken += other.broken


class Fuzz:
    """One controller under random inputs, and the hardware that follows its commands."""

    def __init__(self, rig: RigConfig, seed: int) -> None:
        self.rig, self.rng = rig, np.random.default_rng(seed)
        self.arm = ArmController(rig, lockstep=False)
        self.columns, self.period = self.arm.columns, round(SECOND / rig.control_rate)
        self.sources = joint_sources(rig)
        self.names = self.columns.names
        self.span = self.columns.upper - self.columns.lower
        self.now = 1000 * SECOND
        self.measured = np.array(list(rig.home.values()))
        self.device = self.measured.copy()
        self.deadman = False
        self.plans: dict[int, np.ndarray] = {}
        self.whole: list[tuple[np.ndarray, np.ndarray]] = []
        self.healthy = 0

    # Inputs -----------------------------------------------------------------------------------------------------------

    def broken(self, values: np.ndarray) -> np.ndarray:
        """``values`` with some of them no numbers, or far too large."""
        spoilt = values.copy()
        spoilt[self.rng.random(values.shape) < 0.2] = self.rng.choice(BAD)
        return spoilt

    def stamp(self) -> int:
        """Mostly recent; sometimes long ago, in the future, or before the one before."""
        kind = self.rng.integers(12)
        if kind == 0:
            return self.now + int(self.rng.integers(-5 * SECOND, 5 * SECOND))
        return 0 if kind == 1 else self.now - int(self.rng.integers(0, SECOND // 8))

    def some_names(self) -> tuple[str, ...]:
        """Mostly right; else shuffled, one missing, one wrong, one twice, or none."""
        names = list(self.names)
        match self.rng.integers(24):
            case 0:
                self.rng.shuffle(names)
            case 1:
                names.pop(int(self.rng.integers(len(names))))
            case 2:
                names[int(self.rng.integers(len(names)))] = "unknown"
            case 3:
                names[0] = names[-1]
            case 4:
                names = []
        return tuple(names)

    def chunk(self) -> None:
        rng, horizon = self.rng, int(self.rng.integers(2, 18))
        start = self.measured if rng.random() < 0.7 else rng.uniform(self.columns.lower, self.columns.upper)
        goal = start + rng.normal(size=len(self.names)) * self.span * rng.choice([0.0, 0.02, 0.1, 1.0])
        positions = start + (goal - start) * np.linspace(0, 1, horizon)[:, None]
        if rng.random() < 0.1:
            positions = self.broken(positions)
        names = self.some_names()
        if names == self.names and rng.random() < 0.05:
            horizon += int(rng.integers(-2, 3))
        step = float(rng.choice([0.05, 0.05, 0.05, 0.05, 0.1, 0.0, -1.0, np.nan]))
        self.arm.on_chunk(Chunk(self.stamp(), names, step, horizon, positions.ravel()), self.now)

    def operator(self) -> None:
        rng = self.rng
        if rng.random() < 0.2:
            self.deadman = not self.deadman
        self.device = self.device + rng.normal(size=len(self.names)) * self.span * rng.choice([0, 0.01, 0.3])
        positions = self.broken(self.device) if rng.random() < 0.05 else self.device
        self.device = np.clip(self.device, self.columns.lower - self.span, self.columns.upper + self.span)
        stamp, mode = (
            self.stamp(),
            int(rng.choice([0, 0, 0, 1, 1, 7])) if rng.random() < 0.1 else int(rng.integers(2)),
        )
        if rng.random() < 0.1:
            positions = positions[: int(rng.integers(len(self.names)))]
        command = OperatorCommand(
            stamp, self.deadman, mode, self.some_names(), positions, bool(rng.random() < 0.05)
        )
        if self.arm.on_operator(command, self.now):
            self.respond()

    def joint_states(self) -> None:
        rng, number = self.rng, int(self.rng.integers(len(self.sources)))
        values = self.broken(self.measured) if rng.random() < 0.3 else self.measured
        if rng.random() < 0.02:
            self.measured = np.clip(
                self.measured + rng.normal(size=len(self.names)) * 0.3, self.columns.lower, self.columns.upper
            )  # somebody pushed it
        self.tell(number, values, self.stamp())

    def tell(self, number: int, values: np.ndarray, stamp: int) -> None:
        source = self.sources[number]
        part = [self.names.index(name) for name in source.columns]
        raw = (values[part] - source._offset) / source._factor
        if self.arm.on_joint_states(stamp, source.joints, raw, self.now, number):
            self.respond()

    def verdict(self) -> None:
        name = str(
            self.rng.choice(
                ["NOMINAL", "ALARM", "OUT_OF_RANGE", "STALE", "??"], p=[0.8, 0.05, 0.05, 0.05, 0.05]
            )
        )
        if self.arm.on_monitor(self.stamp(), name, name == "ALARM", "fuzz", self.now):
            self.respond()

    def request(self) -> None:
        name = str(self.rng.choice(["engage"] * 6 + ["hold", "hand_back", "estop", "reset"]))
        getattr(self.arm, name)(self.now)
        self.respond()

    def fault(self) -> None:
        arm = self.rig.arms[int(self.rng.integers(len(self.rig.arms)))].name
        self.arm.on_robot(arm, str(self.rng.choice([""] * 5 + ["a reflex"])), self.now)
        node, alive = str(self.rng.choice(["policy", "teleop"])), bool(self.rng.random() < 0.7)
        self.arm.on_node(node, alive, bool(self.rng.random() < 0.3), self.now)
        self.respond()

    def heal(self) -> None:
        """All inputs as they should be, so that the arm gets to move at all."""
        for arm in self.rig.arms:
            self.arm.on_robot(arm.name, "", self.now)
        for node in ("policy", "teleop"):
            self.arm.on_node(node, True, False, self.now)
        self.healthy = int(self.rng.integers(20, 120))
        self.arm.reset(self.now)

    # Time -------------------------------------------------------------------------------------------------------------

    def respond(self) -> None:
        self.take(self.arm.respond(self.now))

    def take(self, plan) -> None:
        if plan is None:
            return
        self.whole.append((plan.positions, plan.velocities))
        self.plans[plan.stamp] = plan.positions[0]

    def tick(self) -> None:
        self.now += self.period
        if self.healthy > 0:
            self.healthy -= 1
            for number in range(len(self.sources)):
                self.tell(number, self.measured, self.now)
            for camera in self.rig.cameras:
                self.arm.on_camera(camera.name, self.now)
            if self.healthy % 10 == 0:
                self.arm.on_monitor(self.now, "NOMINAL", False, "", self.now)
                self.chunk()
            if self.healthy % 5 == 0:
                self.device = self.device + self.rng.normal(size=len(self.names)) * 0.05 * self.span
                self.device = np.clip(self.device, self.columns.lower, self.columns.upper)
                command = OperatorCommand(self.now, self.deadman, 0, self.names, self.device)
                if self.arm.on_operator(command, self.now):
                    self.respond()
            if self.healthy % 20 == 7 and self.arm.engage(self.now).granted and self.rng.random() < 0.5:
                self.deadman = False
        plan = self.arm.tick(self.now)
        self.take(plan)
        if plan is not None:
            lag = self.rng.choice([1.0, 1.0, 0.7])
            self.measured = self.measured + lag * (plan.positions[0] - self.measured)

    def sequence(self) -> None:
        kinds = (self.chunk, self.operator, self.joint_states, self.verdict, self.request, self.fault)
        # While all goes well there is motion, and random targets alone; else anything may come.
        calm = self.healthy > 0 and self.rng.random() < 0.8
        for _ in range(0 if calm else int(self.rng.integers(1, 5))):
            self.rng.choice(kinds, p=(0.4, 0.35, 0.1, 0.08, 0.05, 0.02))()
        if self.rng.random() < 0.25:
            self.heal()
        for _ in range(int(self.rng.integers(1, 4))):
            self.tick()

    # The check --------------------------------------------------------------------------------------------------------

    def batch(self, count: int) -> Found:
        """Run ``count`` sequences and check what was sent meanwhile."""
        found = Found(sequences=count)
        self.plans, self.whole = {}, []
        for _ in range(count):
            self.sequence()
            found.authorities[self.arm.authority.name] += 1
        found.commands = len(self.plans)
        if self.plans:
            self.check(found)
        return found

    def check(self, found: Found) -> None:
        columns, period = self.columns, self.period / SECOND

        def judge(name: str, share: float, limit: float = RATE) -> None:
            found.worst[name] = max(found.worst.get(name, 0.0), share)
            if not share <= limit:
                found.broken.append(f"{name}: {share:.6f} of its limit")

        positions = np.concatenate([p for p, _ in self.whole])
        velocities = np.concatenate([v for _, v in self.whole])
        beyond = np.maximum(columns.lower - positions, positions - columns.upper).max()
        judge("position, beyond its limit (rad, m)", float(max(beyond, 0.0)), 0.0)
        judge("velocity of any planned point", float((np.abs(velocities) / columns.velocity).max()))
        stamps = np.array(sorted(self.plans))
        sent = np.array([self.plans[stamp] for stamp in stamps])
        for motion in np.split(sent, np.flatnonzero(np.diff(stamps) > 1.5 * self.period) + 1):
            for order, name in ((1, "velocity"), (2, "acceleration"), (3, "jerk")):
                if len(motion) > order:
                    rate = np.abs(np.diff(motion, order, axis=0)) / period**order
                    judge(name, float((rate / getattr(columns, name)).max()))
            for arm, points in self.tools(motion):
                box = arm.workspace.inside
                depth = np.maximum(np.array(box.lower) - points, points - box.upper).max(axis=1)
                # Who was pushed outside may come in again, but not go farther out.
                judge(
                    f"{arm.name}'s tool, farther outside (m)", float(depth.max() - max(depth[0], 0.0)), DEEP
                )
                if len(points) > 1:
                    speed = np.linalg.norm(np.diff(points, axis=0), axis=1).max() / period
                    judge(f"{arm.name}'s tool speed", float(speed / arm.workspace.tool_speed))

    def tools(self, motion: np.ndarray) -> Iterator[tuple[ArmConfig, np.ndarray]]:
        """Each arm, and where its tool is along the motion: [T, 3] m in its base."""
        for arm, columns in self.rig.parts:
            joints = motion[:, columns][:, : len(arm.joints)]
            yield arm, CHAINS[arm.kinematics].positions(joints, arm.tool_offset)


def work(name: str, seed: int, sequences: int) -> Found:
    """One batch; every second one with blended authority, every third one without a cross-fade between chunks."""
    rig = load_rig(name)
    teleop = rig.teleop.model_copy(update={"takeover": ("full", "blended")[seed % 2], "gain": 1.5})
    policy = rig.policy.model_copy(update={"seam": ("blend", "switch", "ensemble")[seed % 3]})
    return Fuzz(rig.model_copy(update={"teleop": teleop, "policy": policy}), seed).batch(sequences)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sequences", type=int, default=1_000_000)
    options.add_argument("--rig", default="franka_sim")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--processes", type=int, default=2)
    arguments = options.parse_args()
    console, total = Console(), Found()
    batches = -(-arguments.sequences // BATCH)
    with ProcessPoolExecutor(arguments.processes) as pool, Progress(console=console) as progress:
        shown = progress.add_task("sequences", total=arguments.sequences)
        seeds = itertools.count(arguments.seed * 1_000_000)
        futures = [pool.submit(work, arguments.rig, next(seeds), BATCH) for _ in range(batches)]
        for future in as_completed(futures):
            total.add(future.result())
            progress.advance(shown, BATCH)
            if total.broken:
                for waiting in futures:
                    waiting.cancel()
                break
    console.print(f"{total.sequences} sequences, {total.commands} commands, seed {arguments.seed}")
    console.print(
        "authority at their ends: " + ", ".join(f"{k} {v}" for k, v in total.authorities.most_common())
    )
    for name, share in sorted(total.worst.items()):
        console.print(f"  most of {name}: {share:.6f}")
    for line in total.broken[:10]:
        console.print(f"[red]left the envelope: {line}")
    unseen = {a.name for a in Authority} - set(total.authorities)
    if unseen:
        console.print(f"[red]never reached: {', '.join(sorted(unseen))}")
    return 1 if total.broken or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
