"""Where one chunk gives way to the next: joint acceleration there against the run's ordinary one, with late chunks.

    .venv/bin/python tests/bench/bench_seams.py [--episodes 10] [--latency 0.15] [--seed 0] [--bundle DIR]

In lock step every chunk reaches the arm ``latency`` seconds after its observation. The same scenes are played with real-time
chunking on and off, for each way in which the arm joins chunks (`policy.seam`). All figures come from the recorded commands:
second differences at the control rate, of the joint that accelerates most. A seam lasts 100 ms from a chunk's arrival; ordinary is
all the rest of the policy's motion. The bundle needs a sampler that takes known targets (`vigil export BUNDLE --inpaint`); the
same sampler serves all runs, with real-time chunking off it draws free chunks.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from recorded_commands import Commands, transitions
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import RigConfig, load_rig, resolve
from vigil.run.episodes import Resumer, engage, new_scene, wait_for_end
from vigil.run.session import Session, derive_rig

SECOND = 1_000_000_000
SEAM = SECOND // 10
"""[ns] that belongs to a seam: as far as the arm looks ahead of the present."""
START = SECOND // 2
"""[ns] left out after the first chunk, to which the arm fades from rest."""
WAYS = ("blend", "switch", "ensemble")


@dataclass
class Found:
    """What the recordings of one variant say."""

    seams: list[np.ndarray] = field(default_factory=list)  # of each seam: acceleration at its ticks [rad/s^2]
    ordinary: list[np.ndarray] = field(default_factory=list)
    jumps: list[float] = field(default_factory=list)  # [rad] between two chunks where the second sets in
    successes: int = 0
    episodes: int = 0


def look(path: Path, rig: RigConfig, found: Found) -> None:
    """Add one recording to ``found``."""
    commands, latency = Commands(path, rig), round(rig.sim.latency * SECOND)
    if len(commands.stamps) < 3:
        return
    period = round(commands.period * SECOND)
    acceleration = np.abs(np.diff(commands.positions, 2, axis=0)).max(axis=1) / commands.period**2
    even = (np.diff(commands.stamps)[1:] == period) & (np.diff(commands.stamps)[:-1] == period)
    ticks = commands.stamps[1:-1]
    chunks = sorted(
        ((stamp_ns(chunk.header.stamp), chunk) for _, chunk in EpisodeReader(path).messages("policy/chunk")),
        key=lambda each: each[0],
    )
    changes = transitions(path)
    for (authority, _, _, begun), after in zip(changes, [*changes[1:], None], strict=True):
        if authority != "POLICY":
            continue
        ended = after[3] if after is not None else int(commands.stamps[-1])
        # The first control period at which a chunk has arrived.
        arrivals = [
            (-(-(stamp + latency) // period) * period, stamp, chunk)
            for stamp, chunk in chunks
            if begun < stamp and stamp + latency < ended
        ]
        if not arrivals:
            continue
        inside = even & (ticks >= arrivals[0][0] + START) & (ticks < ended - period)
        ordinary = inside.copy()
        for (_, before_stamp, before), (arrival, stamp, chunk) in itertools.pairwise(arrivals):
            seam = inside & (ticks >= arrival) & (ticks < arrival + SEAM)
            ordinary &= ~seam
            if seam.any():
                found.seams.append(acceleration[seam])
                found.jumps.append(jump(before_stamp, before, stamp, chunk, arrival + SEAM, rig))
        found.ordinary.append(acceleration[ordinary])


def jump(before_stamp: int, before, stamp: int, chunk, instant: int, rig: RigConfig) -> float:
    """Largest joint difference [rad] of two chunks at ``instant`` [ns], linear between their steps."""

    def at(start: int, message) -> np.ndarray:
        positions = np.array(message.positions).reshape(message.horizon, -1)
        columns = [list(message.names).index(name) for name in rig.arm.joint_columns]
        steps = np.arange(message.horizon) * message.step_dt
        return np.array([np.interp((instant - start) / SECOND, steps, positions[:, c]) for c in columns])

    return float(np.abs(at(stamp, chunk) - at(before_stamp, before)).max())


def run(rig: RigConfig, folder: Path, arguments: argparse.Namespace, advance) -> Found:
    found = Found()
    parameters = {"monitor": {"uncalibrated": True}}
    with Session(rig, Options(lockstep=True), folder / "log", parameters=parameters) as session:
        for number in range(arguments.episodes):
            new_scene(session.client, 96_000 + arguments.seed + number)
            session.client.start_episode(f"seams_{number}")
            engage(session.client)
            outcome, reason = wait_for_end(session.client, Resumer(hold_on_alarm=False))
            session.client.end_episode(outcome, reason)
            found.episodes += 1
            found.successes += outcome == "success"
            advance()
    for path in sorted((folder / "episodes").rglob("*.mcap")):
        look(path, rig, found)
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--episodes", type=int, default=10)
    options.add_argument("--latency", type=float, default=0.15, help="[s]")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--bundle", default="", help="folder; the rig's if left out")
    options.add_argument("--seams", nargs="+", choices=WAYS, default=WAYS)
    arguments = options.parse_args()
    console, rig = Console(width=150), load_rig("franka_sim")
    folder = resolve(arguments.bundle) if arguments.bundle else rig.bundle_path()
    able = [name for name, sampler in load_bundle(folder).spec.samplers.items() if sampler.inpaint]
    if not able:
        raise VigilError(
            f"no sampler of {folder} takes known targets: add one with `vigil export {folder} --inpaint --name ddim_inpaint`"
        )
    variants = [(seam, on) for seam in arguments.seams for on in (True, False)]
    results = {}
    with Progress(console=console) as progress:
        shown = progress.add_task("episodes", total=len(variants) * arguments.episodes)
        for seam, on in variants:
            with tempfile.TemporaryDirectory() as temporary:
                work = Path(temporary)
                policy = {
                    "bundle": str(folder),
                    "sampler": able[0],
                    "seam": seam,
                    "real_time_chunking": on,
                }
                changed = derive_rig(
                    rig,
                    work,
                    policy=policy,
                    sim={"latency": arguments.latency},
                    monitor={"hold_on": []},
                    record={"directory": str(work / "episodes"), "images": "none"},
                )
                results[seam, on] = run(changed, work, arguments, lambda: progress.advance(shown))
            limit = min(joint.acceleration for joint in rig.arm.joints.values())
            report(console, results, arguments, f"{folder.name}, {able[0]}", limit)  # what there is so far


def report(console: Console, results: dict, arguments: argparse.Namespace, policy: str, limit: float) -> None:
    title = f"{policy}: chunks {arguments.latency * 1e3:.0f} ms late, {arguments.episodes} episodes each; accelerations in rad/s^2"
    columns = (
        "seam",
        "real-time",
        "ordinary 50/99 %",
        "seams 50/99 %",
        "above ordinary 99 %",
        "at limit: ordinary/seams",
        "apart (mrad)",
        "seams",
        "success",
    )
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("seam", "real-time") else "right")
    for (seam, on), found in results.items():
        ordinary, seams = np.concatenate(found.ordinary), np.concatenate(found.seams)
        high = np.percentile(ordinary, 99)
        table.add_row(
            seam,
            "on" if on else "off",
            f"{np.median(ordinary):.2f} / {high:.2f}",
            f"{np.median(seams):.2f} / {np.percentile(seams, 99):.2f}",
            f"{(seams > 1.001 * high).mean():.2%}",
            f"{(ordinary > 0.99 * limit).mean():.1%} / {(seams > 0.99 * limit).mean():.1%}",
            f"{np.percentile(found.jumps, 95) * 1e3:.1f}",
            str(len(found.seams)),
            f"{found.successes}/{found.episodes}",
        )
    console.print(table)
    console.print(
        "above ordinary 99 %: ticks of seams beyond the run's ordinary 99th percentile (by 0.1 %, for rounding). at limit: ticks at "
        f"the rig's limit of {limit:g}, where the envelope cuts off. apart: two chunks where the second sets in, 95 %."
    )


if __name__ == "__main__":
    try:
        main()
    except VigilError as error:
        sys.exit(f"error: {error}")
