"""Every backbone and sampler: the exported graph against the same module in torch, and against one call per step of its denoiser.

    .venv/bin/python tests/bench/bench_graphs.py [--samples 32] [--threads 1] [--rounds 40] [--only unet]

Weights are random, sizes are those that ship (the time does not depend on values). Variants are interleaved, so that other load on
the machine hits them alike; ratios are medians over rounds, with 95 % intervals by bootstrap. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from vigil.policy.spec import EMBEDDING, NOISE_INPUT
from vigil.policy.timing import Timing, interleaved
from vigil.train.backbones import BACKBONES
from vigil.train.config import TrainConfig
from vigil.train.export import Graph, sampler_graphs
from vigil.train.model import PolicyNet
from vigil.train.samplers import SAMPLERS, SamplerModule, make_sampler

DIM = 8
WIDTHS = {"mlp": 512, "unet": 96, "transformer": 192}
BLOCKS = {"mlp": 4, "unet": 3, "transformer": 4}
SAMPLER_STEPS = {"ddim": 10, "dpm_solver": 5, "euler": 5, "midpoint": 6, "mean_flow": 1, "streaming": 1}
LEAST = 1.3  # times as fast as torch
RESAMPLES = 2_000  # of a bootstrap


class Step(nn.Module):
    """One call of the denoiser, as a loop outside of the graph would need it."""

    def __init__(self, net: PolicyNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, noise: Tensor, embedding: Tensor, level: Tensor) -> Tensor:
        return self.net.denoiser(noise, embedding, level)


def policy(backbone: str, method: str) -> PolicyNet:
    config = TrainConfig(
        backbone=backbone,
        objective=SAMPLERS[method].objective,
        denoiser_width=WIDTHS[backbone],
        denoiser_blocks=BLOCKS[backbone],
    )
    ones = torch.ones(DIM)
    ranges = {"state_low": -ones, "state_high": ones, "action_low": -ones, "action_high": ones}
    net = PolicyNet(config, ("scene",), ranges, 0)
    for parameter in net.denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net.eval()


def session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def variants(
    sampler: SamplerModule, folder: Path, samples: int, threads: int
) -> dict[str, Callable[[], object]]:
    """What is measured of one sampler, ready to run."""
    net, rng = sampler.net, np.random.default_rng(0)
    graph = sampler_graphs(sampler, "loop.onnx")[0]
    graph.write(folder)

    def many(name: str, value: Tensor) -> Tensor:
        if name == EMBEDDING:
            return value
        return torch.from_numpy(rng.standard_normal((samples, *value.shape[1:]), np.float32))

    inputs = {name: many(name, value) for name, value in graph.inputs.items()}
    feed = {name: value.numpy() for name, value in inputs.items()}
    loop = session(folder / graph.file, threads)
    level = net.denoiser.levels
    discrete = hasattr(net, "alpha_bar")
    one = torch.zeros(1, dtype=torch.long) if discrete else torch.full((1, level), 0.5)
    noise = torch.from_numpy(rng.standard_normal((samples, net.config.horizon, DIM), np.float32))
    step = Graph(
        "step.onnx",
        Step(net).eval(),
        {NOISE_INPUT: noise, EMBEDDING: inputs[EMBEDDING], "level": one},
        ("velocity",),
    )
    step.write(folder)
    single = session(folder / step.file, threads)
    single_feed = {name: value.numpy() for name, value in step.inputs.items()}

    def eager() -> object:
        with torch.inference_mode():
            return sampler(*inputs.values())

    return {
        "graph": lambda: loop.run(None, feed),
        "torch": eager,
        "calls": lambda: [single.run(None, single_feed) for _ in range(sampler.steps)],
    }


def ratio(other: Timing, graph: Timing) -> tuple[float, float, float]:
    """How many times as long the other takes, round by round: the median, and its 95 % interval."""
    rounds = other.seconds / graph.seconds
    drawn = np.random.default_rng(0).choice(rounds, (RESAMPLES, len(rounds)))
    return float(np.median(rounds)), *np.percentile(np.median(drawn, axis=1), [2.5, 97.5])


def chosen(only: str) -> Iterator[tuple[str, str]]:
    for backbone in BACKBONES:
        for method in SAMPLERS:
            if only in f"{backbone} {method}":
                yield backbone, method


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=32, help="K")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="part of 'backbone sampler'")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"K = {args.samples}, {args.threads} threads, medians of {args.rounds} [ms]; ratios to the graph's time"
    )
    print(
        f"{'backbone':12} {'sampler':14} {'MB':>5} {'graph':>7} {'torch':>7} {'calls':>7} {'torch/graph':>18} {'calls/graph':>18}"
    )
    slow = []
    for backbone, method in chosen(args.only):
        sampler = make_sampler(policy(backbone, method), method, SAMPLER_STEPS[method])
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            runs = variants(sampler, folder, args.samples, args.threads)
            timed = interleaved(runs, args.rounds)
            size = (folder / "loop.onnx").stat().st_size / 1e6
        graph, eager, calls = (timed[name] for name in ("graph", "torch", "calls"))
        faster, steps = ratio(eager, graph), ratio(calls, graph)
        print(
            f"{backbone:12} {method + ' ' + str(sampler.steps):14} {size:5.1f} {graph.median:7.2f} {eager.median:7.2f} "
            f"{calls.median:7.2f} {_with_interval(faster):>18} {_with_interval(steps):>18}",
            flush=True,
        )
        if faster[0] < LEAST or steps[2] < 1.0:
            slow.append(f"{backbone} {method}")
    print(f"below {LEAST} times torch, or surely slower than single calls: {', '.join(slow) or 'none'}")


def _with_interval(found: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*found)


if __name__ == "__main__":
    main()
