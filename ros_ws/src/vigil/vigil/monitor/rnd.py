"""RND-OE of FIPER: random network distillation on the policy's own embedding of the observation.

A predictor learns to repeat a frozen random network on the embeddings of successful roll-outs. Where it cannot, the
observation is new. The score, and the training loss, is the L2 norm of the difference (Roemer et al., NeurIPS 2025).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vigil.monitor.entropy import PUBLISHED_OFFSET
from vigil.monitor.features import Features
from vigil.monitor.graph import Session, distance_graph
from vigil.monitor.mlp import AdamW, Mlp
from vigil.monitor.score import OBSERVATION, Score, hold_out
from vigil.rig import Positive, Strict

Size = Annotated[int, Field(ge=1)]
CLIP = 10.0  # standard deviations: farther out is no more information, only overflow


class RandomNetworkDistillation(Score):
    """Distance between a frozen random network and its imitation, on the embedding."""

    name = "rnd"
    kind = OBSERVATION
    refits_alike = False

    class Settings(Strict):
        preset: Literal["small", "fiper"] = "small"
        target: tuple[Size, ...] = (256, 256)
        predictor: tuple[Size, ...] = (256, 256, 256)
        relu_tail: Annotated[int, Field(ge=0)] = 0
        outputs: Size = 64
        standardise: bool = True
        epochs: Size = 250
        batch: Size = 64
        rate: Positive = 1e-3
        final_rate: Positive = 1e-5
        decay: Annotated[float, Field(ge=0)] = 1e-5
        patience: Size = 20
        overfit_ratio: Annotated[float, Field(gt=1)] = 5.0
        overfit_after: Size = 20
        published: Annotated[
            bool,
            Field(
                description="validate on ticks instead of episodes, offsets of 1e-6, as the published code"
            ),
        ] = False

    @classmethod
    def published(cls) -> Settings:
        """The network and the training of the paper (34 million parameters)."""
        return cls.Settings(
            preset="fiper",
            target=(1024, 2048, 4096),
            predictor=(1024, 2048, 4096, 2048, 1024),
            relu_tail=2,
            outputs=512,
            standardise=False,
            batch=256,
            rate=1e-4,
            final_rate=1e-6,
            patience=7,
            published=True,
        )

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.used = np.empty(0, bool)  # [E], features that vary
        self.mean = self.std = np.empty(0, np.float32)  # [used]
        self.target: Mlp | None = None
        self.predictor: Mlp | None = None
        self._session: Session | None = None

    def fit(self, episodes: list[Features], seed: int) -> None:
        rng = np.random.default_rng(seed)
        s = self.settings
        ticks = np.concatenate([f.embedding for f in episodes])
        spread = ticks.std(axis=0)
        # A feature that never moved in calibration would make scores explode at its first move.
        self.used = np.ones(len(spread), bool) if s.published else spread > 1e-4 * spread.max()
        if not self.used.any():
            self.used[:] = True
        self.mean = ticks[:, self.used].mean(axis=0)
        self.std = np.maximum(spread[self.used], np.finfo(np.float32).tiny)
        if s.published:
            order = rng.permutation(len(ticks))
            held_out = max(1, len(ticks) // 10)
            x_held, x = self._inputs(ticks[order[:held_out]]), self._inputs(ticks[order[held_out:]])
        else:
            training, validation = hold_out(episodes, rng)
            x = self._inputs(np.concatenate([f.embedding for f in training]))
            x_held = self._inputs(np.concatenate([f.embedding for f in validation])) if validation else x
        size = int(self.used.sum())
        self.target = Mlp.orthogonal((size, *s.target, s.outputs), rng)
        predictor = Mlp.orthogonal((size, *s.predictor, s.outputs), rng, s.relu_tail)
        self.predictor = self._train(predictor, x, x_held, rng)
        self._session = None

    def score(self, features: Features) -> np.ndarray:
        offset = PUBLISHED_OFFSET if self.settings.published else 0.0
        if self._session is not None:
            return self._session(features.embedding).astype(np.float64) + offset
        x = self._inputs(features.embedding)
        return _distance(self.predictor.forward(x) + np.float32(offset), self.target.forward(x)) + offset

    def graph(self) -> bytes:
        standardise = self.settings.standardise
        return distance_graph(
            self.used,
            self.mean if standardise else np.zeros_like(self.mean),
            self.std if standardise else np.ones_like(self.std),
            CLIP if standardise else np.inf,
            (self.target, self.predictor),
            PUBLISHED_OFFSET if self.settings.published else 0.0,
        )

    def load(self, arrays: dict[str, np.ndarray], graph: bytes | None = None) -> None:
        self._session = Session(graph)

    def _inputs(self, embedding: np.ndarray) -> np.ndarray:
        x = embedding[:, self.used]
        if self.settings.standardise:
            x = np.clip((x - self.mean) / self.std, -CLIP, CLIP)
        return x.astype(np.float32)

    def _train(self, predictor: Mlp, x: np.ndarray, x_held: np.ndarray, rng: np.random.Generator) -> Mlp:
        s = self.settings
        y, y_held = self.target.forward(x), self.target.forward(x_held)
        optimiser = AdamW(predictor.parameters, s.decay)
        best, best_loss, waited = predictor.copy(), np.inf, 0
        for epoch in range(s.epochs):
            rate = s.final_rate + (s.rate - s.final_rate) * (1 + np.cos(np.pi * epoch / s.epochs)) / 2
            losses = []
            order = rng.permutation(len(x))
            for start in range(0, len(x), s.batch):
                batch = order[start : start + s.batch]
                inputs, out = predictor.trace(x[batch])
                difference = out - y[batch]
                norm = np.maximum(np.linalg.norm(difference, axis=1, keepdims=True), 1e-12)
                losses.append(norm.mean())
                by_output = (difference / norm / len(batch)).astype(np.float32)
                optimiser.step(predictor.gradients(by_output, inputs), rate)
            held = float(_distance(predictor.forward(x_held), y_held).mean())
            if held < best_loss:
                best, best_loss, waited = predictor.copy(), held, 0
            else:
                waited += 1
            if waited >= s.patience:
                break
            if epoch >= s.overfit_after and held > s.overfit_ratio * float(np.mean(losses)):
                break
        return best


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a - b, axis=1).astype(np.float64)
