"""The report of a demonstration: one self-contained HTML page, and the same facts as JSON."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vigil.page import template
from vigil.run import charts
from vigil.run.story import Story

OUTCOME_WORDS = {
    "success": "success",
    "failure": "failure",
    "intervened_success": "saved by operator",
}


def render(stories: Sequence[Story], about: dict[str, Any]) -> str:
    """The page's HTML.

    Args:
        stories: the episodes in order.
        about: what the page says about the run: ``title``, ``rig``, ``task``, ``policy``, ``made`` (a date), ``notes``
            (list of sentences).
    """
    return template(Path(__file__).with_name("report.html"), shown).render(
        about=about, episodes=[_view(story) for story in stories], told=all(story.told for story in stories)
    )


def write(folder: Path, stories: Sequence[Story], about: dict[str, Any]) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into ``folder``; gives their paths."""
    page, data = folder / "report.html", folder / "report.json"
    replace_text(page, render(stories, about))
    document = {**about, "told": all(s.told for s in stories), "episodes": [_record(s) for s in stories]}
    replace_text(data, json.dumps(document, indent=2, allow_nan=False) + "\n")
    return data, page


def replace_text(path: Path, text: str) -> None:
    """Write a file such that a reader sees the old content or the new, never half of it."""
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def shown(value: Any, unit: str = "", digits: int = 2) -> str:
    """A fact for a person: a dash for what did not happen."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        smallest = 10.0**-digits
        value = f"< {smallest:.{digits}f}" if 0 < value < smallest else f"{value:.{digits}f}"
    return f"{value} {unit}".rstrip()


def _record(story: Story) -> dict[str, Any]:
    return {**story.facts, "as_told": story.told, "problems": list(story.problems)}


def _view(story: Story) -> dict[str, Any]:
    facts = story.facts
    tone = {"success": "good", "intervened_success": "saved"}.get(facts["outcome"], "bad")
    return {
        "facts": facts,
        "title": story.title,
        "expectation": story.expectation,
        "outcome": OUTCOME_WORDS.get(facts["outcome"], facts["outcome"]),
        "tone": tone,
        "told": story.told,
        "problems": story.problems,
        "earlier_takes": story.facts.get("earlier_takes", []),
        "chart": charts.timeline(story.spans, story.events, story.scores, story.duration),
        "scores": [{"name": s.name, "kind": s.kind} for s in story.scores],
        "films": {
            camera: [{"at": f.at, "source": _data_uri(f.jpeg)} for f in frames]
            for camera, frames in story.films.items()
        },
    }


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
