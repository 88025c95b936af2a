"""The disk fills up while the policy moves the arm: is the arm disturbed, who is told and when, what can be read after?

    .venv/bin/python tests/bench/bench_full_disk.py [--episodes 20] [--seed 0]

The whole simulated rig in real time, recording onto a file system of its own: a tmpfs of 64 MB, mounted in a mount
namespace that ends with the bench (`unshare`: as root, or where users may have namespaces). At a random moment of each
episode a ballast file takes what is free: all of it (writes are then refused in their middle), or all but less than the
rig file asks for (`min_free_mb`), by turns. Control periods are those of the arm's own ticks, as a listener hears them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench_record_kill import READERS, refusal
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import load_rig
from vigil.run.episodes import engage, new_scene, wait_for_end
from vigil.run.session import Session, derive_rig

INSIDE = "VIGIL_BENCH_MOUNT"
SIZE_MB, MIN_FREE_MB = 64, 8
BEFORE = (1.0, 2.5)  # [s] of motion before the disk is full
LEFT = {"full": 0, "nearly full": MIN_FREE_MB * 500_000}  # bytes that the ballast leaves


@dataclass
class Outcome:
    """One episode; times in s."""

    kind: str
    outcome: str
    holds: list[str] = field(default_factory=list)  # reasons why the policy lost control
    before: list[float] = field(default_factory=list)  # control periods
    after: list[float] = field(default_factory=list)
    told: float = float("inf")  # from the full disk to record/episode
    diagnosed: float = float("inf")  # the same, to /diagnostics
    kept: float = float("nan")  # from the last message in the file to the full disk; negative: written later
    readers: dict[str, bool] = field(default_factory=dict)


def in_a_namespace() -> None:
    """Go on in a mount namespace of one's own; does not come back."""
    users = [] if os.geteuid() == 0 else ["--map-root-user"]
    arguments = ["unshare", "--mount", *users, sys.executable, *sys.argv]
    os.execvpe("unshare", arguments, {**os.environ, INSIDE: "1"})


def fill(folder: Path, left: int) -> Path:
    """A ballast file that leaves so many bytes free."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(folder).free - left, 1))
                return ballast
            except OSError:  # the recorder took some of it meanwhile
                continue


def run(
    session: Session, heard: dict[str, list], disk: Path, seed: int, kind: str, rng: np.random.Generator
) -> Outcome:
    """One episode amid which the disk fills up."""
    from vigil_msgs.srv import EndEpisode

    client = session.client
    new_scene(client, seed)
    client.start_episode(f"full_{seed}")
    engage(client)
    for messages in heard.values():
        messages.clear()
    time.sleep(rng.uniform(*BEFORE))
    full = time.time_ns()
    ballast = fill(disk, LEFT[kind])
    result = Outcome(kind, wait_for_end(client)[0])
    time.sleep(1.5)  # diagnostics come once a second
    arm, episodes, diagnostics = (list(messages) for messages in heard.values())
    answer = client.call("record/end", EndEpisode.Request(outcome=result.outcome), timeout=30.0)
    ballast.unlink()
    stamps = np.unique([stamp_ns(state.header.stamp) for state in arm])
    result.before = (np.diff(stamps[stamps < full]) / 1e9).tolist()
    result.after = (np.diff(stamps[stamps >= full]) / 1e9).tolist()
    changes = {
        s.transition: s for s in arm if s.authority_name == "HOLD" and stamp_ns(s.transition_stamp) > full
    }
    result.holds = [state.reason for state in changes.values()]
    for state in episodes:
        if "recording stopped" in state.termination_reason:
            result.told = min(result.told, (stamp_ns(state.header.stamp) - full) / 1e9)
    for message in diagnostics:
        if any(s.name == "record: recording" and ("disk" in s.message) for s in message.status):
            result.diagnosed = min(result.diagnosed, (stamp_ns(message.header.stamp) - full) / 1e9)
    path = Path(answer.path)
    reader = EpisodeReader(path)
    last = max(published for _, _, published, _ in reader.raw())
    result.kept = (full - last) / 1e9
    result.readers = {name: not refusal(name, path) for name in READERS}
    if sum(reader.counts.values()) != reader.episode["written"]:
        raise VigilError(
            f"{path}: {reader.counts} messages are there, {reader.episode['written']} were counted"
        )
    if "disk" not in reader.episode["recording_stopped"] or reader.episode["outcome"] != result.outcome:
        raise VigilError(f"{path}: the facts do not tell of the full disk")
    for file in path.parent.glob("full_*"):
        file.unlink()
    return result


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--episodes", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    if INSIDE not in os.environ:
        in_a_namespace()
    console, rng, results = Console(), np.random.default_rng(arguments.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(disk)], check=True)
        rig = derive_rig(
            load_rig("franka_sim"),
            folder,
            record={"directory": str(disk / "episodes"), "min_free_mb": MIN_FREE_MB},
        )
        with (
            Session(rig, Options(), folder / "log", console) as session,
            Progress(console=console) as progress,
        ):
            from diagnostic_msgs.msg import DiagnosticArray
            from vigil_msgs.msg import ControlState, EpisodeState

            from support.live_node import graph
            from vigil.node import EVENTS, LATCHED

            with graph(rig.namespace) as listener:
                heard = {
                    "arm": listener.collect(ControlState, "arm/state", EVENTS),
                    "episode": listener.collect(EpisodeState, "record/episode", LATCHED),
                    "diagnostics": listener.collect(DiagnosticArray, "/diagnostics", EVENTS),
                }
                for number in progress.track(range(arguments.episodes), description="episodes"):
                    kind = list(LEFT)[number % len(LEFT)]
                    seed = 97_000 + arguments.seed + number
                    results.append(run(session, heard, disk, seed, kind, rng))
            session.check()
        subprocess.run(["umount", str(disk)], check=True)
    return report(console, results)


def report(console: Console, results: list[Outcome]) -> int:
    table = Table(title=f"the disk fills up while the policy moves the arm, {len(results)} episodes")
    table.add_column("what")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    periods = [np.concatenate([getattr(r, when) for r in results]) * 1e3 for when in ("before", "after")]
    for what, of in (("median", np.median), ("99 %", lambda p: np.percentile(p, 99)), ("most", np.max)):
        table.add_row(f"control period (ms), {what}", *(f"{of(p):.2f}" for p in periods))
    table.add_row("control periods", *(str(len(p)) for p in periods))
    console.print(table)
    told, diagnosed, kept = (
        np.array([getattr(r, name) for r in results]) for name in ("told", "diagnosed", "kept")
    )
    successes = sum(r.outcome == "success" for r in results)
    console.print(
        f"successful episodes: {successes}; the policy lost control after it: {[h for r in results for h in r.holds]}"
    )
    console.print(f"until record/episode says so (s): median {np.median(told):.2f}, most {told.max():.2f}")
    console.print(
        f"until /diagnostics says so (s): median {np.median(diagnosed):.2f}, most {diagnosed.max():.2f}"
    )
    for kind in LEFT:
        some = kept[[r.kind == kind for r in results]]
        if len(some):
            console.print(
                f"{kind}: last message written before the disk was {kind} (s): most {some.max():.2f}"
            )
    for name in READERS:
        console.print(
            f"files read to the end by {name}: {sum(r.readers[name] for r in results)} of {len(results)}"
        )
    good = np.isfinite(told).all() and np.isfinite(diagnosed).all() and kept.max() <= 1.0
    return 0 if good and all(all(r.readers.values()) for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
