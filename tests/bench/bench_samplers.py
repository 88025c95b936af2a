"""Every sampler of a bundle on demonstrations: how far the steps that would be executed are off, and what a call costs.

    .venv/bin/python tests/bench/bench_samplers.py BUNDLE ROWS [--episodes 20] [--samples 32] [--threads 1]

ROWS is the file that `vigil train --cache` wrote (or dataset.npz of a run). Observations are those of whole episodes, one per call, as
the policy node takes them: a streaming sampler carries its chunk on from one to the next. Errors are of the steps executed until the
next call, averaged over joints [rad] and gripper [m], with a 95 % interval by bootstrap over episodes. Calls are timed with K samples,
samplers interleaved. Episodes are the last ones of ROWS; `vigil train` draws those it keeps for validation by seed, so most of these
were in its training: the error compares samplers, and is no test of the policy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from vigil.policy.bundle import load_bundle
from vigil.policy.runtime import Encoded, PolicyRuntime


def errors(runtime: PolicyRuntime, rows: dict[str, np.ndarray], encoded: list[Encoded], k: int) -> np.ndarray:
    """Mean absolute error of the executed steps of all K samples, per episode [E]."""
    spec, sampler = runtime.bundle.spec, runtime.sampler
    rng, found, buffer, last = np.random.default_rng(0), {}, None, None
    for i, episode in enumerate(rows["episode"]):
        if sampler.streams:
            buffer = buffer if episode == last else None
            chunks, buffer = runtime.stream(encoded[i], k, rng, buffer)
        else:
            chunks = runtime.draw(encoded[i], k, rng)
        last = episode
        error = np.abs(chunks - rows["chunks"][i])[:, : spec.executed].mean()
        found.setdefault(episode, []).append(error)
    return np.array([np.mean(values) for values in found.values()])


def call_seconds(
    runtimes: dict[str, PolicyRuntime], encoded: Encoded, k: int, rounds: int
) -> dict[str, float]:
    """Median seconds of one call of each sampler."""
    rng, runs = np.random.default_rng(0), {}
    for name, runtime in runtimes.items():
        if runtime.sampler.streams:
            _, buffer = runtime.stream(encoded, k, rng, None)
            runs[name] = lambda r=runtime, b=buffer: r.stream(encoded, k, rng, b)
        else:
            runs[name] = lambda r=runtime: r.draw(encoded, k, rng)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--samples", type=int, default=32, help="K")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    spec = load_bundle(args.bundle).spec
    with np.load(args.rows) as stored:
        episode = stored["episode"]
        chosen = np.flatnonzero(episode >= np.unique(episode)[-args.episodes :][0])
        # One observation per call, from each episode's first on.
        first = np.searchsorted(episode, episode[chosen])
        chosen = chosen[(chosen - first) % spec.executed == 0]
        rows = {name: stored[name][chosen] for name in ("episode", "states", "chunks")}
        images = {name: stored[f"images_{name}"][chosen] for name in spec.cameras}
    runtimes = {
        name: PolicyRuntime(load_bundle(args.bundle, name), threads=args.threads) for name in spec.samplers
    }
    encoder = next(iter(runtimes.values()))
    encoded = [
        encoder.encode({name: images[name][i] for name in images}, rows["states"][i])
        for i in range(len(chosen))
    ]
    seconds = {k: call_seconds(runtimes, encoded[0], k, args.rounds) for k in (1, args.samples)}
    rng, base = np.random.default_rng(0), spec.default_sampler
    print(
        f"{args.bundle.name}: {len(chosen)} observations of {args.episodes} episodes, {args.threads} threads"
    )
    print(
        f"{'sampler':20} {'error':>9}  {'95 % interval':20} {'K = 1':>9} {f'K = {args.samples}':>9} {f'to {base}':>10}"
    )
    for name, runtime in runtimes.items():
        values = errors(runtime, rows, encoded, args.samples)
        draws = rng.choice(values, (2000, len(values))).mean(1)
        low, high = np.percentile(draws, (2.5, 97.5))
        one, many = (seconds[k][name] for k in (1, args.samples))
        print(
            f"{name + ' ' + str(runtime.sampler.steps):20} {values.mean():9.5f}  {low:.5f} to {high:.5f}   "
            f"{one * 1e3:6.2f} ms {many * 1e3:6.2f} ms {many / seconds[args.samples][base]:10.3f}"
        )


if __name__ == "__main__":
    main()
