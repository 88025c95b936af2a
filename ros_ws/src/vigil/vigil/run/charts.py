"""Drawings of the report, as SVG text. Colours are CSS classes, so that the page decides on light and dark.

Every drawing of an episode has the same width and the same time axis: what stands above each other happened together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vigil.run.story import Event, ScoreSeries, Span

WIDTH = 1000.0
GUTTER = 64.0  # [px] left of the time axis, for the scores' labels; report.html indents the films by it
RATIO_RANGE = (1 / 8, 8.0)  # shown on a logarithmic axis; beyond it values are drawn at the edge
LABEL_CHAR = 6.6  # [px] mean width of a character of the event labels
ROW = 18.0  # [px] height of one row of event labels


def time_ticks(duration: float, about: int = 8) -> list[float]:
    """Round instants from 0 to ``duration`` [s], near ``about`` of them."""
    if duration <= 0:
        return [0.0]
    rough = duration / about
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return [i * step for i in range(int(duration / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Label:
    """Where the label of an event stands: at its instant, in a row, to the right or (near the end) to the left."""

    event: Event
    x: float
    row: int
    leftwards: bool


def stack(events: Sequence[Event], duration: float) -> list[Label]:
    """A place for each event's label, such that no two overlap."""
    placed: list[Label] = []
    rows: list[list[tuple[float, float]]] = []  # what is taken in each row, as (left, right)
    for event in sorted(events, key=lambda e: e.at):
        x, width = _x(event.at, duration), len(event.label) * LABEL_CHAR + 22
        leftwards = x + width > WIDTH
        left, right = (x - width, x + 8) if leftwards else (x - 8, x + width)
        row = next(
            (i for i, taken in enumerate(rows) if all(r <= left or right <= le for le, r in taken)), len(rows)
        )
        if row == len(rows):
            rows.append([])
        rows[row].append((left, right))
        placed.append(Label(event, x, row, leftwards))
    return placed


def timeline(
    spans: Sequence[Span], events: Sequence[Event], scores: Sequence[ScoreSeries], duration: float
) -> str:
    """Events, bands of control, and scores over thresholds of one episode of ``duration`` [s]."""
    labels = stack(events, duration)
    top = ROW * (1 + max((label.row for label in labels), default=-1))
    band, plot = top + 6, top + 58
    bottom = plot + 170
    parts = [_bands(spans, duration, band), _plot(scores, duration, plot, bottom)]
    for label in labels:
        x, foot, kind = label.x, label.row * ROW + 9, escape(label.event.kind)
        side, anchor = (-10, "end") if label.leftwards else (10, "start")
        parts.append(
            f'<line class="mark {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{foot:.0f}" y2="{bottom:.0f}"/>'
        )
        parts.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{foot:.0f}" r="5"/>')
        parts.append(
            f'<text class="label" x="{x + side:.1f}" y="{foot + 4:.0f}" text-anchor="{anchor}">'
            f"{escape(label.event.label)}</text>"
        )
    for tick in time_ticks(duration):
        x = _x(tick, duration)
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="{anchor}">{tick:g} s</text>'
        )
    return (
        f'<svg viewBox="{-GUTTER:.0f} 0 {GUTTER + WIDTH:.0f} {bottom + 22:.0f}" role="img" '
        f'aria-label="who was in control, and scores against thresholds over time">{"".join(parts)}</svg>'
    )


def _x(at: float, duration: float) -> float:
    return min(max(at / duration if duration > 0 else 0.0, 0.0), 1.0) * WIDTH


def _bands(spans: Sequence[Span], duration: float, top: float) -> str:
    parts = []
    for span in spans:
        left, right = _x(span.start, duration), _x(span.end, duration)
        name = span.authority.lower()
        width = max(right - left, 1.0)
        hint = f"{name}, {span.start:.2f} to {span.end:.2f} s: {span.reason}"
        parts.append(
            f'<g><title>{escape(hint)}</title><rect class="band {escape(name)}" x="{left:.1f}" y="{top:.0f}" '
            f'width="{width:.1f}" height="26" rx="3"/>'
        )
        if width > len(name) * 8 + 8:
            parts.append(f'<text class="in-band" x="{left + 8:.1f}" y="{top + 17:.0f}">{escape(name)}</text>')
        parts.append("</g>")
    return "".join(parts)


def _plot(scores: Sequence[ScoreSeries], duration: float, top: float, bottom: float) -> str:
    low, high = (math.log2(value) for value in RATIO_RANGE)

    def y(ratio: float) -> float:
        log = math.log2(min(max(ratio, RATIO_RANGE[0]), RATIO_RANGE[1]))
        return bottom - (log - low) / (high - low) * (bottom - top)

    one = y(1.0)
    parts = [f'<rect class="above" x="0" y="{top:.0f}" width="{WIDTH:.0f}" height="{one - top:.1f}"/>']
    for ratio in (0.25, 0.5, 2.0, 4.0):
        parts.append(f'<line class="grid" x1="0" x2="{WIDTH:.0f}" y1="{y(ratio):.1f}" y2="{y(ratio):.1f}"/>')
        parts.append(f'<text class="tick" x="-8" y="{y(ratio) + 4:.1f}" text-anchor="end">{ratio:g}×</text>')
    parts.append(f'<line class="threshold" x1="0" x2="{WIDTH:.0f}" y1="{one:.1f}" y2="{one:.1f}"/>')
    parts.append(f'<text class="tick" x="-8" y="{one + 4:.1f}" text-anchor="end">threshold</text>')
    for series in scores:
        for run in _finite_runs(series.ratio):
            points = [(_x(series.stamps[i], duration), y(series.ratio[i])) for i in run]
            path = " ".join(f"{x:.1f},{value:.1f}" for x, value in points)
            kind = escape(series.kind)
            parts.append(
                f'<polyline class="halo" points="{path}"/><polyline class="score {kind}" points="{path}"/>'
            )
            for i, (x, value) in zip(run, points, strict=True):
                hint = (
                    f"{series.name} at {series.stamps[i]:.2f} s: {series.windowed[i]:.4g}, "
                    f"threshold {series.thresholds[i]:.4g}"
                )
                parts.append(
                    f'<circle class="point {kind}" cx="{x:.1f}" cy="{value:.1f}" r="3">'
                    f"<title>{escape(hint)}</title></circle>"
                )
    if not any(np.isfinite(series.ratio).any() for series in scores):
        parts.append(
            f'<text class="label" x="{WIDTH / 2:.0f}" y="{(top + bottom) / 2:.0f}" text-anchor="middle">'
            "no calibrated scores in this episode</text>"
        )
    return "".join(parts)


def _finite_runs(values: np.ndarray) -> list[list[int]]:
    """Indices of each unbroken run of finite values."""
    runs: list[list[int]] = []
    for i in np.flatnonzero(np.isfinite(values)):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(int(i))
        else:
            runs.append([int(i)])
    return runs
