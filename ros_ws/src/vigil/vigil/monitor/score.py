"""The interface of every score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np

from vigil.monitor.features import Features
from vigil.rig import Strict

Kind = Literal["observation", "action"]
OBSERVATION: Kind = "observation"
ACTION: Kind = "action"


class Score(ABC):
    """A number per tick, larger where the policy is less to be trusted.

    Fitted on successful roll-outs alone. One call scores one tick or a thousand; the result for a tick depends on
    that tick and on the ``context`` ticks before it only.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    context: ClassVar[int] = 0  # earlier ticks that the score of one tick needs
    least_k: ClassVar[int] = 1  # samples per tick below which the score says nothing
    windowed: ClassVar[bool] = True  # whether a sum over several ticks means anything

    class Settings(Strict):
        """What can be chosen; stored in the calibration file."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def fit(self, episodes: list[Features], seed: int) -> None:  # noqa: B027 - some scores have nothing to learn
        """Learn what is normal from the segments of successful roll-outs."""

    @abstractmethod
    def score(self, features: Features) -> np.ndarray:
        """Scores [T], float64."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What `fit` learnt, for storage."""
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:  # noqa: B027 - or to restore
        """Restore what `arrays` gave."""
