"""What a denoiser learns: four objectives on the same networks, all of them losses on normalised chunks [B, H, D].

In all but `diffusion` a chunk is mixed with noise along a straight line, x = (1 - t) chunk + t noise, with t = 1 for noise and t = 0
for the chunk; the velocity of that line is v = noise - chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from vigil.train.model import PolicyNet

Loss = Callable[["PolicyNet", Tensor, Tensor], Tensor]

MEAN_FLOW_TIME = (-0.4, 1.0)  # mean and sigma of the logit of a time (Geng et al. 2025, table 1d)
ADAPTIVE_FLOOR = (
    1.0  # c of the adaptive weight (there, eq. 22, 1e-3): what is nearly right need not be learned hardest
)
DISPERSIVE_TEMPERATURE = 0.5  # Wang and He 2025, sec. 4


@dataclass(frozen=True)
class Objective:
    """One way to train.

    Attributes:
        loss: of network, embedding [B, E] and normalised chunk [B, H, D].
        levels: numbers that tell the network how noisy a chunk is.
        discrete: the level is an integer step of the DDPM.
        low_precision: whether its loss may be computed in bfloat16.
    """

    loss: Loss
    levels: int = 1
    discrete: bool = False
    low_precision: bool = True


def diffusion_loss(net: PolicyNet, embedding: Tensor, chunk: Tensor) -> Tensor:
    """Error of the velocity sqrt(a) noise - sqrt(1 - a) chunk (Salimans and Ho 2022, sec. 4) at a random step of the DDPM.

    Well conditioned at every step, also at the first, where the chunk is all noise.
    """
    step = torch.randint(0, net.config.diffusion_steps, (len(chunk),), device=chunk.device)
    noise = torch.randn_like(chunk)
    predicted = net.denoiser(net.noise(chunk, noise, step), embedding, step)
    return F.mse_loss(predicted.float(), net.velocity(chunk, noise, step))


def flow_loss(net: PolicyNet, embedding: Tensor, chunk: Tensor) -> Tensor:
    """Error of the straight path's velocity (Lipman et al. 2023, sec. 4.1 with sigma_min = 0; Liu et al. 2023)."""
    time = torch.rand(len(chunk), 1, device=chunk.device)
    noise = torch.randn_like(chunk)
    predicted = net.denoiser(mix(chunk, noise, time[..., None]), embedding, time)
    return F.mse_loss(predicted.float(), noise - chunk)


def mean_flow_loss(net: PolicyNet, embedding: Tensor, chunk: Tensor) -> Tensor:
    """Error of the average velocity u(x_t, r, t) over an interval r..t (Geng et al. 2025, algorithm 1).

    The target is v - (t - r) du/dt, the total derivative along the path, by one Jacobian-vector product. Squared errors are weighted by
    their own inverse (there, eq. 22). ``dispersive_weight`` adds `dispersive_loss`.
    """
    config = net.config
    mean, sigma = MEAN_FLOW_TIME
    times = torch.sigmoid(mean + sigma * torch.randn(len(chunk), 2, device=chunk.device)).sort(-1).values
    alike = torch.rand(len(chunk), device=chunk.device) >= config.mean_flow_ratio
    end = times[:, 1]
    begin = torch.where(alike, end, times[:, 0])
    noise = torch.randn_like(chunk)
    velocity = noise - chunk

    def average(x: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        films = net.denoiser.conditioning(embedding, interval(begin, end))
        features = net.denoiser.features(x, films)
        return net.denoiser.predict(features), features

    (predicted, features), (slope, _) = torch.func.jvp(
        average,
        (mix(chunk, noise, end[:, None, None]), begin, end),
        (velocity, torch.zeros_like(begin), torch.ones_like(end)),
    )
    target = (velocity - (end - begin)[:, None, None] * slope).detach()
    error = (predicted - target).square().flatten(1).sum(-1)
    loss = (error / (error.detach() + ADAPTIVE_FLOOR)).mean()
    if config.dispersive_weight:
        loss = loss + config.dispersive_weight * dispersive_loss(features)
    return loss


def dispersive_loss(features: Tensor) -> Tensor:
    """Pushes the features [B, ...] of a batch apart: a contrastive loss without positive pairs (Wang and He 2025, eq. 6)."""
    flat = features.flatten(1)
    near = torch.cdist(flat, flat).square() / (flat.shape[1] * DISPERSIVE_TEMPERATURE)
    return torch.logsumexp(-near.flatten(), 0) - 2 * torch.log(torch.tensor(float(len(flat))))


def streaming_loss(net: PolicyNet, embedding: Tensor, chunk: Tensor) -> Tensor:
    """Error of the velocity where the noise grows along the chunk (Høeg et al. 2024; Ruhe et al. 2024; Chen et al. 2024).

    Half of the samples are drawn from where the running sampler is, half from the whole way of its first chunk (see `staircase`).
    """
    config = net.config
    blocks = config.horizon // config.executed_steps
    phase = torch.rand(len(chunk), 1, device=chunk.device)
    phase = torch.where(torch.rand_like(phase) < 0.5, phase / blocks, phase)
    noise = torch.randn_like(chunk)
    level = staircase(phase, config.horizon, config.executed_steps)
    predicted = net.denoiser(mix(chunk, noise, level[..., None]), embedding, phase)
    return F.mse_loss(predicted.float(), noise - chunk)


OBJECTIVES = {
    "diffusion": Objective(diffusion_loss, discrete=True),
    "flow": Objective(flow_loss),
    # The derivative along the path is a small difference: bfloat16 has no digits for it.
    "mean_flow": Objective(mean_flow_loss, levels=2, low_precision=False),
    "streaming": Objective(streaming_loss),
}


def mix(chunk: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """A point of the straight line from the chunk (level 0) to noise (level 1)."""
    return (1 - level) * chunk + level * noise


def interval(begin: Tensor, end: Tensor) -> Tensor:
    """What MeanFlow's network reads of an interval: its end and its length, [B, 2] (Geng et al. 2025, table 1c)."""
    return torch.stack([end, end - begin], -1)


def staircase(phase: Tensor, horizon: int, emitted: int) -> Tensor:
    """Noise level of every step of a streaming chunk, [B, H]; ``phase`` [B, 1] goes from 1 to 0.

    One level per ``emitted`` steps: clip(block / blocks + phase, 0, 1). At phase 1 all is noise, at phase 0 the first block is clean
    and the others wait for their turn, each a stair noisier than the one before. A running stream goes from phase 1 / blocks to 0,
    then the chunk moves on by one block.
    """
    blocks = horizon // emitted
    stairs = torch.arange(horizon, device=phase.device) // emitted / blocks
    return (stairs + phase).clamp(0, 1)
