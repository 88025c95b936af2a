"""The policy's network: one small ResNet per camera, a joint embedding, and a denoiser of chunks (`vigil.train.backbones`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigil.train.backbones import BACKBONES
from vigil.train.config import TrainConfig
from vigil.train.objectives import OBJECTIVES


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip (He et al. 2016, basic block), with one GroupNorm.

    On a CPU a norm costs as much as its convolution; one per block trains as well here.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(channels_out // 8, channels_out)
        same = stride == 1 and channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        return F.relu(self.skip(x) + self.norm(self.conv2(y)))


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of each feature map (Finn et al. 2016); [B, C, h, w] -> [B, 2 C] in -1..1."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weights = x.reshape(b, c, h * w).float().softmax(-1)
        ys = torch.linspace(-1, 1, h, device=x.device).repeat_interleave(w)
        xs = torch.linspace(-1, 1, w, device=x.device).repeat(h)
        return torch.cat([weights @ xs, weights @ ys], -1)


class CameraNet(nn.Module):
    """One camera's picture [B, 3, s, s] in 0..1 -> keypoints [B, 2 * keypoints].

    Stride 4 at once (a picture's full-size maps cost most of a CPU step), then 8 and no more: the last map stays fine
    enough to place a cube to some millimetres.
    """

    def __init__(self, width: int, keypoints: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 2 * width, 7, 4, 3, bias=False),
            nn.GroupNorm(width // 4, 2 * width),
            nn.ReLU(),
            ResidualBlock(2 * width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
            nn.Conv2d(4 * width, keypoints, 1),
        )
        self.softmax = SpatialSoftmax()

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(self.net(x))


class Encoder(nn.Module):
    """Pictures and raw state -> embedding [B, E].

    Normalisation of pictures and of the state happens in here, so that training and serving cannot differ.
    """

    def __init__(
        self, config: TrainConfig, cameras: tuple[str, ...], state_low: Tensor, state_high: Tensor
    ) -> None:
        super().__init__()
        self.cameras = cameras
        self.crop = config.crop
        self.nets = nn.ModuleDict({name: CameraNet(config.width, config.keypoints) for name in cameras})
        self.register_buffer("state_low", state_low)
        self.register_buffer("state_high", state_high)
        features = 2 * config.keypoints * len(cameras) + len(state_low)
        self.trunk = nn.Sequential(
            nn.Linear(features, 256),
            nn.SiLU(),
            nn.Linear(256, config.embedding),
            nn.LayerNorm(config.embedding),
        )

    def normalise_state(self, state: Tensor) -> Tensor:
        """Raw state [B, S] -> -1..1 over the range of the demonstrations."""
        return 2 * (state - self.state_low) / (self.state_high - self.state_low) - 1

    def pictures(self, images: Tensor) -> Tensor:
        """uint8 [B, s, s, 3] -> float [B, 3, crop, crop], centre crop."""
        margin = (images.shape[1] - self.crop) // 2
        images = images[:, margin : margin + self.crop, margin : margin + self.crop]
        return images.permute(0, 3, 1, 2).float() / 255

    def embed(self, pictures: list[Tensor], state: Tensor) -> Tensor:
        """Prepared pictures (one [B, 3, crop, crop] per camera) and a normalised state [B, S] -> [B, E]."""
        keypoints = [
            self.nets[name](picture - 0.5) for name, picture in zip(self.cameras, pictures, strict=True)
        ]
        return self.trunk(torch.cat([*keypoints, state], -1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """``image_<cam>`` uint8 [B, s, s, 3] for each camera, then ``state`` float [B, S] in physical units."""
        *images, state = inputs
        return self.embed([self.pictures(image) for image in images], self.normalise_state(state))


class PolicyNet(nn.Module):
    """Encoder, denoiser, and the head on simulator labels that is used in training only."""

    def __init__(
        self, config: TrainConfig, cameras: tuple[str, ...], statistics: dict[str, Tensor], label_dim: int
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, cameras, statistics["state_low"], statistics["state_high"])
        self.action_dim = len(statistics["action_low"])
        objective = OBJECTIVES[config.objective]
        steps = config.diffusion_steps if objective.discrete else None
        self.denoiser = BACKBONES[config.backbone](config, self.action_dim, objective.levels, steps)
        self.register_buffer("action_low", statistics["action_low"])
        self.register_buffer("action_high", statistics["action_high"])
        if label_dim:
            self.auxiliary = nn.Sequential(
                nn.Linear(config.embedding, 128), nn.SiLU(), nn.Linear(128, label_dim)
            )
        if objective.discrete:
            self.register_buffer("alpha_bar", cosine_schedule(config.diffusion_steps))

    def normalise_actions(self, chunk: Tensor) -> Tensor:
        """Physical units [..., D] -> -1..1."""
        return 2 * (chunk - self.action_low) / (self.action_high - self.action_low) - 1

    def physical_actions(self, chunk: Tensor) -> Tensor:
        """-1..1 [..., D] -> physical units."""
        return (chunk + 1) / 2 * (self.action_high - self.action_low) + self.action_low

    def noise(self, chunk: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """q(x_t | x_0) of DDPM (Ho et al. 2020, eq. 4); chunk, noise [B, H, D], step [B]."""
        a = self.alpha_bar[step][:, None, None]
        return a.sqrt() * chunk + (1 - a).sqrt() * noise

    def velocity(self, chunk: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """What a denoiser of diffusion has to say; shapes as `noise`."""
        a = self.alpha_bar[step][:, None, None]
        return a.sqrt() * noise - (1 - a).sqrt() * chunk


def cosine_schedule(steps: int) -> Tensor:
    """Cumulative alphas of the cosine schedule (Nichol and Dhariwal 2021, eq. 17), betas clipped at 0.999; [steps]."""
    at = lambda t: math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    betas = [min(1 - at(i + 1) / at(i), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0).float()
