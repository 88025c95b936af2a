"""``vigil dataset report``: one self-contained page about a data set."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vigil.errors import VigilError
from vigil.page import template
from vigil.record.dataset import quality
from vigil.record.dataset.files import publish
from vigil.record.dataset.quality import EpisodeData, EpisodeQuality
from vigil.record.dataset.reader import DatasetReader

THUMBNAILS, THUMBNAIL_WIDTH = 5, 128  # per episode; [px]
BEFORE_ALARM_S, ALARM_PICTURES = 2.0, 5
MOST_ALARMS = 12  # shown with pictures
WORDS = {
    "success": "success",
    "intervened_success": "saved by operator",
    "failure": "failure",
    "": "no outcome",
}
TONES = {"success": "good", "intervened_success": "saved", "failure": "bad"}


def write_report(root: Path, out: Path, tell: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write the page about the data set in ``root`` to ``out``.

    Args:
        tell: hears how many of how many episodes are done.

    Raises:
        VigilError: no data set, a damaged one, or one without episodes.
    """
    reader = DatasetReader(root)
    if not reader.episodes:
        raise VigilError(
            f"{root} has no episodes to report on: all are marked as deleted, or none was exported"
        )
    episodes = quality.read_episodes(reader)
    judged = quality.judge(episodes, reader.fps)
    views, alarms = [], []
    for done, (episode, found) in enumerate(zip(episodes, judged, strict=True)):
        films = _films(reader, episode, found)
        views.append(_view(reader, episode, found, films[0]))
        alarms += films[1]
        tell(done + 1, len(episodes))
    page = template(Path(__file__).with_name("report.html"), _shown).render(
        title=root.resolve().name,
        facts=_facts(reader, views, len(alarms)),
        outcomes=Counter(view["outcome"] for view in views),
        episodes=views,
        alarms=alarms[:MOST_ALARMS],
        more_alarms=max(len(alarms) - MOST_ALARMS, 0),
        deleted=reader.deleted,
        charts=_charts(reader, episodes, judged),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    publish(partial, out)
    return out


def _shown(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f} {unit}".rstrip()


def _facts(reader: DatasetReader, views: Sequence[dict[str, Any]], alarms: int) -> dict[str, str]:
    seconds = sum(view["length_s"] for view in views)
    measured = [view["fps"] for view in views if view["fps"] is not None]
    worst = max((abs(rate / reader.fps - 1) for rate in measured), default=None)
    frames = sum(view["frames"] for view in views)
    return {
        "episodes": str(len(views)),
        "frames": str(frames),
        "length": f"{seconds / 60:.1f} min",
        "declared rate": f"{reader.fps:g} Hz",
        "largest deviation of the measured rate": "–" if worst is None else f"{100 * worst:.3f} %",
        "frames in gaps": str(sum(view["gap_frames"] for view in views)),
        "frames under an operator": f"{100 * sum(view['operator_frames'] for view in views) / frames:.1f} %",
        "alarms": str(alarms),
        "cameras": ", ".join(reader.cameras) or "none",
        "tasks": "; ".join(reader.tasks),
    }


def _view(
    reader: DatasetReader, episode: EpisodeData, found: EpisodeQuality, film: Sequence[str]
) -> dict[str, Any]:
    row = reader.rows[episode.number]
    outcome = row.get("x_outcome") or ""
    cameras = json.loads(row.get("x_cameras") or "{}")
    idle = [f"{run.start / reader.fps:.1f}–{run.stop / reader.fps:.1f} s" for run in found.idle]
    return {
        "number": episode.number,
        "film": film,
        "outcome": WORDS.get(outcome, outcome),
        "tone": TONES.get(outcome, ""),
        "reason": row.get("x_reason") or "",
        "operator": row.get("x_operator") or "",
        "perturbation": row.get("x_perturbation") or "",
        "task": ", ".join(row["tasks"]),
        "frames": row["length"],
        "length_s": row["length"] / reader.fps,
        "fps": row.get("x_measured_fps"),
        "skew_ms": None if row.get("x_skew_median_s") is None else 1e3 * row["x_skew_median_s"],
        "skew_max_ms": None if row.get("x_skew_max_s") is None else 1e3 * row["x_skew_max_s"],
        "gap_frames": int(episode.gap.sum()),
        "repeated": sum(camera["repeated"] for camera in cameras.values()),
        "lost": row.get("x_messages_dropped") or 0,
        "operator_frames": int(episode.intervention.sum()),
        "labels": row.get("x_labels") or [],
        "idle": idle,
        "idle_share": 100 * found.idle_share,
        "speed": found.speed,
        "operator_speed": found.operator_speed,
        "divergence": found.divergence,
        "diversity": found.diversity,
    }


def _films(
    reader: DatasetReader, episode: EpisodeData, found: EpisodeQuality
) -> tuple[list[str], list[dict[str, Any]]]:
    """Pictures of the whole episode, and those before each of its alarms, all of the first camera; one decoding."""
    length = len(episode.action)
    whole = np.linspace(0, length - 1, min(THUMBNAILS, length)).round().astype(int).tolist()
    before = {
        at: np.linspace(at - BEFORE_ALARM_S * reader.fps, at, ALARM_PICTURES)
        .round()
        .astype(int)
        .clip(0)
        .tolist()
        for at in found.alarms
    }
    wanted = {*whole, *(i for row in before.values() for i in row)}
    pictures: dict[int, str] = {}
    if reader.cameras:
        for i, rgb in enumerate(reader.pictures(episode.number, reader.cameras[0])):
            if i in wanted:
                pictures[i] = _thumbnail(rgb)
    alarms = [
        {
            "episode": episode.number,
            "at": at / reader.fps,
            "film": [
                {"before": (at - i) / reader.fps, "source": pictures[i]}
                for i in dict.fromkeys(row)
                if i in pictures
            ],
        }
        for at, row in before.items()
    ]
    return [pictures[i] for i in whole if i in pictures], alarms


def _thumbnail(rgb: np.ndarray) -> str:
    # For people to look at: what training and serving see goes through `prepare_image`.
    height = max(1, round(rgb.shape[0] * THUMBNAIL_WIDTH / rgb.shape[1]))
    small = cv2.resize(rgb, (THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii")


def _charts(
    reader: DatasetReader, episodes: Sequence[EpisodeData], judged: Sequence[EpisodeQuality]
) -> list[dict[str, str]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [WORDS.get(o, o) for o in (reader.rows[e.number].get("x_outcome") or "" for e in episodes)]
    colours = dict(zip(dict.fromkeys(names), pyplot.get_cmap("tab10").colors, strict=False))
    charts = []

    def draw(
        title: str, says: str, paint: Callable[[Any], None], size: tuple[float, float] = (5.2, 3.0)
    ) -> None:
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        paint(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        pyplot.close(figure)
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        charts.append({"title": title, "says": says, "source": source})

    def lengths(axes: Any) -> None:
        groups = {
            n: [len(e.action) / reader.fps for e, m in zip(episodes, names, strict=True) if m == n]
            for n in colours
        }
        axes.hist(
            list(groups.values()),
            bins=12,
            stacked=True,
            label=list(groups),
            color=[colours[n] for n in groups],
        )
        axes.set(xlabel="length [s]", ylabel="episodes")
        axes.legend(frameon=False)

    def speeds(axes: Any) -> None:
        points = [(e.number, q.speed, q.operator_speed) for e, q in zip(episodes, judged, strict=True)]
        for label, place, marker in (("all in motion", 1, "o"), ("operator", 2, "^")):
            drawn = [(p[0], p[place]) for p in points if p[place] is not None]
            if drawn:
                axes.plot(*zip(*drawn, strict=True), marker, label=label, alpha=0.8)
        axes.set(xlabel="episode", ylabel="median speed [ranges/s]", ylim=(0, None))
        axes.legend(frameon=False)

    def differences(axes: Any) -> None:
        for episode, found, name in zip(episodes, judged, names, strict=True):
            if found.divergence is not None:
                axes.plot(found.diversity, found.divergence, "o", color=colours[name])
                axes.annotate(str(episode.number), (found.diversity, found.divergence), fontsize=7)
        axes.set(xlabel="transition diversity [ranges]", ylabel="action divergence [ranges]")

    width = episodes[0].state.shape[1]
    named = reader.features["observation.state"].get("names")
    where = quality.coverage(
        episodes, reader.names("observation.state") if named else [*map(str, range(width))]
    )

    def columns(axes: Any) -> None:
        axes.imshow(where.shares, aspect="auto", cmap="viridis", vmin=0)
        axes.set_yticks(range(len(where.columns)), where.columns, fontsize=8)
        axes.set_xticks([-0.5, quality.CELLS - 0.5], ["1 %", "99 %"])
        for i, (low, high) in enumerate(zip(where.low, where.high, strict=True)):
            axes.text(quality.CELLS - 0.4, i, f" {low:.2f} to {high:.2f}", va="center", fontsize=7)

    def plane(axes: Any) -> None:
        for name, colour in colours.items():
            own = np.array([names[i] == name for i in where.episode])
            axes.plot(*where.plane[own].T, ".", ms=2, color=colour, alpha=0.5, label=name)
        axes.set(xlabel="first axis [ranges]", ylabel="second axis [ranges]")
        axes.legend(frameon=False, markerscale=4)

    draw("Length", "How long episodes are, by how they ended.", lengths)
    draw("Speed", "Of the fastest column; a range is what 98 % of all frames lie within.", speeds)
    draw(
        "Consistency",
        "Where episodes pass the same state: how much their actions differ over the next half second (less is easier to "
        "imitate), and how much what follows differs. After Belkhale et al. 2023.",
        differences,
    )
    draw(
        "Coverage by column",
        "Share of the frames in each tenth of a column's range [rad, m].",
        columns,
        (5.2, 3.4),
    )
    draw("Coverage", "All states in the plane of their largest spread.", plane)
    return charts
