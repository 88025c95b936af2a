"""Turns the data published with FIPER (Roemer et al., NeurIPS 2025) into roll-outs: ``vigil monitor import-fiper``.

Layout of the data: ``DIR/{task}/rollouts/{calibration,test}/*.pkl``, one pickle per roll-out. The pickles are read by
`vigil.monitor.fiper_pickle`, which executes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vigil.errors import VigilError
from vigil.monitor.fiper_rollout import SUBSETS, ImportOptions, convert
from vigil.record.rollout import save_rollout

ProgressReport = Callable[[int, int, Path], None]
"""Called with files done, files in all, and the next file."""


@dataclass
class ImportSummary:
    """What was written."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by task, subset, outcome
    out_of_distribution: Counter[tuple[str, str]] = field(default_factory=Counter)  # by task, subset
    readings: dict[str, set[str]] = field(default_factory=dict)  # by task

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def import_fiper(
    source: Path, out: Path, options: ImportOptions, progress: ProgressReport | None = None
) -> ImportSummary:
    """Convert every roll-out of ``source`` into ``out/{task}/{calibration,test}/{file name}``.

    ``source`` holds tasks, or is one task, or its ``rollouts``, or any folder of pickles.

    Raises:
        VigilError: there are none, or one cannot be read or understood; names the file. Those before it are written.
    """
    summary = ImportSummary()
    files = find_pickles(source, options.task)
    for done, (path, task, subset) in enumerate(files):
        if progress:
            progress(done, len(files), path)
        rollout, subset, reading = convert(path, task, subset, options)
        save_rollout(out / task / subset / path.stem, rollout)
        summary.counts[task, subset, rollout.episode.outcome] += 1
        summary.out_of_distribution[task, subset] += rollout.episode.perturbation == "ood"
        summary.readings.setdefault(task, set()).add(str(reading))
    return summary


def find_pickles(source: Path, task: str = "") -> list[tuple[Path, str, str]]:
    """Files with task and subset (empty if no folder says), sorted; VigilError if there are none."""
    source = source.resolve()
    found = []
    for layout in ("*/rollouts/{}", "rollouts/{}", "{}"):
        for subset in SUBSETS:
            found += [(path, subset) for path in sorted(source.glob(f"{layout.format(subset)}/*.pkl"))]
    if not found:
        subset = source.name if source.name in SUBSETS else ""
        found = [(path, subset) for path in sorted(source.glob("*.pkl"))]
    if not found:
        raise VigilError(
            f"no roll-outs in {source}: name a folder with TASK/rollouts/calibration/*.pkl and test/*.pkl, one task of "
            "it, or a folder of .pkl files"
        )
    named = []
    for path, subset in found:
        folder = path.parent.parent if subset else path.parent
        folder = folder.parent if folder.name == "rollouts" else folder
        name = task or folder.name
        for part in (name, path.stem):
            # They become folders of the output; one named '..' would leave it.
            if not re.fullmatch(r"\w[\w.-]*", part):
                raise VigilError(
                    f"{path}: {part!r} is no name for a roll-out's folder: rename it to letters, digits, '_', '-' and "
                    "'.', or name the task with --task"
                )
        named.append((path, name, subset))
    return named


def import_fiper_command(
    source: Annotated[
        Path, typer.Argument(help="folder with TASK/rollouts/{calibration,test}/*.pkl, or one task")
    ],
    out: Annotated[Path, typer.Option(help="folder for the roll-outs: TASK/{calibration,test}/NAME")],
    position: Annotated[
        str,
        typer.Option(help="action columns that are positions [m], as 0,1,2; by default what the file says"),
    ] = "",
    velocity: Annotated[
        str, typer.Option(help="action columns that are velocities [m/s], to be integrated")
    ] = "",
    dt: Annotated[float | None, typer.Option(help="of that integration [s]; by default --step-dt")] = None,
    start: Annotated[
        str, typer.Option(help="state columns where integration starts, or none to start at 0")
    ] = "0,1,2",
    step_dt: Annotated[float, typer.Option(help="time between two steps of a chunk [s]")] = 0.1,
    executed: Annotated[
        int | None, typer.Option(help="steps executed per tick; by default what the file says, else 8")
    ] = None,
    task: Annotated[str, typer.Option(help="name of the task; by default its folder's")] = "",
) -> None:
    """Import roll-outs published with FIPER; the pickles are read without executing anything in them."""
    try:
        options = ImportOptions(
            position=parse_columns(position, "--position"),
            velocity=parse_columns(velocity, "--velocity"),
            dt=dt,
            start=None if start == "none" else parse_columns(start, "--start"),
            step_dt=step_dt,
            executed=executed,
            task=task,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = "--" + str(first["loc"][0]).replace("_", "-") + ": " if first["loc"] else ""
        raise VigilError(f"{where}{first['msg']} (given: {first['input']!r:.200})") from None
    console = Console()
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task("reading", total=None)
        summary = import_fiper(
            source,
            out,
            options,
            lambda done, total, path: bar.update(line, completed=done, total=total, description=path.name),
        )
    _print_summary(console, summary, out)


def parse_columns(text: str, option: str) -> tuple[int, ...] | None:
    """Column numbers with commas between; None if ``text`` is empty."""
    if not text:
        return None
    if not re.fullmatch(r"\d{1,4}(,\d{1,4}){0,2}", text):
        raise VigilError(f"{option} {text}: give one to three column numbers from 0 on, as 0,1,2")
    return tuple(int(number) for number in text.split(","))


def _print_summary(console: Console, summary: ImportSummary, out: Path) -> None:
    table = Table(title=f"{summary.total} roll-outs written to {out}")
    for heading in ("task", "subset", "successes", "failures", "out of distribution", "actions read as"):
        table.add_column(heading)
    for task, subset in sorted({(task, subset) for task, subset, _ in summary.counts}):
        successes, failures = (summary.counts[task, subset, end] for end in ("success", "failure"))
        ood = summary.out_of_distribution[task, subset]
        read_as = "; ".join(sorted(summary.readings[task]))
        table.add_row(task, subset, str(successes), str(failures), str(ood), read_as)
    console.print(table)
