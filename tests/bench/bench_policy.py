"""What K samples cost, as ratios: one batched call against one sample, and against K single calls.

    .venv/bin/python tests/bench/bench_policy.py [--bundle models/NAME] [--threads 2] [--rounds 30]

Measurements of all variants are interleaved, so that other load on the machine hits them alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from vigil.policy.bundle import load_bundle
from vigil.policy.observation import prepare_image
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.spec import SPEC_FILE
from vigil.rig import load_rig, root

SAMPLES = (1, 8, 24, 32, 256)


def bundles(named: str) -> list[Path]:
    """The bundle named, or all that ship."""
    return [Path(named)] if named else sorted(p.parent for p in (root() / "models").glob(f"*/{SPEC_FILE}"))


def measure(runtime: PolicyRuntime, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every variant, [rounds] each."""
    spec, rng = runtime.bundle.spec, np.random.default_rng(0)
    frames = {name: rng.integers(0, 255, (480, 640, 3), np.uint8) for name in spec.cameras}
    images = {name: prepare_image(frame, spec.image_shape) for name, frame in frames.items()}
    state = np.zeros(len(spec.state), np.float32)
    encoded = runtime.encode(images, state)
    variants = {
        "two frames resized": lambda: [prepare_image(f, spec.image_shape) for f in frames.values()],
        "encoder": lambda: runtime.encode(images, state),
    }
    for k in SAMPLES:
        variants[f"K = {k}"] = lambda k=k: runtime.draw(encoded, k, rng)
    variants["32 calls of K = 1"] = lambda: [runtime.draw(encoded, 1, rng) for _ in range(32)]
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="", help="folder; all of models/ if left out")
    parser.add_argument("--threads", type=int, default=load_rig("franka_sim").policy.threads)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    found = bundles(args.bundle)
    if not found:
        print("no policy bundle in models/: train one first, or name one with --bundle")
    for path in found:
        runtime = PolicyRuntime(load_bundle(path), threads=args.threads)
        seconds = measure(runtime, args.rounds)
        print(
            f"{path.name}, {runtime.bundle.sampler_name} {runtime.sampler.steps}, {runtime.providers.name}, {args.threads} threads [ms]"
        )
        for name, values in seconds.items():
            median, high = np.percentile(values, (50, 99)) * 1e3
            print(f"  {name:20s} median {median:7.2f}  p99 {high:7.2f}")
        one, many, single = (np.median(seconds[n]) for n in ("K = 1", "K = 32", "32 calls of K = 1"))
        print(f"  K = 32 costs {many / one:.1f} times K = 1, and 1/{single / many:.1f} of 32 single calls")


if __name__ == "__main__":
    main()
