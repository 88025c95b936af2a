"""What a sweep leaves behind: a table, ``sweep.json``, ``sweep.csv``, and a picture."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vigil.run.report import replace_text
from vigil.sweep.recommend import Recommendation
from vigil.sweep.sweep import Candidate

JSON_FILE, CSV_FILE, PICTURE_FILE = "sweep.json", "sweep.csv", "sweep.png"
INSIDE, OUTSIDE, CHOSEN = "#2f6db0", "#8a97a5", "#c8322b"
CLOSE = 1.5  # times as slow: points nearer to each other would have their names on top of each other


def row(candidate: Candidate, budget_ms: float) -> dict[str, Any]:
    """One sampler's line, as in ``sweep.json`` and ``sweep.csv``; None: not measured. Times in ms."""
    samples = candidate.rig.policy.samples
    one, all_ = candidate.timings[1], candidate.timings[samples]
    measured, error, sampler = candidate.measured(), candidate.error, candidate.bundle.sampler
    low, high = measured.interval if candidate.n else (None, None)
    return {
        "name": candidate.name,
        "bundle": candidate.bundle.spec.name,
        "bundle_hash": candidate.bundle.content_hash,
        "sampler": candidate.bundle.sampler_name,
        "method": sampler.method,
        "steps": sampler.steps,
        "samples": samples,
        "one_median_ms": one.median,
        "one_p99_ms": one.p99,
        "all_median_ms": all_.median,
        "all_p99_ms": all_.p99,
        "inside_budget": measured.fits(budget_ms),
        "error": error and error.executed,
        "error_low": error and error.low,
        "error_high": error and error.high,
        "error_whole_chunk": error and error.whole,
        "error_observations": error and error.observations,
        "error_episodes": error and error.episodes,
        "successes": candidate.successes if candidate.n else None,
        "episodes": candidate.n,
        "success_rate": measured.rate,
        "success_low": low,
        "success_high": high,
    }


def table(rows: Sequence[dict[str, Any]], chosen: str | None, budget_ms: float) -> Table:
    """The figures for the terminal; ``chosen`` is the recommended sampler."""
    samples = rows[0]["samples"]
    shown = Table(
        title=f"inference (encoder and sampler), and a budget of {budget_ms:g} ms",
        caption="times: ms, median (99 %); error and success: with 95 % intervals; dim: outside the budget",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("  sampler", no_wrap=True)
    for heading in ("steps", "K = 1", f"K = {samples}", "action error", "success"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        shown.add_row(
            ("→ " if r["name"] == chosen else "  ") + r["name"],
            str(r["steps"]),
            f"{r['one_median_ms']:.1f} ({r['one_p99_ms']:.1f})",
            f"{r['all_median_ms']:.1f} ({r['all_p99_ms']:.1f})",
            "–" if r["error"] is None else f"{r['error']:.3f}\n{r['error_low']:.3f}–{r['error_high']:.3f}",
            f"{r['successes']} of {r['episodes']}\n{_percents(r)}" if r["episodes"] else "–",
            style=None if r["inside_budget"] else "dim",
        )
    return shown


def _percents(r: dict[str, Any]) -> str:
    return f"{100 * r['success_low']:.0f}–{100 * r['success_high']:.0f} %"


def write(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    about: dict[str, Any],
    budget_ms: float,
    recommendation: Recommendation | None,
) -> None:
    """Write all three files into ``folder``. No recommendation: the sweep is not finished, which the file says."""
    said = recommendation and {
        "name": recommendation.name,
        "why": recommendation.why,
        "caveats": list(recommendation.caveats),
    }
    document = {**about, "budget_ms": budget_ms, "finished": recommendation is not None}
    document |= {"recommendation": said, "samplers": list(rows)}
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / JSON_FILE, json.dumps(document, indent=2, allow_nan=False) + "\n")
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(folder / CSV_FILE, lines.getvalue())
    draw(folder / PICTURE_FILE, rows, budget_ms, recommendation and recommendation.name)


def draw(path: Path, rows: Sequence[dict[str, Any]], budget_ms: float, chosen: str | None) -> None:
    """Latency against action error and against success, as far as they were measured; bars are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullLocator

    figures = [
        ("error", "action error [standard deviations]", [r for r in rows if r["error"] is not None]),
        ("success", "closed-loop success", [r for r in rows if r["episodes"]]),
    ]
    panels = [panel for panel in figures if panel[2]]
    figure, grid = pyplot.subplots(
        1, max(1, len(panels)), figsize=(6 * max(1, len(panels)), 4.5), layout="constrained", squeeze=False
    )
    for axes, (what, label, points) in zip(grid[0], panels, strict=False):
        levels = label_levels([r["all_median_ms"] for r in points])
        for r, level in zip(points, levels, strict=True):
            value = r["error"] if what == "error" else r["success_rate"]
            bars = [[max(value - r[f"{what}_low"], 0.0)], [max(r[f"{what}_high"] - value, 0.0)]]
            late = [[0.0], [max(r["all_p99_ms"] - r["all_median_ms"], 0.0)]]
            colour = CHOSEN if r["name"] == chosen else INSIDE if r["inside_budget"] else OUTSIDE
            axes.errorbar(
                r["all_median_ms"],
                value,
                yerr=bars,
                xerr=late,
                fmt="o",
                color=colour,
                lw=0.9,
                ms=6,
                capsize=2,
            )
            axes.annotate(
                r["name"], (r["all_median_ms"], value), xytext=(6, -12 - 11 * level), textcoords="offset points",
                fontsize=8, color=colour,
            )  # fmt: skip
        axes.axvline(budget_ms, color=OUTSIDE, lw=0.9, ls="--")
        axes.set(
            xlabel=f"inference with K = {rows[0]['samples']}, median to 99 % [ms]", ylabel=label, xscale="log"
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.25)
        if what == "success":
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_ylim(bottom=0)
    figure.suptitle("Samplers: the budget is dashed, the recommended one red", fontsize=11)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def label_levels(values: Sequence[float]) -> list[int]:
    """How many lines lower each point's label goes, on a logarithmic axis, so that those of near neighbours lie below each other."""
    levels = [0] * len(values)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for before, i in itertools.pairwise(order):
        levels[i] = levels[before] + 1 if values[i] < CLOSE * values[before] else 0
    return levels
