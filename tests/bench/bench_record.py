"""What recording costs, whether anything is lost, and how much the recorder can take.

    .venv/bin/python tests/bench/bench_record.py [--minutes 10] [--images jpeg raw] [--raw-minutes 1] [--no-ceiling]

Two cameras of 640x480 at 30 Hz, joint states at 100 Hz and all other topics of a real run, published by processes of their
own over real DDS, written to the disk of --folder. What is lost is told twice: by the episode's own facts, and by the
stamps in the file against those that were published. The share is that of the recorder's process, all threads, in one
core; pictures are compressed by cameras, not by the recorder. Then cameras are added step by step until the first loss.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recorder_load import Load, Recorder, domain, missing, recorded, rig_for
from rich.console import Console
from rich.table import Table

from vigil.errors import VigilError
from vigil.record.dataset.prepare import Wanted, prepare
from vigil.record.dataset.resample import Grid
from vigil.record.reader import EpisodeReader

STEPS = {"jpeg": (2, 4, 8, 12, 16, 24, 32), "raw": (2, 3, 4, 5, 6, 8)}  # cameras
UNDERWAY = 30_000_000  # [ns] a message may be on its way when the episode ends
SLOW = 0.97  # of the rate wanted: below it is the publishers that cannot keep up
SHARE = 0.35  # the bar
FPS = 30


@dataclass
class Run:
    """One episode; ``megabytes`` per second, of serialised messages."""

    cameras: int
    seconds: float
    megabytes: float
    messages: int
    told: int
    missing: int
    share: float
    pace: float  # of the publishers, of the pictures' rate
    first_picture: float  # [s] after the episode's start
    size: float  # of the file in MB


def as_a_data_set(path: Path) -> str:
    """What an export at 30 frames per second says of the recording."""
    (episode,), _ = prepare(path, Wanted(Grid(FPS)), ())
    times, rate = episode.part.times, episode.part.quality.measured_fps
    rising = "strictly increase" if (np.diff(times) > 0).all() else "DO NOT ALWAYS INCREASE"
    labels = "; ".join(episode.facts["x_labels"]) or "none"
    return (
        f"as a data set: {len(times)} frames declared at {FPS} Hz, measured {rate:.4f} Hz ({rate / FPS - 1:+.3%}), "
        f"timestamps {rising}, labels: {labels}"
    )


def measure(folder: Path, images: str, cameras: int, seconds: float, told: list[str] | None = None) -> Run:
    """Record once, count, and remove the file; ``told`` gets what an export says of it."""
    rig = rig_for(folder, images, cameras)
    with domain(rig):
        from support.live_node import graph

        with (
            graph(rig.namespace) as client,
            Load(rig, folder) as load,
            Recorder(rig, client, folder / "log") as recorder,
        ):
            time.sleep(2.0)
            if (answer := recorder.start("bench")) is None or not answer.success:
                raise VigilError(f"no episode: {answer.message if answer else 'the recorder died'}")
            opened = time.time_ns()
            before, begun = recorder.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            share = (recorder.cpu_seconds() - before) / (time.monotonic() - begun)
            asked = time.time_ns()
            answer = recorder.end()
            if answer is None or not answer.success:
                raise VigilError(f"not ended: {answer.message if answer else 'the recorder died'}")
    path = Path(answer.path)
    facts, kept = EpisodeReader(path).episode, recorded(path, load.sources)
    lost, pace, first = 0, [], []
    for name, published in load.published.items():
        image = load.sources[name].image
        lost += len(missing(published, kept[name], opened, asked - UNDERWAY, not image))
        if image:
            wanted = rig.cameras[0].rate * (asked - opened) / 1e9
            pace.append(((published >= opened) & (published <= asked)).sum() / wanted)
            first.append((kept[name][0] - opened) / 1e9 if len(kept[name]) else float("inf"))
    total = sum(len(data) for _, _, _, data in EpisodeReader(path).raw())
    size = path.stat().st_size / 1e6
    if told is not None:
        told += [
            f"labels in the episode's facts: {facts['labels'] or 'none'}" if "labels" in facts else "",
            as_a_data_set(path),
        ]
    path.unlink()
    return Run(cameras, seconds, total / seconds / 1e6, facts["written"], facts["dropped"], lost, share,
               min(pace), max(first), size)  # fmt: skip


def row(images: str, run: Run) -> list[str]:
    return [
        f"{run.cameras} x {images}", f"{run.seconds:.0f}", f"{run.megabytes:.1f}", str(run.messages), str(run.told),
        str(run.missing), f"{run.share:.1%}", f"{run.pace:.0%}", f"{run.first_picture:.2f}", f"{run.size:.0f}",
    ]  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--raw-minutes", type=float, default=1.0, help="3.3 GB each")
    options.add_argument("--images", nargs="+", choices=("jpeg", "raw"), default=("jpeg", "raw"))
    options.add_argument("--step", type=float, default=20.0, help="seconds of each step of the ceiling")
    options.add_argument("--no-ceiling", action="store_true")
    options.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = options.parse_args()
    console, failed = Console(), False
    table = Table(title="recording 640x480 pictures at 30 Hz, and all other topics of a run")
    for column in ("cameras", "s", "MB/s", "messages", "dropped, told", "missing, found", "of a core",
                   "publishers' pace", "first picture (s)", "file (MB)"):  # fmt: skip
        table.add_column(column, justify="left" if column == "cameras" else "right")
    told: list[str] = []
    ceilings: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for images in arguments.images:
            minutes = arguments.minutes if images == "jpeg" else arguments.raw_minutes
            run = measure(Path(temporary), images, 2, minutes * 60, told if images == "jpeg" else None)
            table.add_row(*row(images, run))
            failed |= bool(run.told or run.missing or run.share > SHARE)
            best = run
            for cameras in () if arguments.no_ceiling else STEPS[images]:
                run = measure(Path(temporary), images, cameras, arguments.step)
                table.add_row(*row(images, run), style="dim")
                if run.told or run.missing or run.pace < SLOW:
                    why = "publishers cannot keep up" if run.pace < SLOW else "first loss"
                    ceilings.append(f"{images}: {best.megabytes:.1f} MB/s with {best.cameras} cameras without loss; {why} "
                                    f"at {run.megabytes:.1f} MB/s with {run.cameras}")  # fmt: skip
                    break
                best = run
            else:
                if not arguments.no_ceiling:
                    ceilings.append(
                        f"{images}: no loss up to {best.megabytes:.1f} MB/s with {best.cameras} cameras"
                    )
    table.caption = f"load average at the end {os.getloadavg()[0]:.1f}"
    console.print(table)
    for line in told + ceilings:
        console.print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
