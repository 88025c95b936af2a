"""Takeovers at random moments, and what the recording says of them: steps, delays, and the limits at every sample.

    .venv/bin/python tests/bench/bench_takeover.py [--takeovers 30] [--seed 0]

About 6 s each. The scripted operator takes over from the policy, or from a held arm, and hands back, lets go, or is held. All
figures come from the recorded commands and stamps, none from what the arm node says of itself.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vigil.arm.columns import Columns
from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.kinematics import FRANKA
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import RigConfig, load_rig
from vigil.run.client.node import RigClient
from vigil.run.episodes import engage, new_scene
from vigil.run.session import Session, derive_rig

ANSWER = 5.0  # [s]
OPERATOR = 2
GAP = 1.5  # periods after which commands do not belong to one motion


def provoke(client: RigClient, rng: np.random.Generator) -> None:
    """One takeover in a new scene, after a random part of the policy's motion."""
    engage(client)
    time.sleep(rng.uniform(0.3, 3.0))
    if rng.random() < 0.25:
        client.hold()
    client.set_operator(True)
    client.wait_until(lambda c: c.arm.authority_name == "OPERATOR", ANSWER, "the operator has control")
    time.sleep(rng.uniform(0.2, 2.0))
    how = rng.choice(["hand back", "let go", "hold"])
    with contextlib.suppress(VigilError):  # the policy may not be ready, the task may be done
        if how == "hand back":
            client.hand_back()
            time.sleep(rng.uniform(0.1, 0.6))
        elif how == "hold":
            client.hold()
    client.set_operator(False)


class Commands:
    """What was sent to the arm's controller in one recording, once per control period."""

    def __init__(self, path: Path, rig: RigConfig) -> None:
        self.period = 1.0 / rig.control_rate
        topic = f"{rig.arm.name}/{rig.arm.controller}/joint_trajectory"
        by_tick = {
            stamp_ns(m.header.stamp): m.points[0].positions for _, m in EpisodeReader(path).messages(topic)
        }
        self.stamps = np.array(sorted(by_tick))
        self.positions = np.array([by_tick[stamp] for stamp in self.stamps])

    def motions(self) -> list[np.ndarray]:
        """[T, N] each: commands that follow each other without a pause."""
        breaks = np.flatnonzero(np.diff(self.stamps) > GAP * self.period * 1e9) + 1
        return [motion for motion in np.split(self.positions, breaks) if len(motion) > 3]


def takeovers(path: Path, joints: int) -> list[tuple[float, float]]:
    """(largest first step [rad], deadman to first command [ms]) of each takeover of a recording."""
    fields = ("authority", "transition", "event_stamp", "first_command_stamp", "first_step")
    columns = EpisodeReader(path).columns("arm/state", fields)
    found = {}
    for authority, number, raised, first, step in zip(*(columns[name] for name in fields), strict=True):
        if authority == OPERATOR and first:
            found[int(number)] = (float(np.abs(step[:joints]).max()), (first - raised) / 1e6)
    return list(found.values())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--takeovers", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    console, rng = Console(), np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        changes = {"record": {"directory": str(folder / "episodes")}, "monitor": {"hold_on": []}}
        rig = derive_rig(load_rig("franka_sim"), folder, **changes)
        with (
            Session(rig, Options(), folder / "log", console) as session,
            Progress(console=console) as progress,
        ):
            shown = progress.add_task("takeovers", total=arguments.takeovers)
            for number in range(arguments.takeovers):
                new_scene(session.client, 95_000 + arguments.seed + number)
                session.client.start_episode(f"takeover_{number}")
                provoke(session.client, rng)
                session.client.end_episode("success", "bench")
                progress.advance(shown)
        report(console, rig, sorted((folder / "episodes").rglob("*.mcap")))


def report(console: Console, rig: RigConfig, paths: list[Path]) -> None:
    joints = len(rig.arm.joints)
    limits, period = Columns.of(rig), 1.0 / rig.control_rate
    motions = [motion for path in paths for motion in Commands(path, rig).motions()]
    steps, delays = np.array([found for path in paths for found in takeovers(path, joints)]).T
    ordinary = np.percentile(np.concatenate([np.abs(np.diff(m, axis=0)).max(axis=1) for m in motions]), 99)
    table = Table(title=f"{len(steps)} takeovers, {sum(map(len, motions)) * period:.0f} s of motion")
    for column in ("figure", "median", "p99", "most", "limit"):
        table.add_column(column, justify="left" if column == "figure" else "right")

    def add(name: str, values: np.ndarray, limit: str, digits: int) -> None:
        figures = (np.median(values), np.percentile(values, 99), values.max())
        table.add_row(name, *(f"{figure:.{digits}f}" for figure in figures), limit)

    add("step at a takeover (rad)", steps, f"{ordinary:.4f} (ordinary steps' p99)", 4)
    add("deadman to first command (ms)", delays, f"p99 {period * 1e3:g}", 1)
    for order, name in ((1, "velocity"), (2, "acceleration"), (3, "jerk")):
        share = [
            np.abs(np.diff(m, order, axis=0)) / period**order / getattr(limits, name)[:joints]
            for m in motions
        ]
        add(f"{name}, share of its limit", np.concatenate(share).max(axis=1), "1", 4)
    tools = [FRANKA.positions(motion, rig.arm.tool_offset) for motion in motions]
    speeds = np.concatenate([np.linalg.norm(np.diff(tool, axis=0), axis=1) for tool in tools]) / period
    add("tool's speed (m/s)", speeds, f"{rig.arm.workspace.tool_speed:g}", 3)
    console.print(table)
    within = rig.arm.workspace.inside
    inside = all(((tool >= within.lower) & (tool <= within.upper)).all() for tool in tools)
    console.print(f"tool inside its workspace at every sample: {'yes' if inside else 'NO'}")


if __name__ == "__main__":
    main()
