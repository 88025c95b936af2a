"""A network as training has it, run in torch without a graph: what an exported bundle is to be faster than."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle
from vigil.policy.spec import ENCODER_FILE
from vigil.policy.timing import inputs, noise_frames
from vigil.train.config import TrainConfig
from vigil.train.model import DdimSampler, PolicyNet

ALIKE = 0.01  # share by which the numbers of parameters may differ: a graph holds some constants besides


def eager_calls(bundle: Bundle, threads: int, samples: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """``encoder`` and ``sampler, K = ...`` of a network of the default settings, with weights drawn at random.

    Weights change no times; that the networks are of one kind is checked by the numbers of their parameters.

    Raises:
        VigilError: the bundle was made with other settings, or its sampler has no counterpart here.
    """
    spec, sampler = bundle.spec, bundle.sampler
    if sampler.method != "ddim":
        raise VigilError(f"sampler {bundle.sampler_name} is {sampler.method}: only ddim has a counterpart")
    settings, width = TrainConfig(), len(spec.action)
    flat = {name: torch.full((width,), value) for name, value in (("action_low", -1.0), ("action_high", 1.0))}
    flat |= {
        name: torch.full((len(spec.state),), value)
        for name, value in (("state_low", -1.0), ("state_high", 1.0))
    }
    net = PolicyNet(settings, spec.cameras, flat, 1).eval()
    loop = DdimSampler(net, sampler.steps).eval()
    _same_size(bundle, ENCODER_FILE, net.encoder)
    _same_size(bundle, sampler.file, net.denoiser)
    torch.set_num_threads(threads)
    images, state = inputs(spec, noise_frames(spec))
    pictures = [torch.from_numpy(images[name])[None] for name in spec.cameras]
    row = torch.from_numpy(state)[None]
    with torch.inference_mode():
        embedding = net.encoder(*pictures, row)

    def inferred(module: nn.Module, *given: torch.Tensor) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.inference_mode():
                return module(*given)

        return call

    calls = {"encoder": inferred(net.encoder, *pictures, row)}
    for k in samples:
        calls[f"sampler, K = {k}"] = inferred(loop, torch.randn(k, spec.horizon, width), embedding)
    return calls


def _same_size(bundle: Bundle, file: str, module: nn.Module) -> None:
    graph = onnx.load(bundle.file(file)).graph
    here = sum(parameter.numel() for parameter in module.parameters())
    there = sum(
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    if abs(here - there) > ALIKE * there:
        raise VigilError(
            f"{bundle.file(file)} has {there} parameters, the network of these settings {here}: only bundles of the default settings are compared"
        )
