"""The graphs of a bundle by themselves: at the rig's pace, as the node calls them, and as fast as they go.

python -m vigil.bench.graph --rig RIG --ticks N     # what one tick costs without a node, as JSON
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from vigil.bench.ticks import SETTLING
from vigil.policy.bundle import Bundle, bundle_of
from vigil.policy.observation import prepare_image
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.timing import Timing, inputs, interleaved, noise_frames, sampling
from vigil.rig import RigConfig, load_rig
from vigil.scheduling import step_forward

SINGLE = 32  # calls of one sample each, beside one call of as many


def paced(rig: RigConfig, ticks: int, beside: int = 0) -> dict[str, list[float]]:
    """Seconds of what every tick calls (``resize``, ``encoder``, ``first``, ``rest``), [ticks] each, at the rig's period.

    At its pace, since between two ticks caches go cold: graphs that run without a pause are faster than any node could be.

    Args:
        beside: stamp of a node's tick [ns, system clock]; the calls then come half a period after each of its ticks.
    """
    cv2.setNumThreads(1)  # as the node
    policy, bundle = rig.policy, bundle_of(rig)
    runtime = PolicyRuntime(bundle, threads=policy.threads)
    frames = noise_frames(bundle.spec)
    images, state = inputs(bundle.spec, frames)
    encoded = runtime.encode(images, state)
    first = min(policy.candidates, policy.samples)
    calls: dict[str, Callable[[], Any]] = {
        "resize": lambda: [prepare_image(frame, bundle.spec.image_shape) for frame in frames.values()],
        "encoder": lambda: runtime.encode(images, state),
        "first": sampling(runtime, encoded, first),
    }
    if policy.samples > first:
        calls["rest"] = sampling(runtime, encoded, policy.samples - first)
    seconds: dict[str, list[float]] = {"rest": [0.0] * ticks, **{name: [] for name in calls}}
    period = round(policy.period * 1e9)
    due = beside + period // 2 if beside else time.time_ns()
    due += max(0, (time.time_ns() - due) // period) * period
    for i in range(-SETTLING, ticks):
        due += period
        time.sleep(max(0, due - time.time_ns()) / 1e9)
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if i >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def variants(runtime: PolicyRuntime, samples: tuple[int, ...], batch: int) -> dict[str, Callable[[], Any]]:
    """The calls of one bundle that are compared, by name."""
    spec = runtime.bundle.spec
    frames = noise_frames(spec)
    images, state = inputs(spec, frames)
    encoded = runtime.encode(images, state)
    one = sampling(runtime, encoded, 1)
    found: dict[str, Callable[[], Any]] = {
        f"{len(frames)} frames resized": lambda: [
            prepare_image(f, spec.image_shape) for f in frames.values()
        ],
        "encoder": lambda: runtime.encode(images, state),
    }
    found |= {f"sampler, K = {k}": sampling(runtime, encoded, k) for k in sorted({1, *samples, batch})}
    return {**found, f"{batch} calls of K = 1": lambda: [one() for _ in range(batch)]}


def measure(
    bundle: Bundle,
    threads: int,
    samples: tuple[int, ...],
    rounds: int,
    others: Mapping[str, Callable[[], Any]],
    advance: Callable[[], None],
) -> dict[str, Timing]:
    """Time all calls of a bundle in turns, and ``others`` among them."""
    runtime = PolicyRuntime(bundle, threads=threads)
    return interleaved({**variants(runtime, samples, SINGLE), **others}, rounds, advance)


def main() -> None:
    """Print the seconds of `paced` as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rig", required=True)
    parser.add_argument("--ticks", type=int, required=True)
    parser.add_argument("--beside", type=int, default=0)
    args = parser.parse_args()
    step_forward(all_threads=True)  # as the node; threads of the graphs inherit it
    seconds = paced(load_rig(args.rig), args.ticks, args.beside)
    print(json.dumps({name: list(np.round(values, 7)) for name, values in seconds.items()}))


if __name__ == "__main__":
    main()
