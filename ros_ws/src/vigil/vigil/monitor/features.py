"""What scores look at: the embedding, and where the sampled chunks would move the gripper.

`Evidence.flaw` says in words why one message cannot be judged; `rollout_features` reads a recorded episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vigil.errors import VigilError
from vigil.kinematics import CHAINS
from vigil.record.rollout import EndEffector, Rollout


@dataclass(frozen=True)
class Kinematics:
    """How the columns of a chunk become positions of the end effectors, one per arm."""

    end_effectors: tuple[EndEffector, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is looked at."""
        return tuple(name for end_effector in self.end_effectors for name in end_effector.columns)

    def positions(self, samples: np.ndarray, names: Sequence[str], step_dt: float) -> np.ndarray:
        """Positions [..., H, A, 3] of A end effectors for samples [..., H, D] whose columns are ``names``.

        Rates are integrated over the H steps of ``step_dt`` [s], from 0 on.

        Raises:
            VigilError: a column is missing; names those there are.
        """
        if missing := [name for name in self.columns if name not in names]:
            raise VigilError(
                f"samples have columns {list(names)}, the end effectors need {missing} as well: calibrate for this "
                "policy, or correct `end_effectors` of the roll-outs"
            )
        names = list(names)
        arms = []
        for arm in self.end_effectors:
            values = samples[..., [names.index(name) for name in arm.columns]]
            if arm.chain in CHAINS:
                arms.append(CHAINS[arm.chain].positions(values, arm.tool_offset))
                continue
            if arm.chain == "velocity":
                values = np.cumsum(values * step_dt, axis=-2)
            # The plane is a space without height.
            arms.append(np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 3 - values.shape[-1])]))
        return np.stack(arms, axis=-2)


@dataclass(frozen=True)
class Features:
    """T consecutive ticks of one episode segment, as the scores see them."""

    elapsed: np.ndarray  # float64 [T], s since the segment's first tick
    embedding: np.ndarray  # float32 [T, E]
    positions: np.ndarray  # float32 [T, K, H, A, 3], m, of each of A grippers at each step of each sample
    step_dt: float  # s between two steps
    past: np.ndarray | None = None  # float32 [P, E], embeddings of the segment's ticks before these

    def __len__(self) -> int:
        return len(self.elapsed)

    def __getitem__(self, ticks: slice) -> Features:
        start = ticks.indices(len(self))[0]
        return Features(
            self.elapsed[ticks],
            self.embedding[ticks],
            self.positions[ticks],
            self.step_dt,
            self.seen()[: len(self.seen()) - len(self) + start],
        )

    def seen(self) -> np.ndarray:
        """Embeddings [P + T, E] from as far back as they are known."""
        return self.embedding if self.past is None else np.concatenate([self.past, self.embedding])

    def append(self, later: Features) -> Features:
        """These ticks followed by those of ``later``."""
        return Features(
            np.concatenate([self.elapsed, later.elapsed]),
            np.concatenate([self.embedding, later.embedding]),
            np.concatenate([self.positions, later.positions]),
            later.step_dt,
            self.past,
        )


@dataclass(frozen=True)
class Evidence:
    """Content of one PolicyEvidence message, not yet trusted."""

    stamp: float  # s
    tick: int
    bundle_hash: str
    sampler: str
    sampler_steps: int
    names: tuple[str, ...]
    step_dt: float
    embedding: np.ndarray  # [E]
    k: int
    horizon: int
    samples: np.ndarray  # [K * H * D], row-major [K, H, D]

    def flaw(self) -> str:
        """Why this evidence cannot be judged, in words; empty if it can."""
        expected = self.k * self.horizon * len(self.names)
        if self.embedding.ndim != 1 or self.embedding.size == 0:
            return "the embedding is empty"
        if not np.isfinite(self.embedding).all():
            return f"the embedding has {np.count_nonzero(~np.isfinite(self.embedding))} non-finite values"
        if self.embedding.size > 1 and np.all(self.embedding == self.embedding[0]):
            return f"all {self.embedding.size} values of the embedding are {self.embedding[0]:g}"
        if expected == 0 or self.samples.size != expected:
            return (
                f"samples hold {self.samples.size} values, "
                f"k x horizon x columns = {self.k} x {self.horizon} x {len(self.names)} calls for {expected}"
            )
        if not np.isfinite(self.samples).all():
            return f"the samples have {np.count_nonzero(~np.isfinite(self.samples))} non-finite values"
        if not (np.isfinite(self.step_dt) and self.step_dt > 0):
            return f"step_dt is {self.step_dt} s, must be above 0"
        samples = self.samples.reshape(self.k, -1)
        if self.k > 1 and np.all(samples == samples[0]):
            return f"all {self.k} samples are identical: the sampler does not sample"
        return ""


def rollout_features(rollout: Rollout, kinematics: Kinematics) -> list[Features]:
    """Features of every segment under the policy's authority (`Rollout.segments`).

    Raises:
        VigilError: there is none, or a value is not finite.
    """
    segments = rollout.segments()
    if not segments:
        raise VigilError(f"roll-out {rollout.label} has no tick under the policy's authority: leave it out")
    features = []
    for ticks in segments:
        samples = rollout.samples[ticks]
        if not (np.isfinite(samples).all() and np.isfinite(rollout.embedding[ticks]).all()):
            raise VigilError(f"roll-out {rollout.label} has non-finite samples or embeddings: leave it out")
        stamps = rollout.stamps[ticks]
        features.append(
            Features(
                elapsed=stamps - stamps[0],
                embedding=rollout.embedding[ticks],
                positions=np.asarray(
                    kinematics.positions(samples, rollout.names, rollout.step_dt), np.float32
                ),
                step_dt=rollout.step_dt,
            )
        )
    return features
