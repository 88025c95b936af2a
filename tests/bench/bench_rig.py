"""The whole simulated rig in real time: rates, ages, periods and cores used, against the figures it is meant to keep.

    .venv/bin/python tests/bench/bench_rig.py [--episodes 5] [--seed 0]

Each figure stands beside its limit, and beside the same figure of a bare timer in this process (what the machine itself
costs). Episodes are nominal; stamps come from the recordings, image ages from the policy's own diagnostics.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rich.console import Console
from rich.table import Table

from vigil.bringup import Options
from vigil.node import EVENTS
from vigil.record.reader import EpisodeReader
from vigil.rig import load_rig
from vigil.run.episodes import engage, new_scene, wait_for_end
from vigil.run.session import Session, derive_rig

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.live_node import graph

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def bare_timer(period: float, seconds: float) -> np.ndarray:
    """Periods [s] of a loop that only sleeps to its next instant: the machine's own jitter."""
    stamps, due = [], time.monotonic()
    for _ in range(int(seconds / period)):
        due += period
        time.sleep(max(0.0, due - time.monotonic()))
        stamps.append(time.monotonic())
    return np.diff(stamps)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--episodes", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rig = derive_rig(load_rig("franka_sim"), folder, record={"directory": str(folder / "episodes")})
        with Session(rig, Options(), folder / "log", console) as session, graph(rig.namespace) as listener:
            client, diagnostics = session.client, listener.collect(DiagnosticArray, "/diagnostics", EVENTS)
            pids = {status.name: status.pid for status in session.statuses()}
            before, started = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
            outcomes = []
            for seed in range(arguments.seed, arguments.seed + arguments.episodes):
                new_scene(client, seed)
                client.start_episode(f"bench_{seed}")
                engage(client)
                outcomes.append(wait_for_end(client)[0])
                client.end_episode(outcomes[-1], "bench")
            jitter = bare_timer(0.01, 3.0)
            wall = time.monotonic() - started
            used = {name: (cpu_seconds(pid) - before[name]) / wall for name, pid in pids.items()}
        report(console, folder, image_ages(diagnostics), used, jitter, outcomes)


def image_ages(messages: list[DiagnosticArray]) -> dict[str, list[float]]:
    """What the policy said about the ages [ms] of images at their callback, each over the newest 300 of them."""
    ages: dict[str, list[float]] = {}
    for status in (status for message in messages for status in message.status):
        for value in status.values:
            if status.name.startswith("policy") and "_age_" in value.key:
                ages.setdefault(value.key.removesuffix("_ms"), []).append(float(value.value))
    return ages


def report(
    console: Console, folder: Path, ages: dict, used: dict, jitter: np.ndarray, outcomes: list
) -> None:
    periods, chunk_periods, inference = [], [], []
    for path in sorted((folder / "episodes").rglob("*.mcap")):
        reader = EpisodeReader(path)
        periods.append(
            np.diff(np.unique(reader.columns("arm/state", ("header.stamp",))["header.stamp"])) / 1e6
        )
        chunks = reader.columns("policy/chunk", ("header.stamp", "inference_time"))
        chunk_periods.append(np.diff(chunks["header.stamp"]) / 1e9)
        inference.append(chunks["inference_time"] * 1e3)
    period, chunk, infer = map(np.concatenate, (periods, chunk_periods, inference))
    table = Table(
        title=f"the rig in real time, {len(outcomes)} episodes ({outcomes.count('success')} successful)"
    )
    for column in ("figure", "median", "p99", "limit"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    table.add_row(
        "control period (ms)", f"{np.median(period):.2f}", f"{np.percentile(period, 99):.2f}", "p99 13"
    )
    table.add_row(
        "bare timer beside it (ms)",
        f"{np.median(jitter) * 1e3:.2f}",
        f"{np.percentile(jitter, 99) * 1e3:.2f}",
        "",
    )
    table.add_row(
        "chunks (Hz)", f"{1 / np.mean(chunk):.2f} (mean)", f"{1 / np.percentile(chunk, 99):.2f}", "mean 5"
    )
    table.add_row(
        "complete observation to chunk (ms)", f"{np.median(infer):.1f}", f"{np.percentile(infer, 99):.1f}", ""
    )
    for camera in sorted({key.rsplit("_", 1)[0] for key in ages}):
        middle, slow = (np.median(ages[f"{camera}_{name}"]) for name in ("median", "p99"))
        table.add_row(f"stamp to policy callback, {camera} (ms)", f"{middle:.2f}", f"{slow:.2f}", "median 5")
    table.add_row("cores used by all nodes", f"{sum(used.values()):.2f}", "", "2")
    table.caption = f"load average {os.getloadavg()[0]:.1f}"
    console.print(table)
    console.print("cores by node: " + ", ".join(f"{name} {share:.2f}" for name, share in used.items()))


if __name__ == "__main__":
    main()
