"""kill -9 of each process of the stack while the policy moves the arm, again and again: how soon the arm holds.

    .venv/bin/python tests/bench/bench_kill.py [--times 10] [--nodes policy monitor ...] [--seed 0]

About 8 s each. Times are from the kill to the change of authority, by the arm's own stamp of it, on the same clock; the recording
has to show the same change (that of a killed recorder cannot: it ends before). Where the arm node itself is killed, it is measured
for how long the joints went on, and the node that comes back has to hold. `Others` is for how long another node was missed meanwhile:
none has to be, though cameras and policy share memory (launch/dds says what for, and what keeps them apart).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from recorded_commands import transitions
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import RigConfig, load_rig
from vigil.run.client.node import RigClient
from vigil.run.episodes import engage, new_scene
from vigil.run.session import Session, derive_rig

NODES = ("camera_wrist", "camera_scene", "policy", "monitor", "teleop", "record", "arm")
BACK = 60.0  # [s] for a killed process to be started again
AWAY = 0.03  # [rad] of motion before the kill
STILL = 2e-3  # [rad] from where it comes to rest, of an arm that stands: held in contact it trembles


def set_in_motion(client: RigClient, seed: int, rng: np.random.Generator) -> None:
    """A new scene that is recorded, with the policy's arm amid motion."""
    new_scene(client, seed)
    client.start_episode(f"kill_{seed}")
    start = np.array(client.arm.measured)
    engage(client)

    def moved(c: RigClient) -> bool:
        return bool(np.abs(np.array(c.arm.measured) - start)[:-1].max() > AWAY)

    client.wait_until(moved, 5, "the arm moves")
    time.sleep(rng.uniform(0.0, 1.0))


def kill(session: Session, name: str) -> tuple[int, str, float]:
    """When [ns] the process was killed, what the arm said of it, and for how long [s] it missed another one until all were back."""
    client, before = session.client, session.status(name)
    killed = time.time_ns()
    os.kill(before.pid, signal.SIGKILL)
    reason = ""
    if name != "arm":
        client.wait_until(lambda c: c.arm.authority_name == "HOLD", 5, "the arm holds")
        reason = client.arm.reason
    end = time.monotonic() + BACK
    # Without an arm node nobody tells who is missed.
    others = [] if name == "arm" else [other for other in NODES if other not in (name, "arm")]
    longest = 0.0
    since: dict[str, float] = {}
    while session.status(name).restarts == before.restarts or not session.all_active():
        if time.monotonic() > end:
            raise VigilError(f"{name} was not started again within {BACK:g} s")
        for other in others:
            if f"{other}: the node died" in client.arm.blocked_by:
                longest = max(longest, time.monotonic() - since.setdefault(other, time.monotonic()))
            else:
                since.pop(other, None)
        time.sleep(0.05)
    client.wait_until(lambda c: c.arm.authority_name == "HOLD", 10, "nothing resumes by itself")
    return killed, reason, longest


def moved_until(path: Path, rig: RigConfig, killed: int) -> float:
    """How long after ``killed`` [ns] the joints went on [s], by the recorded joint states."""
    states = [
        (
            stamp_ns(m.header.stamp),
            [p for n, p in zip(m.name, m.position, strict=True) if n in rig.arm.joints],
        )
        for _, m in EpisodeReader(path).messages(f"{rig.arm.name}/joint_states")
    ]
    stamps, positions = np.array([stamp for stamp, _ in states]), np.array([at for _, at in states])
    away = np.abs(positions - positions[-1]).max(axis=1) > STILL
    moving = stamps[(stamps > killed) & away]
    return float((moving[-1] - killed) / 1e9) if len(moving) else 0.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=10)
    options.add_argument("--nodes", nargs="+", choices=NODES, default=NODES)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    console, rng = Console(), np.random.default_rng(arguments.seed)
    table = Table(
        title="kill -9 while the policy moves the arm; in ms until HOLD (arm: until the joints stood)"
    )
    for column in ("process", "n", "median", "most", "in the recording", "others"):
        table.add_column(column, justify="left" if column == "process" else "right")
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        changes = {
            "record": {"directory": str(folder / "episodes"), "images": "none"},
            "monitor": {"hold_on": []},
        }
        rig = derive_rig(load_rig("franka_sim"), folder, **changes)
        with (
            Session(rig, Options(), folder / "log", console) as session,
            Progress(console=console) as progress,
        ):
            shown = progress.add_task("kills", total=arguments.times * len(arguments.nodes))
            for name in arguments.nodes:
                times, seen, silent = [], 0, 0.0
                for number in range(arguments.times):
                    seed = 98_000 + arguments.seed + 100 * NODES.index(name) + number
                    set_in_motion(session.client, seed, rng)
                    made = {s.transition for s in session.client.transitions}
                    killed, reason, longest = kill(session, name)
                    silent = max(silent, longest)
                    if name != "record":
                        session.client.end_episode("failure", "killed")
                    path = max((folder / "episodes").rglob("*.mcap"), key=lambda p: p.stat().st_mtime)
                    if name == "arm":
                        times.append(moved_until(path, rig, killed) * 1e3)
                        seen += 1
                    else:
                        first = next(
                            s for s in session.client.transitions
                            if s.transition not in made and s.authority_name == "HOLD" and stamp_ns(s.transition_stamp) > killed
                        )  # fmt: skip
                        times.append((stamp_ns(first.transition_stamp) - killed) / 1e6)
                        seen += name != "record" and any(
                            authority == "HOLD" and at == stamp_ns(first.transition_stamp)
                            for authority, _, _, at in transitions(path)
                        )
                        if times[-1] > 300:
                            console.print(f"{name}: {times[-1]:.0f} ms: {reason}")
                    progress.advance(shown)
                missed += name != "record" and seen < len(times)
                said = "-" if name == "record" else f"{seen} of {len(times)}"
                table.add_row(
                    name,
                    str(len(times)),
                    f"{np.median(times):.0f}",
                    f"{max(times):.0f}",
                    said,
                    f"{silent * 1e3:.0f}",
                )
        console.print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
