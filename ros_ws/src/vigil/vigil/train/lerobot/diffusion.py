"""LeRobot's DiffusionPolicy as an encoder and a sampler, in the shape of a bundle's graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vigil.errors import VigilError
from vigil.train.lerobot.checkpoint import Checkpoint, load_weights
from vigil.train.lerobot.config import ACTION, STATE, DiffusionConfig
from vigil.train.lerobot.normalise import Normaliser
from vigil.train.lerobot.unet import UNet
from vigil.train.lerobot.vision import RgbEncoder, pictures


class _Networks(nn.Module):
    """The parts that have weights, under the checkpoint's names."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        cameras, separate = len(config.pictures), config.use_separate_rgb_encoder_per_camera
        encoders = [RgbEncoder(config) for _ in range(cameras if separate else 1)]
        self.rgb_encoder = nn.ModuleList(encoders) if separate else encoders[0]
        condition = (config.state_dim + encoders[0].feature_dim * cameras) * config.n_obs_steps
        self.unet = UNet(config, condition)


class DiffusionEncoder(nn.Module):
    """Pictures and states -> embedding [1, n (S + cameras features)]: what the denoiser is conditioned on, as it is."""

    def __init__(self, config: DiffusionConfig, nets: nn.Module, normalisers: dict[str, Normaliser]) -> None:
        super().__init__()
        self.rgb_encoder = nets
        self.separate = config.use_separate_rgb_encoder_per_camera
        self.state = normalisers[STATE]
        self.cameras = nn.ModuleList(normalisers[key] for key in config.pictures)
        self.dim = config.n_obs_steps

    def forward(self, *inputs: Tensor) -> Tensor:
        """``image_<camera>`` uint8 [1, (n,) h, w, 3] for each camera, then ``state`` [1, (n,) S] in the checkpoint's units."""
        *images, state = inputs
        views = [norm(pictures(image)) for norm, image in zip(self.cameras, images, strict=True)]
        if self.separate:
            features = [net(view) for net, view in zip(self.rgb_encoder, views, strict=True)]
        else:
            features = list(self.rgb_encoder(torch.cat(views)).split(self.dim))
        # Per observation its state, then the features camera by camera: [n, S + cameras * F].
        rows = torch.cat([self.state(state.flatten(0, -2)), *features], -1)
        return rows.flatten()[None]


class DiffusionSampler(nn.Module):
    """Noise [K, R, D] and embedding [1, E] -> chunks [K, H, D] in the checkpoint's units, R rows as `noise_rows` says.

    The network denoises ``horizon`` steps, of which the first ``n_obs_steps - 1`` lie before the newest observation: a chunk
    begins where LeRobot begins to execute, at the step that is due when that observation was made.
    """

    def __init__(
        self, config: DiffusionConfig, unet: UNet, actions: Normaliser, method: str, steps: int
    ) -> None:
        super().__init__()
        if steps > config.num_train_timesteps:
            raise VigilError(
                f"{steps} steps: the policy was trained with {config.num_train_timesteps}, and no more can be taken"
            )
        self.config, self.unet, self.actions = config, unet, actions
        self.ancestral = method == "ddpm"
        self.schedule = schedule(config, steps)

    @property
    def noise_rows(self) -> int:
        """Rows of noise of one chunk: the beginning's and, of DDPM, those added after every step but the last."""
        return self.config.horizon * (len(self.schedule) if self.ancestral else 1)

    def forward(self, noise: Tensor, embedding: Tensor) -> Tensor:
        config, horizon = self.config, self.config.horizon
        observed = self.unet.observed(embedding)
        x = noise[:, :horizon]
        for i, step in enumerate(self.schedule):
            film = self.unet.film(observed, torch.full((1,), float(step.number)))
            prediction = self.unet(x, film)
            if config.prediction_type == "epsilon":
                eps, clean = prediction, (x - step.sigma * prediction) / step.scale
            else:
                clean, eps = prediction, (x - step.scale * prediction) / step.sigma
            if config.clip_sample:
                clean = clean.clamp(-config.clip_sample_range, config.clip_sample_range)
            if not self.ancestral:
                x = step.next_scale * clean + step.next_sigma * eps
                continue
            x = step.clean_share * clean + step.sample_share * x
            if i < len(self.schedule) - 1:
                x = x + step.deviation * noise[:, (i + 1) * horizon : (i + 2) * horizon]
        return self.actions.inverse(x[:, config.n_obs_steps - 1 :])


@dataclass(frozen=True)
class Step:
    """One step of the reverse process, from ``number`` to the next; x = scale * clean + sigma * noise."""

    number: int
    scale: float
    sigma: float
    next_scale: float
    next_sigma: float

    @property
    def _beta(self) -> float:
        return 1 - (self.scale / self.next_scale) ** 2

    @property
    def clean_share(self) -> float:
        """Of the mean of q(x_t-1 | x_t, x_0): Ho et al. 2020, eq. 7."""
        return self.next_scale * self._beta / self.sigma**2

    @property
    def sample_share(self) -> float:
        return self.scale / self.next_scale * self.next_sigma**2 / self.sigma**2

    @property
    def deviation(self) -> float:
        """The smaller of the two choices of Ho et al. 2020, sec. 3.2: the true posterior's."""
        return math.sqrt(max(self.next_sigma**2 / self.sigma**2 * self._beta, 1e-20))


def schedule(config: DiffusionConfig, steps: int) -> list[Step]:
    """The steps that LeRobot's schedulers (of `diffusers`) visit, from noisy to clean, with leading spacing."""
    alphas = alpha_bar(config).tolist()
    ratio = config.num_train_timesteps // steps
    numbers = [i * ratio for i in reversed(range(steps))]
    levels = [alphas[number] for number in numbers] + [1.0]
    return [
        Step(number, math.sqrt(a), math.sqrt(1 - a), math.sqrt(b), math.sqrt(1 - b))
        for number, (a, b) in zip(numbers, pairwise(levels), strict=True)
    ]


def alpha_bar(config: DiffusionConfig) -> Tensor:
    """Share of the clean chunk's variance after each step of the forward process; [steps], float32 as in training."""
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        betas = torch.linspace(start, end, count)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count) ** 2
    else:  # Nichol and Dhariwal 2021, eq. 17
        at = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        betas = torch.tensor([min(1 - at((i + 1) / count) / at(i / count), 0.999) for i in range(count)])
    return torch.cumprod(1 - betas, 0)


def build(checkpoint: Checkpoint) -> tuple[DiffusionEncoder, UNet, Normaliser]:
    """Encoder, denoiser and the actions' normaliser of a checkpoint, in evaluation mode.

    Raises:
        VigilError: weights or statistics do not fit.
    """
    config = checkpoint.config
    nets = _Networks(config)
    # Newer checkpoints hold the spatial softmax's fixed grid too; it has its place and is the same.
    load_weights(nets, {name.removeprefix("diffusion."): value for name, value in checkpoint.weights.items()})
    nets.eval()
    kinds = {STATE: "STATE", **dict.fromkeys(config.pictures, "VISUAL")}
    normalisers = {key: checkpoint.rules.of(key, kind) for key, kind in kinds.items()}
    encoder = DiffusionEncoder(config, nets.rgb_encoder, normalisers).eval()
    return encoder, nets.unet, checkpoint.action_rules.of(ACTION, "ACTION")
