"""A calibration on one page: the scores of successes against their thresholds, and what the data support."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from vigil.monitor import conformal
from vigil.monitor.calibrate import Fitted, Split
from vigil.monitor.calibration import Calibration
from vigil.monitor.detector import Channel, Detector
from vigil.monitor.windows import windowed

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 220, 56, 26, 10
DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 780px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
th { font-weight: 600; color: #51606f } svg { width: 100%; height: auto }
.run { fill: none; stroke: #3b7dd8; stroke-width: 1; opacity: .45 }
.limit { fill: none; stroke: #c8322b; stroke-width: 2 } .axis { stroke: #8a97a5; stroke-width: 1 }
text { font-size: 11px; fill: #51606f } code { font-size: .9em; overflow-wrap: anywhere }
"""


def write_report(
    path: Path, calibration: Calibration, detector: Detector, fitted: Fitted, split: Split
) -> None:
    """Write the page, self-contained HTML, to ``path``."""
    path.write_text(render(calibration, detector, fitted, split), encoding="utf-8")


def render(calibration: Calibration, detector: Detector, fitted: Fitted, split: Split) -> str:
    """The page."""
    curves = {name: fitted.part(name, split.calibrate) for name in detector.names}
    sections = [_section(channel, curves[channel.name]) for channel in detector.channels]
    alarmed = _alarms(detector, curves)
    binding = calibration.binding
    n = calibration.data.calibrated
    clauses = " or ".join(" and ".join(clause) for clause in calibration.clauses)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Monitor calibration</title><style>{
        STYLE
    }</style></head><body>
<h1>Failure monitor: calibration</h1>
<p>Alarm where <b>{escape(clauses)}</b> exceed their thresholds at the same tick. {
        escape(calibration.bound)
    }.</p>
{
        _rows(
            [
                (
                    "successful roll-outs",
                    f"{calibration.data.successes}: {calibration.data.fitted} to fit, {calibration.data.scaled} to "
                    f"scale, {n} to calibrate",
                ),
                (
                    "delta",
                    f"{calibration.delta:g}; calibration {calibration.mode}, thresholds {calibration.style}",
                ),
                ("alarms on the calibration roll-outs", f"{alarmed} of {n}"),
                ("bundle", binding.bundle_hash),
                (
                    "sampler",
                    f"{binding.sampler}, {binding.sampler_steps} steps, K = {binding.k}, H = {binding.horizon}",
                ),
                ("camera calibration", binding.camera_calibration_hash),
            ]
        )
    }
{"".join(sections)}
<h2>What {n} calibration roll-outs support</h2>
<table><tr><th>delta</th><th>needed</th><th></th></tr>{
        "".join(_support(delta, n) for delta in DELTAS)
    }</table>
</body></html>
"""


def _section(channel: Channel, curves: list[np.ndarray]) -> str:
    summed = [windowed(curve, channel.window) for curve in curves]
    unit = "tick" if channel.window == 1 else "ticks"
    return (
        f"<h2>{escape(channel.name)} ({channel.score.kind}), summed over {channel.window} {unit}</h2>"
        f"<p>Each line is one successful roll-out, scored by a model that had not seen it.</p>"
        f"{_chart(summed, channel.threshold)}"
    )


def _chart(curves: list[np.ndarray], threshold: np.ndarray) -> str:
    ticks = max(*map(len, curves), 2)
    limit = conformal.at(threshold, np.arange(ticks))
    top = 1.05 * max(float(limit.max()), *(float(curve.max()) for curve in curves), 1e-12)

    def points(values: np.ndarray) -> str:
        x = LEFT + np.arange(len(values)) * (WIDTH - LEFT - 8) / (ticks - 1)
        y = TOP + (1 - values / top) * (HEIGHT - TOP - BOTTOM)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    runs = "".join(f'<polyline class="run" points="{points(curve)}"/>' for curve in curves)
    floor = HEIGHT - BOTTOM
    labels = "".join(
        f'<text x="{LEFT - 6}" y="{TOP + (1 - share) * (floor - TOP) + 4:.0f}" text-anchor="end">{share * top:.3g}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{floor}"/>'
        f'<line class="axis" x1="{LEFT}" y1="{floor}" x2="{WIDTH - 8}" y2="{floor}"/>'
        f'{runs}<polyline class="limit" points="{points(limit)}"/>{labels}'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">tick 0</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 8}" text-anchor="end">tick {ticks - 1}</text></svg>'
    )


def _alarms(detector: Detector, curves: dict[str, list[np.ndarray]]) -> int:
    raised = 0
    for i in range(len(next(iter(curves.values())))):
        above = {
            c.name: windowed(curves[c.name][i], c.window)
            > conformal.at(c.threshold, np.arange(len(curves[c.name][i])))
            for c in detector.channels
        }
        raised += any(np.all([above[name] for name in clause], axis=0).any() for clause in detector.clauses)
    return raised


def _support(delta: float, n: int) -> str:
    needed = conformal.required(delta)
    said = "supported" if n >= needed else f"{needed - n} more needed"
    return f"<tr><td>{delta:g}</td><td>{needed}</td><td>{said}</td></tr>"


def _rows(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"
