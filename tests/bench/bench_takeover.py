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
from recorded_commands import Commands, transitions
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vigil.arm.columns import Columns
from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.kinematics import FRANKA
from vigil.record.reader import EpisodeReader
from vigil.rig import RigConfig, load_rig
from vigil.run.client.node import RigClient
from vigil.run.episodes import engage, new_scene
from vigil.run.session import Session, derive_rig

ANSWER = 5.0  # [s]


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


def takeovers(path: Path, commands: Commands) -> list[tuple[float, float]]:
    """(largest joint step at the switch [rad], deadman to first command [ms]) of each takeover of a recording.

    Timed from the operator's message with the deadman to the first command that the arm sent afterwards as the operator's,
    both as they were published.
    """
    reader = EpisodeReader(path)
    pressed = sorted(
        published
        for (_, _, published, _), (_, command) in zip(
            reader.raw(["teleop/command"]), reader.messages("teleop/command"), strict=True
        )
        if command.deadman
    )
    found = []
    for authority, event, _, made in transitions(path):
        before = [at for at in pressed if at <= made]
        if authority != "OPERATOR" or event != "take_over" or not before:
            continue
        # The message that was answered; earlier ones may have been refused (a deadman held through a fault).
        found.append((commands.step_at(made) or 0.0, (commands.first_after(made) - before[-1]) / 1e6))
    return found


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
    recorded = {path: Commands(path, rig) for path in paths}
    motions = [motion for commands in recorded.values() for motion in commands.motions()]
    found = [each for path, commands in recorded.items() for each in takeovers(path, commands)]
    steps, delays = np.array(found).T
    table = Table(title=f"{len(steps)} takeovers, {sum(map(len, motions)) * period:.0f} s of motion")
    for column in ("figure", "median", "p99", "most", "limit"):
        table.add_column(column, justify="left" if column == "figure" else "right")

    def add(name: str, values: np.ndarray, limit: str, digits: int) -> None:
        figures = (np.median(values), np.percentile(values, 99), values.max())
        table.add_row(name, *(f"{figure:.{digits}f}" for figure in figures), limit)

    add(
        "step from one command to the next (rad)",
        np.concatenate([np.abs(np.diff(m, axis=0)).max(axis=1) for m in motions]),
        "",
        4,
    )
    add("the same at takeovers", steps, "p99 of the above", 4)
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
