"""The chunk that runs on the arm, how a new one goes on from it, and which of several candidates becomes the new one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vigil.arm.curves import SECOND, Steps
from vigil.errors import VigilError
from vigil.policy.runtime import Known
from vigil.policy.spec import BundleSpec
from vigil.rig import SELECTIONS

DECAY = 0.9  # per step: how much less a later step counts for the overlap of two chunks


@dataclass(frozen=True)
class Running:
    """A chunk that was sent to the arm. Step i is due at stamp + i * step_dt."""

    stamp: int  # [ns]
    step_dt: float  # [s]
    positions: np.ndarray  # [H, D] rad, m

    def at(self, stamp: int, count: int) -> tuple[np.ndarray, int]:
        """Its targets at the steps of a chunk stamped ``stamp`` [ns], and how many of those it covers.

        Between two of its steps they are those that the arm goes through (`vigil.arm.curves.Steps`); beyond its end, its last.

        Returns:
            [count, D] float32, and the number of leading rows that lie within this chunk; 0 if that began before this one.
        """
        step = round(self.step_dt * SECOND)
        curve = Steps(self.stamp, step, np.asarray(self.positions, float))
        instants = [stamp + i * step for i in range(count)]
        covered = 0 if stamp < self.stamp else sum(instant <= curve.end for instant in instants)
        return np.array([curve.at(instant)[0] for instant in instants], np.float32), covered


def guidance(count: int, frozen: int, covered: int) -> np.ndarray:
    """How firmly each of ``count`` steps of a new chunk is bound to the running one, [count] float32 from 1 to 0.

    The first ``frozen`` will be over when the new chunk takes effect: 1. The rest of the ``covered`` that both have falls
    exponentially, c (e^c - 1) / (e - 1) with c from 1 to 0; what only the new one has is free (Black et al., "Real-Time
    Execution of Action Chunking Flow Policies", 2025, eq. 5).
    """
    steps = np.arange(count)
    c = np.clip((covered - steps) / max(covered - frozen + 1, 1), 0.0, 1.0)
    weight = np.where(steps < min(frozen, covered), 1.0, c * np.expm1(c) / math.expm1(1.0))
    return np.where(steps < covered, weight, 0.0).astype(np.float32)


def continuation(running: Running, stamp: int, horizon: int, delay: float) -> Known | None:
    """What a chunk stamped ``stamp`` [ns] has to keep of the running one, if it takes effect ``delay`` [s] after its stamp.

    None if the running one does not reach so far: nothing is left that could be gone on from.
    """
    positions, covered = running.at(stamp, horizon)
    frozen = math.ceil(delay / running.step_dt - 1e-9)
    return Known(positions, guidance(horizon, frozen, covered)) if covered else None


@dataclass(frozen=True)
class Situation:
    """What a scorer may look at beside the candidates."""

    names: tuple[str, ...]  # D columns of the candidates
    scale: np.ndarray  # [D] standard deviation of each column in the demonstrations; rad, m
    step_dt: float  # [s] between two steps
    state: np.ndarray  # [N] or [n, N] float32, what the policy read; rad, m
    embedding: np.ndarray  # [E] float32
    running: (
        np.ndarray
    )  # [C, D] float32, the running chunk at the candidates' first C steps, 0 <= C <= H; rad, m


Scorer = Callable[[np.ndarray, Situation], np.ndarray]
"""Candidates [K, H, D] (rad, m) to scores [K]: the highest wins, the first of them if several are equal."""


def first(samples: np.ndarray, situation: Situation) -> np.ndarray:
    """Sample 0."""
    return -np.arange(len(samples), dtype=float)


def medoid(samples: np.ndarray, situation: Situation) -> np.ndarray:
    """The nearer to the mean of all, in units of the demonstrations, the better.

    The one that is chosen is a chunk that the policy really drew (the mean of two ways round an obstacle is not), but no
    outlier.
    """
    normalised = (samples / situation.scale).reshape(len(samples), -1)
    offset = normalised - normalised.mean(axis=0)
    return -np.einsum("kd,kd->k", offset, offset)


def overlap(samples: np.ndarray, situation: Situation) -> np.ndarray:
    """The nearer to the running chunk over the steps that both cover, the better; the medoid where none runs.

    Backward coherence (Liu et al., "Bidirectional Decoding", 2024) in units of the demonstrations: a policy that
    knows several ways keeps to the one that it has begun.
    """
    covered = len(situation.running)
    if not covered:
        return medoid(samples, situation)
    offset = (samples[:, :covered] - situation.running) / situation.scale
    return -np.einsum("khd,h->k", offset**2, DECAY ** np.arange(covered))


def scorer_of(selection: str) -> Scorer:
    """The scorer that ``policy.selection`` of a rig file names; one of the user's is imported.

    Raises:
        VigilError: there is none of this name.
    """
    if selection in SELECTIONS:
        return {"first": first, "medoid": medoid, "overlap": overlap}[selection]
    module, _, name = selection.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise VigilError(
            f"policy.selection {selection!r} cannot be imported ({type(error).__name__}: {error}): name a function of a "
            f"module that this Python finds, or one of {', '.join(SELECTIONS)}"
        ) from None
    if not callable(found):
        raise VigilError(f"policy.selection {selection!r} is no function, but a {type(found).__name__}")
    return found


def select(samples: np.ndarray, situation: Situation, scorer: Scorer) -> int:
    """Index of the best of ``samples`` [K, H, D].

    Raises:
        VigilError: the scorer failed, or gave anything else than K finite numbers.
    """
    if len(samples) == 1:
        return 0
    try:
        scores = np.asarray(scorer(samples, situation), float)
    except Exception as error:  # the scorer may be the user's
        raise VigilError(f"the scorer of policy.selection failed: {type(error).__name__}: {error}") from None
    if scores.shape != (len(samples),) or not np.isfinite(scores).all():
        raise VigilError(
            f"the scorer of policy.selection gave {np.array2string(scores, precision=3)} of shape {list(scores.shape)} for "
            f"{len(samples)} candidates: one finite number each is needed"
        )
    return int(scores.argmax())


def check_scorer(scorer: Scorer, spec: BundleSpec) -> None:
    """Try a scorer on chunks of a policy's shape before anything moves; VigilError as `select`."""
    width = len(spec.action)
    samples = np.random.default_rng(0).standard_normal((2, spec.horizon, width), np.float32)
    for covered in (0, spec.horizon // 2):
        situation = Situation(
            names=spec.action_names,
            scale=np.array(spec.action_std, np.float32),
            step_dt=spec.step_dt,
            state=np.zeros((*spec.history, len(spec.state)), np.float32),
            embedding=np.zeros(spec.embedding_dim, np.float32),
            running=np.zeros((covered, width), np.float32),
        )
        select(samples, situation, scorer)
