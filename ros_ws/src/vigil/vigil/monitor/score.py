"""The interface of every score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np

from vigil.errors import VigilError
from vigil.monitor.features import Features
from vigil.rig import Strict

Kind = Literal["observation", "action"]
OBSERVATION: Kind = "observation"
ACTION: Kind = "action"


def hold_out(episodes: list[Features], rng: np.random.Generator) -> tuple[list[Features], list[Features]]:
    """A fifth of the episodes to validate a network on, and the others to train it on: (training, validation).

    By episode, because ticks of one episode resemble each other. A single episode leaves nothing to validate on.
    """
    order = rng.permutation(len(episodes))
    held = max(1, len(episodes) // 5) if len(episodes) > 1 else 0
    return [episodes[i] for i in order[held:]], [episodes[i] for i in order[:held]]


class Score(ABC):
    """A number per tick, larger where the policy is less to be trusted.

    Fitted on successful roll-outs alone. One call scores one tick or a thousand; the result for a tick depends on
    that tick and on the ``context`` ticks before it only, and on ``recall`` embeddings.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    context: ClassVar[int] = 0  # earlier ticks that the score of one tick needs
    recall: ClassVar[int] = 0  # earlier ticks whose embeddings it needs (`Features.past`)
    least_k: ClassVar[int] = 1  # samples per tick below which the score says nothing
    windowed: ClassVar[bool] = True  # whether a sum over several ticks means anything
    learns: ClassVar[bool] = True  # whether `fit` does anything
    refits_alike: ClassVar[bool] = (
        True  # whether fits on most of the same roll-outs give scores of the same scale
    )

    class Settings(Strict):
        """What can be chosen; stored in the calibration file."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()

    def fit(self, episodes: list[Features], seed: int) -> None:  # noqa: B027 - some scores have nothing to learn
        """Learn what is normal from the segments of successful roll-outs."""

    def cross_scores(self, episodes: list[Features], folds: int, seed: int) -> list[np.ndarray]:
        """Fit on all episodes, and score each [T_i] as a model would that was fitted without it.

        By default in ``folds`` groups of episodes, each scored by a model of the others. The result is what a future
        success would get, as the scores of episodes that were fitted on are not.
        """
        self.fit(episodes, seed)
        if not self.learns:
            return [self.score(episode) for episode in episodes]
        if len(episodes) < 2:
            raise VigilError("one roll-out cannot be scored by a model of the others: record more")
        group = np.random.default_rng(seed).permutation(len(episodes)) % min(folds, len(episodes))
        result: list[np.ndarray] = [np.empty(0)] * len(episodes)
        for fold in range(group.max() + 1):
            other = type(self)(self.settings)
            other.fit([episodes[i] for i in np.flatnonzero(group != fold)], seed)
            for i in np.flatnonzero(group == fold):
                result[i] = other.score(episodes[i])
        return result

    @abstractmethod
    def score(self, features: Features) -> np.ndarray:
        """Scores [T], float64."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What `fit` learnt, for storage."""
        return {}

    def graph(self) -> bytes | None:
        """The score as an ONNX graph, where it is a network."""
        return None

    def load(  # noqa: B027 - or to restore
        self, arrays: dict[str, np.ndarray], graph: bytes | None = None
    ) -> None:
        """Restore what `arrays` and `graph` gave."""
