"""kill -9 of the recorder at random moments: are finished episodes whole, how much is lost of the open one, who can read it?

    .venv/bin/python tests/bench/bench_record_kill.py [--kills 100] [--seed 0] [--images jpeg]

Two cameras of 640x480 at 30 Hz and all other topics of a real run come from publishers of the bench. Episodes of about a
second follow each other until the recorder's process is killed; the next one completes what is left, as `vigil up` has it.
A loss is the time from the last message in the file to the last one published before the kill, by stamps, of the topic
that lost most. Unfinished files are also given to other readers as they were left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mcap.reader import make_reader
from recorder_load import Load, Recorder, domain, missing, recorded, rig_for
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rosbags.highlevel import AnyReader

from vigil.record.episode import INTERRUPTED
from vigil.record.reader import EpisodeReader
from vigil.record.writer import PART

LONGEST = 4.0  # [s] from the first episode's start to the kill
EPISODE = (0.3, 1.5)  # [s]
UNDERWAY = 30_000_000  # [ns] a message may be on its way when an episode ends
BAR = 1.0  # [s]


@dataclass
class Episode:
    """One that was begun; times in ns, 0 while they have not come."""

    name: str
    opened: int
    asked: int = 0  # to end
    ended: int = 0  # and the recorder said so


@dataclass
class Kill:
    """What happened to one recorder."""

    at: int = 0
    episodes: list[Episode] = field(default_factory=list)


def run_until_killed(rig, graph, folder: Path, number: int, rng: np.random.Generator) -> Kill:
    """Record episodes until the process is killed at a random moment."""
    kill, moment, lengths = Kill(), rng.uniform(0.0, LONGEST), rng.uniform(*EPISODE, 100)
    with Recorder(rig, graph, folder / f"log{number}", f"record_{number}") as recorder:

        def strike() -> None:
            time.sleep(moment)
            kill.at = time.time_ns()
            os.kill(recorder.process.pid, signal.SIGKILL)

        killer = threading.Thread(target=strike)
        killer.start()
        for count, length in enumerate(lengths):
            name = f"k{number:03d}_{count}"
            if recorder.start(name) is None:
                break
            episode = Episode(name, time.time_ns())
            kill.episodes.append(episode)
            until = time.monotonic() + length
            while recorder.alive and time.monotonic() < until:
                time.sleep(0.002)
            episode.asked = time.time_ns()
            if recorder.end() is None:
                break
            episode.ended = time.time_ns()
        killer.join()
    return kill


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute, at ordinary priority."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def read_by_mcap(path: Path) -> int:
    """Messages that the reader of the MCAP project gives."""
    with path.open("rb") as file:
        return sum(1 for _ in make_reader(file, validate_crcs=True).iter_messages())


def read_by_rosbags(path: Path) -> int:
    """Messages that rosbags gives and deserialises."""
    with AnyReader([path]) as reader:
        return sum(bool(reader.deserialize(data, c.msgtype)) for c, _, data in reader.messages())


READERS = {"mcap": read_by_mcap, "rosbags": read_by_rosbags}


def refusal(reader: str, path: Path) -> str:
    """Why a reader does not give every message that the file holds; empty if it does."""
    whole = sum(EpisodeReader(path).counts.values())
    try:
        count = READERS[reader](path)
    except Exception as error:  # whatever it raises
        return f"{type(error).__name__}: {error}"
    return "" if count == whole else f"{count} of {whole} messages"


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--images", choices=("jpeg", "raw"), default="jpeg")
    options.add_argument(
        "--busy", type=int, default=0, help="processes beside it that do nothing but compute"
    )
    arguments = options.parse_args()
    console, rng = Console(), np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rig = rig_for(folder, arguments.images)
        episodes, left = folder / "episodes", folder / "left"
        left.mkdir()
        kills: list[Kill] = []
        with domain(rig), busy(arguments.busy):
            from support.live_node import graph, wait_for

            with (
                graph(rig.namespace) as client,
                Load(rig, folder) as load,
                Progress(console=console) as progress,
            ):
                for number in progress.track(range(arguments.kills), description="kills"):
                    kills.append(run_until_killed(rig, client, folder, number, rng))
                    for part in episodes.glob(f"*{PART}"):
                        shutil.copy(part, left / part.name.removesuffix(PART))
                with Recorder(rig, client, folder / "log", "record_last"):
                    wait_for(lambda: not list(episodes.glob(f"*{PART}")), 120, "all is completed")
        return report(console, arguments, kills, load, episodes, left)


def told(found: np.ndarray, episode: Episode, topic: str) -> list[str]:
    """Missing messages in words."""
    if not len(found):
        return []
    after = (found - episode.opened) / 1e9
    return [
        f"{episode.name} {topic}: {len(found)} missing, {after[0]:.2f} to {after[-1]:.2f} s after its start"
    ]


def report(console: Console, arguments, kills: list[Kill], load: Load, folder: Path, left: Path) -> int:
    finished = [e for kill in kills for e in kill.episodes if e.ended]
    broken, incomplete, holes = [], 0, []
    for episode in finished:
        path = folder / f"{episode.name}.mcap"
        if not path.exists() or not EpisodeReader(path).complete or not path.with_suffix(".json").exists():
            broken.append(episode.name)
            continue
        kept = recorded(path, load.sources)
        for name, published in load.published.items():
            until, whole = episode.asked - UNDERWAY, not load.sources[name].image
            found = missing(published, kept[name], episode.opened, until, whole)
            holes += told(found, episode, name)
            incomplete += len(found)
    losses, inside = [], 0
    for kill in kills:
        if not kill.episodes or kill.episodes[-1].ended:
            continue
        episode = kill.episodes[-1]
        held = [*folder.glob(f"{episode.name}.{INTERRUPTED}*.mcap"), *folder.glob(f"{episode.name}.mcap")]
        kept = recorded(held[0], load.sources) if held else {}
        lost = 0.0
        for name, published in load.published.items():
            due = published[
                (published >= episode.opened) & (published < min(kill.at, episode.asked or kill.at))
            ]
            if not len(due):
                continue
            have = kept.get(name, np.zeros(0, np.int64))
            last = int(have[-1]) if len(have) else episode.opened
            lost = max(lost, (int(due[-1]) - last) / 1e9)
            if len(have):
                found = missing(published, have, episode.opened, last, not load.sources[name].image)
                holes += told(found, episode, name)
                inside += len(found)
        losses.append(lost)
    files = {
        "completed files read to the end": sorted(folder.glob("*.mcap")),
        "files as they were left": sorted(left.iterdir()),
    }
    refusals = {
        (what, reader): (of, [f"{path.name}: {why}" for path in of if (why := refusal(reader, path))])
        for what, of in files.items()
        for reader in READERS
    }
    table = Table(
        title=f"{len(kills)} kills of the recorder, pictures {arguments.images}, seed {arguments.seed}, {arguments.busy} other programs"
    )
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, figure in {
        "finished episodes that are whole": f"{len(finished) - len(broken)} of {len(finished)}",
        "messages missing in them": str(incomplete),
        "killed while an episode was open": str(len(losses)),
        "lost of it (s): median, 99 %, most": f"{np.median(losses):.3f}, {np.percentile(losses, 99):.3f}, {max(losses):.3f}",
        "messages missing before its end": str(inside),
        **{
            f"{what}, by {n}": f"{len(of) - len(bad)} of {len(of)}"
            for (what, n), (of, bad) in refusals.items()
        },
    }.items():
        table.add_row(what, figure)
    table.caption = f"load average at the end {os.getloadavg()[0]:.1f}"
    console.print(table)
    for hole in holes:
        console.print(hole, highlight=False)
    for name in broken:
        console.print(f"not whole: {name}")
    for (what, reader), (_, bad) in refusals.items():
        for line in bad:
            console.print(f"{what}, by {reader}: {line}")
    return (
        1
        if refusals["completed files read to the end", "mcap"][1]
        or refusals["completed files read to the end", "rosbags"][1]
        or broken
        or incomplete
        or inside
        or max(losses) > BAR
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
