"""What one tick of the policy costs beside its graphs, part by part, in one process without DDS.

    .venv/bin/python tests/bench/bench_tick.py [--bundle models/NAME] [--threads 1] [--rounds 200]

Two cameras of 640x480. All parts are measured in turns, so that other load on the machine hits them alike. What the whole node adds
over real DDS is measured by `vigil bench policy`.
"""

from __future__ import annotations

import argparse

import numpy as np

from vigil.arm.curves import SECOND
from vigil.policy.bundle import load_bundle
from vigil.policy.chunks import Running, Situation, scorer_of, select
from vigil.policy.observation import Frame, Observation, prepare_image
from vigil.policy.outlet.node import chunk_message, evidence_message
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.ticker import Ticker
from vigil.policy.timing import Timing, interleaved
from vigil.rig import load_rig, resolve


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--bundle", default="", help="folder; the rig's if left out")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=200)
    arguments = options.parse_args()
    rig, rng = load_rig("franka_sim"), np.random.default_rng(0)
    bundle = load_bundle(resolve(arguments.bundle) if arguments.bundle else rig.bundle_path())
    runtime, spec = PolicyRuntime(bundle, threads=arguments.threads), bundle.spec
    ticker = Ticker(runtime, rig.policy)
    frames = {name: rng.integers(0, 255, (480, 640, 3), np.uint8) for name in spec.cameras}
    state = np.zeros(len(spec.state), np.float32)
    stamp = [1_000 * SECOND]

    def whole() -> None:
        stamp[0] += SECOND // 5
        tick = ticker.begin(
            Observation(stamp[0], 0, {name: (Frame(rgb),) for name, rgb in frames.items()}, state),
            driving=True,
        )
        ticker.sent(tick, 0.02)
        samples = ticker.finish(tick)
        chunk_message(spec, tick, 0, 0.02)
        evidence_message(bundle, tick, 0, samples)

    observation = Observation(stamp[0], 0, {name: (Frame(rgb),) for name, rgb in frames.items()}, state)
    prepared = observation.prepared(spec.image_shape)
    encoded = runtime.encode(prepared, state)
    samples = runtime.draw(encoded, rig.policy.samples, rng)
    candidates = samples[: rig.policy.candidates]
    running = Running(stamp[0], spec.step_dt, samples[0])
    scale = np.array(spec.action_std, np.float32)
    situation = Situation(spec.action_names, scale, spec.step_dt, state, encoded.embedding, samples[0][:0])
    tick = ticker.begin(observation)
    scorer = scorer_of(rig.policy.selection)

    def graphs() -> None:
        made = runtime.encode(prepared, state)
        runtime.draw(made, len(candidates), rng)
        runtime.draw(made, rig.policy.samples - len(candidates), rng, first=False)

    parts = {
        "whole tick, messages included": whole,
        "graphs alone, as the tick calls them": graphs,
        "pictures of two cameras": lambda: [prepare_image(rgb, spec.image_shape) for rgb in frames.values()],
        "the running chunk at the new steps": lambda: running.at(stamp[0] + SECOND // 5 + 7, spec.horizon),
        "choice among the candidates": lambda: select(candidates, situation, scorer),
        "message of the chunk": lambda: chunk_message(spec, tick, 0, 0.02),
        "message of the evidence": lambda: evidence_message(bundle, tick, 0, samples),
    }
    timed = interleaved(parts, arguments.rounds)
    print(
        f"{bundle.name}, K = {rig.policy.samples}, {arguments.threads} threads, {arguments.rounds} rounds [ms]"
    )
    whole_tick, bare = timed["whole tick, messages included"], timed["graphs alone, as the tick calls them"]
    timed["the tick beside its graphs"] = Timing(whole_tick.seconds - bare.seconds)
    for name, timing in timed.items():
        print(f"  {name:38s} median {timing.median:7.3f}  p99 {timing.p99:7.3f}")


if __name__ == "__main__":
    main()
