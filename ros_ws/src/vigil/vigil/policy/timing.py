"""How long the parts of a policy take, measured such that other load on the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.policy.observation import prepare_image
from vigil.policy.runtime import Encoded, PolicyRuntime
from vigil.policy.spec import BundleSpec

WARM_UP = 3  # calls of each variant that do not count


@dataclass(frozen=True)
class Timing:
    """Durations [s] of one piece of work, [n], in the order of the rounds."""

    seconds: np.ndarray

    @property
    def median(self) -> float:
        """In ms."""
        return float(np.median(self.seconds)) * 1e3

    @property
    def p99(self) -> float:
        """99th percentile in ms; of less than 100 rounds it lies next to the largest."""
        return float(np.percentile(self.seconds, 99)) * 1e3

    def __add__(self, other: Timing) -> Timing:
        """Both, one after the other: round by round."""
        return Timing(self.seconds + other.seconds)


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int, advance: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time every variant once per round, in turns; what else runs on the machine then falls on all of them.

    Args:
        advance: called after every round.
    """
    if rounds < 1:
        raise VigilError(f"--rounds is {rounds}: give a number from 1 up")
    for work in variants.values():
        for _ in range(WARM_UP):
            work()
    seconds = {name: np.empty(rounds) for name in variants}
    for i in range(rounds):
        for name, work in variants.items():
            began = time.perf_counter()
            work()
            seconds[name][i] = time.perf_counter() - began
        advance()
    return {name: Timing(values) for name, values in seconds.items()}


def noise_frames(spec: BundleSpec, height: int = 480, width: int = 640) -> dict[str, np.ndarray]:
    """A frame of noise per camera, uint8 [height, width, 3]: pictures that no kernel finds easy."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (height, width, 3), np.uint8) for name in spec.cameras}


def inputs(spec: BundleSpec, frames: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What `PolicyRuntime.encode` takes, made of one frame per camera; a history is that frame over and over."""
    images = {name: prepare_image(frame, spec.image_shape) for name, frame in frames.items()}
    state = np.zeros(len(spec.state), np.float32)
    if spec.observation_steps == 1:
        return images, state
    repeat = lambda value: np.repeat(value[None], spec.observation_steps, 0)  # noqa: E731
    return {name: repeat(image) for name, image in images.items()}, repeat(state)


def sampling(runtime: PolicyRuntime, encoded: Encoded, k: int) -> Callable[[], np.ndarray]:
    """One call of the sampler for ``k`` chunks; of a streaming one a call that carries them on, as all but the first do."""
    rng = np.random.default_rng(0)
    if not runtime.sampler.streams:
        return lambda: runtime.draw(encoded, k, rng)
    _, buffer = runtime.stream(encoded, k, rng, None)
    return lambda: runtime.stream(encoded, k, rng, buffer)[0]


def sampler_timings(
    runtimes: Sequence[PolicyRuntime],
    samples: Sequence[int],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[int, Timing]]:
    """Of each runtime the time from a prepared observation to its chunks: encoder and one call of the sampler, by K.

    All of them are measured in turns. Runtimes of one bundle share an encoder, which each runs by itself here.
    """
    variants: dict[str, Callable[[], Any]] = {}
    for i, runtime in enumerate(runtimes):
        images, state = inputs(runtime.bundle.spec, noise_frames(runtime.bundle.spec))
        encoded = runtime.encode(images, state)
        variants[f"{i} encoder"] = lambda r=runtime, x=images, s=state: r.encode(x, s)
        variants |= {f"{i} {k}": sampling(runtime, encoded, k) for k in samples}
    timed = interleaved(variants, rounds, advance)
    return [{k: timed[f"{i} encoder"] + timed[f"{i} {k}"] for k in samples} for i in range(len(runtimes))]
