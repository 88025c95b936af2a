"""``vigil dataset``: recordings to data sets, and what is done with data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vigil.errors import VigilError
from vigil.record.dataset import compact as compaction
from vigil.record.dataset.export import Encoding, Outcome
from vigil.record.dataset.export import export as export_lerobot
from vigil.record.dataset.hdf5 import export_hdf5
from vigil.record.dataset.prepare import Wanted, find_recordings
from vigil.record.dataset.resample import POLICIES, Grid
from vigil.record.episode import OUTCOMES

app = typer.Typer(no_args_is_help=True, help="Data sets for training, made of recordings.")
FORMATS = ("lerobot", "hdf5")


@app.command()
def export(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="recordings (.mcap), or folders with some")
    ],
    out: Annotated[
        Path, typer.Argument(help="the data set: a folder, for hdf5 a file; one that is there is added to")
    ],
    fps: Annotated[int, typer.Option(min=1, max=240, help="frames per second of the data set")] = 30,
    gaps: Annotated[
        str,
        typer.Option(
            help="where a stream has a gap: hold the last sample, take the nearest, or drop the frames and cut there"
        ),
    ] = "hold",
    codec: Annotated[str, typer.Option(help="h264 or av1")] = "h264",
    crf: Annotated[int | None, typer.Option(min=0, max=63, help="quality, lower is better")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16, help="side of the pictures [px], prepared as for the policy; by default the cameras' own"
        ),
    ] = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="simulated rigs: draw the pictures from the recorded state")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="from the recording's start, not from when somebody got control")
    ] = False,
    outcome: Annotated[
        list[str] | None, typer.Option(help="only episodes that ended so (may be repeated); by default all")
    ] = None,
    task: Annotated[str, typer.Option(help="text of the task, in place of the recorded one")] = "",
    format_: Annotated[str, typer.Option("--format", help="lerobot (v3.0) or hdf5 (robomimic)")] = "lerobot",
) -> None:
    """Export recordings as a data set; the same command goes on where it was stopped, and adds what is new."""
    from vigil.monitor.scores import SCORES

    if gaps not in POLICIES:
        raise VigilError(f"--gaps is {gaps!r}: choose one of {', '.join(POLICIES)}")
    if format_ not in FORMATS:
        raise VigilError(f"--format is {format_!r}: choose one of {', '.join(FORMATS)}")
    if unknown := [word for word in outcome or [] if word not in OUTCOMES]:
        raise VigilError(f"--outcome {unknown[0]!r} is unknown: choose from {', '.join(OUTCOMES)}")
    wanted = Wanted(Grid(fps, gaps, whole), image_size, draw, tuple(outcome or ()), task)
    recordings = find_recordings(runs)
    console = Console()
    try:
        with _progress(console) as progress:
            bar = progress.add_task("frames", total=None)

            def tell(what: str, frames: int) -> None:
                progress.update(bar, description=what, advance=frames)

            if format_ == "hdf5":
                result = export_hdf5(recordings, out, wanted, tuple(SCORES), tell)
            else:
                result = export_lerobot(recordings, out, wanted, Encoding(codec, crf), tuple(SCORES), tell)
    except KeyboardInterrupt:
        Console(stderr=True).print(f"stopped; {out} is whole, and the same command goes on", style="yellow")
        raise typer.Exit(130) from None
    _report(console, result, out)
    if not result.episodes:
        raise VigilError(f"none of the {len(recordings)} recordings could be exported: each reason is above")


@app.command()
def delete(
    dataset: Annotated[Path, typer.Argument(help="folder of a data set")],
    episodes: Annotated[list[int], typer.Argument(metavar="EPISODE...", help="numbers of episodes")],
    why: Annotated[str, typer.Option(help="kept beside the mark")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="take the marks back")] = False,
) -> None:
    """Mark episodes as deleted. Vigil's own commands pass over them; `vigil dataset compact` removes them for good."""
    marks = compaction.mark(dataset, episodes, why, undo)
    listed = ", ".join(map(str, sorted(marks))) or "none"
    Console().print(f"{dataset}: marked as deleted: {listed}")


@app.command()
def compact(dataset: Annotated[Path, typer.Argument(help="folder of a data set")]) -> None:
    """Remove the episodes that are marked as deleted, and number the others anew; all at once, or not at all."""
    removed, left = compaction.compact(dataset)
    what = f"{removed} episodes removed, {left} left" if removed else "nothing is marked as deleted"
    Console().print(f"{dataset}: {what}")


@app.command()
def report(
    dataset: Annotated[Path, typer.Argument(help="folder of a LeRobotDataset v3.0, Vigil's or anybody's")],
    out: Annotated[Path | None, typer.Option(help="the page; by default report.html in the data set")] = None,
) -> None:
    """A page about a data set: its episodes, what went wrong in them, and how good they are to learn from."""
    from vigil.record.dataset.report import write_report  # loads matplotlib

    console = Console()
    with _progress(console) as progress:
        bar = progress.add_task("episodes", total=None)
        page = write_report(
            dataset,
            out or dataset / "report.html",
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(f"report: {page}")


@app.command()
def view(
    episode: Annotated[
        Path, typer.Argument(help="a recording (.mcap), also one that was cut short (.mcap.part)")
    ],
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.rrd", help="write a file for the viewer, on machines without a screen"),
    ] = None,
) -> None:
    """Look at one recorded episode in rerun: pictures, joints, chunks, scores, alarms, and who was in control."""
    from vigil.record.dataset.view import view as show

    show(episode, save)
    if save:
        Console().print(f"{save}: open it with `rerun {save}`", highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _report(console: Console, result: Outcome, out: Path) -> None:
    for line in result.added:
        for label in line["labels"]:
            console.print(f"{line['recording']}: {label}", style="yellow", highlight=False)
    for path, why in result.skipped.items():
        console.print(f"left out {path}: {why}", style="yellow", highlight=False)
    known = f", {result.present} recordings were in it before" if result.present else ""
    console.print(
        f"{out}: {len(result.added)} episodes added{known}; {result.episodes} episodes, {result.frames} frames in all"
    )
