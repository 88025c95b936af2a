"""What a set of episodes amounts to: success and alarm rates, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

SUCCESSES = ("success",)


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927), by default at 95 %.

    Raises:
        ValueError: the counts are not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be within 0..n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the formula touches the ends exactly, but for rounding.
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


def rates(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and rates of some episodes (dicts as in ``episode.json``).

    An alarm counts if it came before the episode's end. Rates without any episode of their kind are None.
    ``mean_detection_s`` is the mean time of the first alarm on failing episodes, from engagement [s].
    """
    succeeded = [e for e in episodes if e["outcome"] in SUCCESSES]
    failed = [e for e in episodes if e["outcome"] not in SUCCESSES]
    # An episode without a verdict (the system broke) says nothing about the monitor.
    judged = [e for e in failed if e["termination_reason"] != "system_error"]
    low, high = wilson(len(succeeded), len(episodes))
    detections = [e["first_alarm_s"] for e in judged if e["alarms"]]
    return {
        "n": len(episodes),
        "successes": len(succeeded),
        "success_rate": len(succeeded) / len(episodes) if episodes else None,
        "wilson_low": low,
        "wilson_high": high,
        "alarm_rate_on_success": _share(bool(e["alarms"]) for e in succeeded),
        "alarm_rate_on_failure": _share(bool(e["alarms"]) for e in judged),
        "mean_detection_s": sum(detections) / len(detections) if detections else None,
        "system_errors": len(failed) - len(judged),
    }


def summarise(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`rates` over all episodes, and under ``per_perturbation`` for each perturbation by its name."""
    names = sorted({e["perturbation"] for e in episodes}, key=lambda name: (name != "none", name))
    return {
        **rates(episodes),
        "per_perturbation": {n: rates([e for e in episodes if e["perturbation"] == n]) for n in names},
    }


def _share(hits: Iterable[bool]) -> float | None:
    values = list(hits)
    return sum(values) / len(values) if values else None
