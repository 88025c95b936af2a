"""LeRobot's DiffusionPolicy as an encoder and a sampler, in the shape of a bundle's graphs."""

from __future__ import annotations

import math
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


class ReverseStep(nn.Module):
    """One step of the reverse process: x [K, T, D], FiLM [1, F], coefficients [7], (noise [K, T, D]) -> next x [K, T, D]."""

    def __init__(self, config: DiffusionConfig, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.limit = config.clip_sample_range if config.clip_sample else None

    def forward(self, x: Tensor, film: Tensor, coefficients: Tensor, noise: Tensor | None = None) -> Tensor:
        of_x, of_prediction, scale, clean_share, prediction_share, x_share, deviation = coefficients.unbind()
        prediction = self.unet(x, film)
        clean = (of_x * x - of_prediction * prediction) / scale
        if self.limit is not None:
            clean = clean.clamp(-self.limit, self.limit)
        x = clean_share * clean + prediction_share * prediction + x_share * x
        return x if noise is None else x + deviation * noise


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
        self.config, self.actions, self.step = config, actions, ReverseStep(config, unet)
        self.ancestral = method == "ddpm"
        numbers, coefficients = schedule(config, steps, self.ancestral)
        self.register_buffer("coefficients", coefficients)
        with torch.no_grad():
            self.register_buffer("films", unet.stepped(numbers))  # [N, F]

    @property
    def noise_rows(self) -> int:
        """Rows of noise of one chunk: the beginning's and, of DDPM, those added after every step but the last."""
        return self.config.horizon * (len(self.films) if self.ancestral else 1)

    def start(self, embedding: Tensor) -> Tensor:
        """What all steps take from the observation."""
        return self.step.unet.observed(embedding)

    def finish(self, x: Tensor) -> Tensor:
        """The chunk in the checkpoint's units, without what is past."""
        return self.actions.inverse(x[:, self.config.n_obs_steps - 1 :])

    def forward(self, noise: Tensor, embedding: Tensor) -> Tensor:
        horizon, last = self.config.horizon, len(self.films) - 1
        observed, x = self.start(embedding), noise[:, :horizon]
        for i, (film, coefficients) in enumerate(zip(self.films, self.coefficients, strict=True)):
            at = horizon * min(i + 1, last)  # the last step adds none
            added = noise[:, at : at + horizon] if self.ancestral else None
            x = self.step(x, observed + film, coefficients, added)
        return self.finish(x)


def schedule(config: DiffusionConfig, steps: int, ancestral: bool) -> tuple[Tensor, Tensor]:
    """The steps that LeRobot's schedulers (of `diffusers`) visit, from noisy to clean, with leading spacing.

    Returns:
        numbers [N] of the steps, and coefficients [N, 7] of `ReverseStep`, with x = scale * clean + sigma * noise:

        - of DDIM those of Song et al. 2021, eq. 12 with sigma_t = 0; the noise that goes on is the predicted one, not one that would
          fit the clipped chunk;
        - of DDPM (``ancestral``) those of Ho et al. 2020, eq. 7, with the smaller variance of sec. 3.2, the true posterior's.
    """
    alphas = alpha_bar(config).tolist()
    ratio = config.num_train_timesteps // steps
    numbers = [i * ratio for i in reversed(range(steps))]
    levels = [alphas[number] for number in numbers] + [1.0]
    rows = []
    for a, b in pairwise(levels):
        scale, sigma, next_scale, next_sigma = (math.sqrt(v) for v in (a, 1 - a, b, 1 - b))
        epsilon = config.prediction_type == "epsilon"
        estimate = (1.0, sigma, scale) if epsilon else (0.0, -1.0, 1.0)
        if ancestral:
            beta, var = 1 - a / b, 1 - a
            deviation = math.sqrt(max((1 - b) / var * beta, 1e-20)) if b < 1 else 0.0
            rows.append(
                (*estimate, next_scale * beta / var, 0.0, math.sqrt(a / b) * (1 - b) / var, deviation)
            )
        elif epsilon:
            rows.append((*estimate, next_scale, next_sigma, 0.0, 0.0))
        else:
            rows.append((*estimate, next_scale, -next_sigma * scale / sigma, next_sigma / sigma, 0.0))
    return torch.tensor(numbers, dtype=torch.float32), torch.tensor(rows)


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
