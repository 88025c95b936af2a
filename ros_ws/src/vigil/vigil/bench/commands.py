"""``vigil bench``: what the rig costs on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vigil.bench import graph
from vigil.bench.policy import measure_node
from vigil.bench.ticks import NodeTimes, interval, overhead
from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, load_bundle
from vigil.policy.timing import Timing
from vigil.rig import RigConfig, load_rig, resolve, resolve_here
from vigil.run.progress import progress_bar
from vigil.run.session import derive_rig

app = typer.Typer(no_args_is_help=True, help="What the rig costs on this machine.")
OVERHEAD_BAR, BATCH_BAR, EAGER_BAR = 3.0, 6.0, 1.3  # ms; times K = 1; times faster than torch


@app.callback()
def bench() -> None:
    """What the rig costs on this machine."""


@app.command()
def policy(
    bundle: Annotated[
        Path | None, typer.Argument(help="folder of a policy bundle; by default the rig's")
    ] = None,
    rig: Annotated[str, typer.Option(help="name or file of the rig")] = "franka_sim",
    sampler: Annotated[str | None, typer.Option(help="one of the bundle's; by default the rig's")] = None,
    samples: Annotated[str, typer.Option(help="K, with commas between")] = "1,16,32,256",
    ticks: Annotated[
        int, typer.Option(min=0, help="inferences of the node for each K; 0: the graphs alone")
    ] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each call of the graphs")] = 60,
    threads: Annotated[int | None, typer.Option(min=1, help="of each graph; by default the rig's")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for logs")] = None,
) -> None:
    """From observation to chunk, in the node over real DDS and in the bare graph; and what K samples cost.

    The node runs alone with its cameras and joint states, without the rest of the rig. Nothing else should run meanwhile.
    """
    console, wanted = Console(), _numbers(samples)
    folder = (out or resolve("out") / f"bench-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    robot = _rig(rig, bundle, sampler, threads, folder)
    chosen = load_bundle(robot.bundle_path(), robot.policy.sampler)
    chosen.check_rig(robot)
    console.print(
        f"{chosen.name}, {chosen.sampler_name} {chosen.sampler.steps}, {robot.policy.threads} threads, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}",
        highlight=False,
    )
    _graphs(console, chosen, robot, wanted, rounds)
    if ticks:
        _node(console, robot, wanted, ticks, folder)


def _rig(rig: str, bundle: Path | None, sampler: str | None, threads: int | None, folder: Path) -> RigConfig:
    """The rig with what was asked for on the command line."""
    loaded = load_rig(rig)
    changes: dict[str, Any] = {}
    if bundle is not None:
        # Another bundle may not have the sampler that the rig names.
        changes = {"bundle": str(resolve_here(bundle).resolve()), "sampler": sampler}
    elif sampler is not None:
        changes = {"sampler": sampler}
    if threads is not None:
        changes["threads"] = threads
    return derive_rig(loaded, folder, policy=changes) if changes else loaded


def _numbers(given: str) -> tuple[int, ...]:
    """The numbers of samples; VigilError if one is none."""
    words = [word.strip() for word in given.split(",")]
    if bad := [word for word in words if not word.isdigit() or not 1 <= int(word) <= 512]:
        raise VigilError(f"--samples has {bad[0]!r}: give whole numbers from 1 to 512 with commas between")
    return tuple(dict.fromkeys(int(word) for word in words))


def _node(console: Console, rig: RigConfig, samples: Sequence[int], ticks: int, folder: Path) -> None:
    found: list[NodeTimes] = []
    with progress_bar(console) as progress:
        for k in samples:
            bar = progress.add_task(f"node and bare graph, K = {k}", total=ticks)

            def advance(done: int, bar: Any = bar) -> None:
                progress.update(bar, completed=done)

            found.append(measure_node(rig, k, ticks, folder / f"k{k}", Console(quiet=True), advance))
    console.print(chunk_table(found, rig.policy.candidates))
    console.print(evidence_table(found))
    for line in node_facts(found):
        console.print(line, highlight=False)


def chunk_table(found: Sequence[NodeTimes], candidates: int) -> Table:
    """The chunk in the node and in the bare graph; median and 99 % in ms."""
    table = _table(
        f"stamp of the observation to the chunk over DDS, n = {len(found[0].chunk.seconds)} each",
        f"ms, median (99 %); the chunk is one of the first {candidates} samples at most\n"
        "given: the last input is handed to the middleware, by its source\narrived: the middleware has it, in the node's process\n"
        "overhead, own: from given and from arrived to the chunk, less bare graph",
        ("K", "given", "arrived", "chunk", "bare graph", "overhead", "own"),
    )
    for times in found:
        table.add_row(
            str(times.samples),
            _pair(times.given),
            _pair(times.complete),
            _pair(times.chunk),
            _pair(times.bare_chunk),
            _both(overhead(times.response, times.bare_chunk)),
            _both(overhead(times.inside, times.bare_chunk)),
        )
    return table


def evidence_table(found: Sequence[NodeTimes]) -> Table:
    """The evidence, which has all K samples, in the node and in the bare graph; median and 99 % in ms."""
    table = _table(
        "stamp of the observation to the evidence over DDS",
        "ms, median (99 %); overhead: since the last input was handed over",
        ("K", "evidence", "bare graph", "overhead", "missed ticks"),
    )
    for times in found:
        added = _both(overhead(times.evidence_response, times.bare_evidence))
        table.add_row(
            str(times.samples), _pair(times.evidence), _pair(times.bare_evidence), added, str(times.missed)
        )
    return table


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def node_facts(found: Sequence[NodeTimes]) -> list[str]:
    """What the table says, against the figure to be kept."""
    facts = [
        f"K = {times.samples} does not fit the rig's period of {times.period * 1e3:g} ms: its chunks wait for the samples of the tick before"
        for times in found
        if not times.fits
    ]
    fitting = [times for times in found if times.fits]
    for what, name in (("response", "overhead"), ("inside", "own overhead")) if fitting else ():
        pairs = {times.samples: (getattr(times, what), times.bare_chunk) for times in fitting}
        added = {k: overhead(*pair)[1] for k, pair in pairs.items()}
        k = max(added, key=added.__getitem__)
        low, high = interval(*pairs[k])
        facts.append(
            f"{name} at 99 %: {added[k]:.1f} ms at most, with K = {k} (95 % interval {low:.1f} to {high:.1f}; "
            f"{_verdict(added[k] <= OVERHEAD_BAR)} {OVERHEAD_BAR:g} ms)"
        )
    resize = max(times.resize.median for times in found)
    return [*facts, f"of that, resizing the pictures takes {resize:.1f} ms (median)"]


def _graphs(console: Console, bundle: Bundle, rig: RigConfig, samples: tuple[int, ...], rounds: int) -> None:
    others, why_not = _eager(bundle, rig.policy.threads)
    with progress_bar(console) as progress:
        bar = progress.add_task("graphs", total=rounds)
        found = graph.measure(
            bundle, rig.policy.threads, samples, rounds, others, lambda: progress.advance(bar)
        )
    table = Table(title="the calls of the graphs, in turns", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("call", no_wrap=True)
    for heading in ("median ms", "99 % ms"):
        table.add_column(heading, justify="right")
    for name, timing in found.items():
        table.add_row(name, f"{timing.median:.2f}", f"{timing.p99:.2f}")
    console.print(table)
    for line in graph_facts(found, graph.SINGLE):
        console.print(line, highlight=False)
    if why_not:
        console.print(why_not, style="dim", highlight=False, markup=False)


def graph_facts(found: Mapping[str, Timing], batch: int) -> list[str]:
    """What the medians say, against the figures to be kept."""
    encoder, one, many = (
        found[name].median for name in ("encoder", "sampler, K = 1", f"sampler, K = {batch}")
    )
    whole = (encoder + many) / (encoder + one)
    facts = [
        f"K = {batch} costs {whole:.1f} times K = 1, encoder once ({_verdict(whole <= BATCH_BAR)} {BATCH_BAR:g}); the sampler "
        f"alone {many / one:.1f} times",
        f"one batched call costs 1/{found[f'{batch} calls of K = 1'].median / many:.1f} of {batch} single ones",
    ]
    for name, timing in found.items():
        if name.startswith(EAGER):
            ratio = timing.median / found[name.removeprefix(EAGER)].median
            facts.append(
                f"{name.removeprefix(EAGER)}: the graph is {ratio:.2f} times as fast as torch ({_verdict(ratio >= EAGER_BAR)} {EAGER_BAR:g})"
            )
    return facts


EAGER = "torch: "  # of a call's name, before that of the graph's


def _eager(bundle: Bundle, threads: int) -> tuple[dict[str, Callable[[], Any]], str]:
    """The same calls in torch, eager; or why there are none."""
    try:
        from vigil.train.eager import eager_calls
    except ModuleNotFoundError as error:
        return {}, f"torch eager: not measured, {error.name} is not installed (pip install -e '.[train]')"
    try:
        calls = eager_calls(bundle, threads, (1, graph.SINGLE))
    except VigilError as error:
        return {}, f"torch eager: not measured: {error}"
    return {EAGER + name: call for name, call in calls.items()}, ""


def _both(values: tuple[float, float]) -> str:
    median, tail = (f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}" for value in values)
    return f"{median} ({tail})"


def _pair(timing: Timing) -> str:
    return _both((timing.median, timing.p99))


def _verdict(kept: bool) -> str:
    return "within" if kept else "[bold red]misses[/]"
