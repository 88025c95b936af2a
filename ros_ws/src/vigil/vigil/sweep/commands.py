"""``vigil policy``: what is done with policy bundles."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vigil.errors import VigilError
from vigil.rig import load_rig, resolve, resolve_here
from vigil.run.collect import Collection, record_demonstrations
from vigil.run.episodes import require_simulation
from vigil.sweep import report, sweep
from vigil.sweep.recommend import recommend, require_one_inside

app = typer.Typer(no_args_is_help=True, help="What is done with policy bundles.")


@app.callback()
def policy() -> None:
    """What is done with policy bundles."""


@app.command("sweep")
def sweep_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="folders of policy bundles")],
    rig: Annotated[str, typer.Option(help="name or file of the rig that the policy is for")] = "franka_sim",
    samplers: Annotated[str, typer.Option(help="all, or names with commas between")] = "all",
    data: Annotated[
        Path | None,
        typer.Option(
            help="held-out demonstrations: recordings, or a LeRobotDataset v3.0; by default new ones of the scripted operator"
        ),
    ] = None,
    demonstrations: Annotated[
        int, typer.Option(min=0, help="demonstrations to compare with; 0 for no action error")
    ] = 10,
    episodes: Annotated[
        int, typer.Option(min=0, help="closed-loop episodes of each sampler; 0 for none")
    ] = 40,
    seed: Annotated[int, typer.Option(help="seed of the first scene; the others count up from it")] = 70000,
    budget: Annotated[
        float | None,
        typer.Option(
            help="what one inference may take at its 99th percentile [ms]; by default the rig's period"
        ),
    ] = None,
    latency: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="chunks reach the arm so long after their observation [s]"),
    ] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each latency")] = 100,
    out: Annotated[Path | None, typer.Option(help="folder; an unfinished sweep in it goes on")] = None,
) -> None:
    """Time every sampler of a bundle, compare it with demonstrations, roll it out, and recommend one.

    Latency is that of the encoder and of one call of the sampler, for one sample and for the rig's policy.samples, on this
    machine: nothing else should run meanwhile. Stopped with Ctrl-C, the same command with the same --out goes on.
    """
    console, config = Console(), load_rig(rig)
    if budget is not None and not budget > 0:
        raise VigilError(f"--budget is {budget:g} ms: give a positive number")
    budget_ms = config.policy.period * 1e3 if budget is None else budget
    folder = (out or resolve("out") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    names = [] if samplers == "all" else [name.strip() for name in samplers.split(",")]
    chosen = sweep.choose([resolve_here(path) for path in bundles], names)
    if episodes or (demonstrations and data is None):
        require_simulation(config, "a sweep with --episodes, or without --data,")
    found = sweep.candidates(chosen, config, folder)
    wanted = sweep.Wanted(
        config, data if demonstrations else None, demonstrations, episodes, seed, latency, rounds, folder
    )
    try:
        _run(wanted, found, budget_ms, console)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"stopped; the same command with --out {folder} goes on", style="yellow", markup=False
        )
        raise typer.Exit(130) from None


def _run(wanted: sweep.Wanted, found: list[sweep.Candidate], budget_ms: float, console: Console) -> None:
    sweep.measure_latency(found, wanted, console)
    # Before hours of roll-outs: none of them could make a sampler faster.
    require_one_inside([candidate.measured() for candidate in found], budget_ms)
    wanted = _with_demonstrations(wanted, console)
    sweep.measure_errors(found, wanted, console)
    about = sweep.surroundings(wanted, found)

    def keep(recommendation: Any = None) -> list[dict[str, Any]]:
        rows = [report.row(candidate, budget_ms) for candidate in found]
        report.write(wanted.out, rows, about, budget_ms, recommendation)
        return rows

    keep()
    sweep.roll_out(found, wanted, console, finished=keep)
    if not wanted.episodes and wanted.data is None:
        console.print(report.table(keep(), None, budget_ms))
        console.print("no recommendation: neither success nor action error was measured")
        return
    recommendation = recommend([candidate.measured() for candidate in found], budget_ms)
    console.print(report.table(keep(recommendation), recommendation.name, budget_ms))
    console.print(f"recommended: [bold]{recommendation.name}[/], since {recommendation.why}", highlight=False)
    for caveat in recommendation.caveats:
        console.print(f"but {caveat}", style="yellow", highlight=False)
    console.print(f"set `policy.sampler` in the rig file; figures and picture: {wanted.out}", highlight=False)


def _with_demonstrations(wanted: sweep.Wanted, console: Console) -> sweep.Wanted:
    """Without data of the user's: the scripted operator in the scenes of the roll-outs."""
    if wanted.data is not None or not wanted.demonstrations:
        return wanted
    folder = wanted.out / "demonstrations"
    collection = Collection(wanted.demonstrations, wanted.seed, 0.010, "max", folder)
    record_demonstrations(wanted.rig, collection, console)
    return wanted.with_data(folder)
