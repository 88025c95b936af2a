"""A bundle's own network, run in torch without a graph: what an exported graph is to be faster than."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle
from vigil.policy.timing import inputs, noise_frames
from vigil.train.samplers import make_sampler
from vigil.train.weights import load_policy


def eager_calls(bundle: Bundle, threads: int, samples: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """``encoder`` and ``sampler, K = ...`` of the network that a bundle was made from, with its weights.

    Raises:
        VigilError: the bundle was not made by this trainer, or its sampler streams.
    """
    spec, sampler = bundle.spec, bundle.sampler
    if sampler.streams:
        raise VigilError(f"sampler {bundle.sampler_name} streams: tests/bench/bench_graphs.py compares these")
    net = load_policy(bundle.path, sampler=bundle.sampler_name).net
    loop = make_sampler(net, sampler.method, sampler.steps, sampler.inpaint)
    torch.set_num_threads(threads)
    images, state = inputs(spec, noise_frames(spec))
    given = [torch.from_numpy(images[name])[None] for name in spec.cameras] + [torch.from_numpy(state)[None]]
    shape = (spec.horizon, len(spec.action))
    free = [torch.zeros(1, *shape), torch.zeros(1, spec.horizon)] if sampler.inpaint else []

    def inferred(module: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.inference_mode():
                return module(*tensors)

        return call

    calls = {"encoder": inferred(net.encoder, *given)}
    embedding = calls["encoder"]()
    for k in samples:
        calls[f"sampler, K = {k}"] = inferred(loop, torch.randn(k, *shape), embedding, *free)
    return calls
