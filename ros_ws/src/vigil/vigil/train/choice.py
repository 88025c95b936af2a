"""Which checkpoint of a run is the best: the one that does the task best in closed loop. Its loss does not tell."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.run.session import derive_rig
from vigil.train.export import export_bundle

FIELDS = ("checkpoint", "n", "successes", "success_rate", "wilson_low", "wilson_high", "mean_success_s")


def choose_checkpoint(
    checkpoints: Sequence[Path], rig: RigConfig, episodes: int, seed: int, folder: Path, console: Console
) -> Path:
    """Export every checkpoint, let it drive the simulated rig in lock step, and give the best: by successes, then by time.

    All of them meet the same scenes. Figures go to ``rollouts.csv`` in ``folder``; what is there already is not run again.

    Args:
        seed: of the first scene; the others count up from it.

    Raises:
        VigilError: the rig does not run.
    """
    rows = []
    for checkpoint in checkpoints:
        work = folder / "rollouts" / checkpoint.stem
        if not (work / "summary.json").is_file():
            _evaluate(checkpoint, rig, episodes, seed, work)
        rows.append({"checkpoint": checkpoint.name, **figures(work)})
        console.print(
            f"{checkpoint.name}: {rows[-1]['successes']} of {rows[-1]['n']}, {rows[-1]['mean_success_s']} s"
        )
    with open(folder / "rollouts.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    chosen = best(rows)
    console.print(f"chosen by roll-outs: {checkpoints[chosen].name}")
    return checkpoints[chosen]


def best(rows: Sequence[dict[str, Any]]) -> int:
    """Index of the checkpoint with most successes; among equals that with the shortest successes, then the last one."""
    return max(range(len(rows)), key=lambda i: (rows[i]["successes"], -(rows[i]["mean_success_s"] or 0.0), i))


def figures(evaluation: Path) -> dict[str, Any]:
    """What counts of one evaluation's folder; ``mean_success_s`` None: none succeeded."""
    summary = json.loads((evaluation / "summary.json").read_text())
    lines = [
        json.loads(line) for line in (evaluation / "episodes.jsonl").read_text().splitlines() if line.strip()
    ]
    times = [line["duration_s"] for line in lines if line["outcome"] == "success"]
    chosen = {name: summary[name] for name in FIELDS if name in summary}
    return {**chosen, "mean_success_s": round(sum(times) / len(times), 3) if times else None}


def _evaluate(checkpoint: Path, rig: RigConfig, episodes: int, seed: int, work: Path) -> None:
    bundle = work / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    name = export_bundle(checkpoint, bundle).sampler_name
    derived = derive_rig(
        rig,
        work / "rig",
        policy={"bundle": str(bundle.resolve()), "sampler": name},
        monitor={"level": "none"},
    )
    # A process of its own: ROS and DDS set themselves up for one rig, and this one holds the training's memory.
    command = [sys.executable, "-c", "from vigil.cli import main; main()"]
    command += ["evaluate", str(derived.path.resolve())]
    command += ["--episodes", str(episodes), "--seed", str(seed), "--no-images", "--out", str(work.resolve())]
    ended = subprocess.run(command)
    if ended.returncode:
        raise VigilError(
            f"the roll-outs of {checkpoint} failed; their logs are in {work / 'log'}. The same command goes on"
        )
