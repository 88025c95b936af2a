"""Every score by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.monitor.baselines import BASELINES
from vigil.monitor.entropy import ActionChunkEntropy, Overlap, Spread
from vigil.monitor.features import Features
from vigil.monitor.kernel import KernelActions, KernelDwell, KernelVariance
from vigil.monitor.rnd import RandomNetworkDistillation
from vigil.monitor.score import OBSERVATION, Score


class Clock(Score):
    """Seconds since the policy took over: failing episodes are longer, so every detector has to beat this one."""

    name = "clock"
    kind = OBSERVATION
    windowed = False
    learns = False

    def score(self, features: Features) -> np.ndarray:
        return features.elapsed


SCORES: dict[str, type[Score]] = {
    score.name: score
    for score in (
        RandomNetworkDistillation,
        KernelVariance,
        KernelActions,
        KernelDwell,
        ActionChunkEntropy,
        Spread,
        Overlap,
        *BASELINES.values(),
        Clock,
    )
}


def make_score(name: str, settings: dict[str, Any] | None = None) -> Score:
    """An unfitted score; ``settings`` as in its ``Settings``, or ``{"preset": "fiper"}`` alone for `rnd`."""
    if name not in SCORES:
        raise VigilError(f"unknown score {name!r}: choose from {', '.join(SCORES)}")
    cls = SCORES[name]
    if cls is RandomNetworkDistillation and settings == {"preset": "fiper"}:
        return cls(RandomNetworkDistillation.published())
    return cls(cls.Settings.model_validate(settings or {}))
