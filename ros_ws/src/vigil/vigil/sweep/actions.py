"""Action error: how far the chunk that would have moved the arm is from what a demonstrator commanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vigil.errors import VigilError
from vigil.policy.chunks import Scorer, Situation, scorer_of, select
from vigil.policy.runtime import Encoded, PolicyRuntime
from vigil.policy.spec import BundleSpec, Sampler
from vigil.sweep.held_out import HeldOut

RESAMPLES = 2000


@dataclass(frozen=True)
class Drawing:
    """How the rig draws a chunk: ``period`` between two inferences [s], samples drawn before one is chosen, and how."""

    period: float
    samples: int
    selection: str
    seed: int = 0


@dataclass(frozen=True)
class ActionError:
    """Of one sampler; in units of each column's standard deviation in the demonstrations.

    Attributes:
        executed: mean over observations of the RMS over columns and over the steps that are due before the next chunk.
        low, high: 95 % interval of it, by bootstrap over episodes.
        whole: the same over all steps of the chunk.
        observations, episodes: what it is the mean of.
    """

    executed: float
    low: float
    high: float
    whole: float
    observations: int
    episodes: int


def inference_period(sampler: Sampler, spec: BundleSpec, rig_period: float) -> float:
    """[s] between two inferences: the rig's, but of a streaming sampler the time that its final steps last."""
    return rig_period if sampler.emitted is None else sampler.emitted * spec.step_dt


def periods(spec: BundleSpec, samplers: Sequence[Sampler], rig_period: float) -> list[float]:
    """All distances of observations [s] that the samplers of one bundle read."""
    found = {inference_period(sampler, spec, rig_period) for sampler in samplers}
    if spec.observation_steps > 1:
        found.add(spec.observation_dt or spec.step_dt)
    return sorted(found)


def chunk_errors(runtime: PolicyRuntime, episode: HeldOut, drawing: Drawing, number: int) -> np.ndarray:
    """Errors [n, 2] of one episode: over the executed steps, and over the whole chunk; n judged observations.

    The policy goes through the episode as it would live: memory and buffers are carried from one inference to the next,
    also where nobody is judged.

    Args:
        number: of the episode; noise depends on it and on the seed alone.
    """
    spec, sampler = runtime.bundle.spec, runtime.sampler
    rng = np.random.default_rng([drawing.seed, number])
    period = inference_period(sampler, spec, drawing.period)
    due = min(max(1, round(period / spec.step_dt)), spec.horizon)
    scale, scorer = np.array(spec.action_std, np.float32), scorer_of(drawing.selection)
    stride = max(1, round(period / episode.period))
    memory, buffer, errors = None, None, []
    for instant in range(0, len(episode.times), stride):
        images, state = observation(spec, episode, instant)
        encoded = runtime.encode(images, state, memory)
        memory = encoded.memory
        chunks, buffer = _draw(runtime, encoded, drawing.samples, rng, buffer)
        if not episode.judged[instant]:
            continue
        chunk = chunks[_choose(chunks, spec, scale, state, encoded, scorer)]
        wrong = ((chunk - episode.targets(instant, spec.horizon, spec.step_dt)) / scale) ** 2
        errors.append((np.sqrt(wrong[:due].mean()), np.sqrt(wrong.mean())))
    return np.array(errors).reshape(-1, 2)


def _choose(
    chunks: np.ndarray,
    spec: BundleSpec,
    scale: np.ndarray,
    state: np.ndarray,
    encoded: Encoded,
    scorer: Scorer,
) -> int:
    """As the node chooses, but that no chunk runs yet: what is judged is what each observation alone gives."""
    nothing = np.empty((0, len(scale)), np.float32)
    situation = Situation(spec.action_names, scale, spec.step_dt, state, encoded.embedding, nothing)
    return select(chunks, situation, scorer)


def _draw(
    runtime: PolicyRuntime, encoded: Encoded, k: int, rng: np.random.Generator, buffer: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    if runtime.sampler.streams:
        return runtime.stream(encoded, k, rng, buffer)
    return runtime.draw(encoded, k, rng), None


def observation(spec: BundleSpec, episode: HeldOut, instant: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pictures and state at an instant of the grid; of a policy that reads several, the newest last, the first repeated."""
    if spec.observation_steps == 1:
        return {name: episode.images[name][instant] for name in spec.cameras}, episode.states[instant]
    back = round((spec.observation_dt or spec.step_dt) / episode.period)
    rows = np.maximum(instant - back * np.arange(spec.observation_steps)[::-1], 0)
    return {name: episode.images[name][rows] for name in spec.cameras}, episode.states[rows]


def summarise(errors: Mapping[str, np.ndarray], seed: int = 0) -> ActionError:
    """The figures of one sampler from its errors [n, 2] by episode.

    Raises:
        VigilError: there is no error at all.
    """
    parts = [values for values in errors.values() if len(values)]
    if not parts:
        raise VigilError("no observation to judge: the demonstrations are shorter than the policy's period")
    executed, whole = np.concatenate(parts).mean(0)
    rng = np.random.default_rng(seed)
    sums, counts = np.array([part[:, 0].sum() for part in parts]), np.array([len(part) for part in parts])
    drawn = rng.integers(0, len(parts), (RESAMPLES, len(parts)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), (2.5, 97.5))
    return ActionError(float(executed), float(low), float(high), float(whole), int(counts.sum()), len(parts))
