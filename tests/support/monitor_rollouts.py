"""Roll-outs with a known answer: a policy on a low-dimensional manifold that leaves it, and hesitates, when it fails.

By default the first three columns of the samples are gripper positions, so no arm model takes part; `for_policy` gives
roll-outs in the joints of a Franka, labelled as some bundle's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vigil.monitor.features import Kinematics
from vigil.policy.bundle import Bundle
from vigil.record.rollout import POLICY, EndEffector, Episode, Rollout

NAMES = ("x", "y", "z", "gripper")
CARTESIAN = Kinematics((EndEffector(chain="position", columns=("x", "y", "z")),))
E, K, H, STEP_DT, PERIOD = 32, 32, 16, 0.05, 0.2
HASH = "ab" * 32


def make_rollout(
    rng: np.random.Generator, *, failing: bool = False, k: int = K, shift: float = 0.6
) -> Rollout:
    """One episode: 24 to 32 ticks if it succeeds, 60 if it fails (from a random tick on)."""
    ticks = 60 if failing else int(rng.integers(24, 33))
    progress = np.minimum(np.arange(ticks) / 28, 1.0)
    place = rng.uniform(-1, 1, 2)
    onset = int(rng.integers(6, 20)) if failing else ticks
    strayed = np.arange(ticks) >= onset
    mixing = np.random.default_rng(7).standard_normal((6, E)) / 2
    cause = np.stack(
        [np.sin(3 * progress), np.cos(3 * progress), progress, *np.broadcast_to(place, (ticks, 2)).T]
    )
    astray = shift * np.where(strayed, rng.uniform(1, 2), 0.0)
    embedding = np.tanh(np.vstack([cause, astray]).T @ mixing) + 0.02 * rng.standard_normal((ticks, E))
    steps = progress[:, None] + np.arange(H) * STEP_DT / 5.6
    path = np.stack([0.4 + 0.2 * steps, 0.2 * np.sin(3 * steps) + 0.05 * place[0], 0.3 - 0.2 * steps**2], -1)
    hesitation = np.where(strayed, 6.0, 1.0 + np.exp(-(((progress - 0.4) / 0.1) ** 2)))
    noise = 0.004 * hesitation[:, None, None, None] * rng.standard_normal((ticks, k, 1, 3))
    samples = np.concatenate([path[:, None] + noise, np.full((ticks, k, H, 1), 0.04)], axis=-1)
    return Rollout(
        stamps=0.5 + PERIOD * np.arange(ticks),
        tick=np.arange(ticks, dtype=np.uint64),
        embedding=embedding,
        samples=samples,
        names=NAMES,
        step_dt=STEP_DT,
        authority=np.full(ticks, POLICY),
        joint_positions=np.zeros((ticks, 4)),
        joint_names=NAMES,
        episode=Episode(
            outcome="failure" if failing else "success",
            duration_s=ticks * PERIOD,
            perturbation="object_swapped" if failing else "none",
            bundle_hash=HASH,
            sampler="ddim",
            sampler_steps=10,
        ),
    )


def for_policy(rollout: Rollout, bundle: Bundle) -> Rollout:
    """The same episode as if the policy in ``bundle`` had run it: in joints, with an embedding of its size."""
    names = bundle.spec.action_names
    samples = np.zeros((*rollout.samples.shape[:3], len(names)), np.float32)
    posture = {"fr3_joint2": -0.4, "fr3_joint4": -2.2, "fr3_joint6": 1.8, "fr3_joint7": 0.7854}
    for name, angle in posture.items():
        samples[..., names.index(name)] = angle
    for name, axis in (("fr3_joint2", 0), ("fr3_joint1", 1), ("fr3_joint4", 2)):
        samples[..., names.index(name)] += rollout.samples[..., axis]
    policy = {
        "bundle_hash": bundle.content_hash,
        "sampler": bundle.sampler_name,
        "sampler_steps": bundle.sampler.steps,
        "rig": "franka_sim",
    }
    return replace(
        rollout,
        embedding=rollout.embedding[:, : bundle.spec.embedding_dim],
        samples=samples,
        names=names,
        joint_positions=np.zeros((len(rollout), len(names))),
        joint_names=names,
        episode=rollout.episode.model_copy(update=policy),
    )


def make_rollouts(n: int, *, failing: bool = False, seed: int = 0) -> list[Rollout]:
    """``n`` independent episodes."""
    rng = np.random.default_rng(seed)
    return [make_rollout(rng, failing=failing) for _ in range(n)]
