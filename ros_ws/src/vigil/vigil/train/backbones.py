"""Networks that read a noised chunk [B, H, D], the observation's embedding and a noise level: an MLP, a 1-D U-Net, a transformer.

All of them are conditioned by FiLM (Perez et al. 2018): what the observation and the noise level have to say is a gain and a shift
of every norm. These do not depend on the chunk, so that a sampler computes them once for all its steps and all K samples
(`Backbone.conditioning`). A gain and a shift that all samples share go into the norm itself: one operator in ONNX.

Nothing here is a convolution: ONNX Runtime's 1-D convolutions are slow on CPUs. The U-Net's are matrix products over shifted copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigil.train.config import TrainConfig

LEVEL_FEATURES = 128
Film = tuple[Tensor, Tensor]  # gain and shift, [B, C] each


class Sinusoids(nn.Module):
    """Sine and cosine features of noise levels in 0..1; [B, L] -> [B, LEVEL_FEATURES].

    Periods from 1 to 8: MeanFlow differentiates by the level, and steep features make its target so noisy that it learns nothing
    (Lu and Song 2024, sec. 4.1).
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        count = LEVEL_FEATURES // (2 * levels)
        periods = 8.0 ** torch.linspace(0, 1, count)
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        angles = (level[..., None] * self.frequencies).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], -1)


class Backbone(nn.Module):
    """Common part: the condition, and one FiLM layer per norm.

    Args:
        levels: numbers that say how noisy a chunk is: 1, or 2 for an average over an interval.
        steps: if given, levels are integer steps below it, with a learned embedding each.
    """

    def __init__(self, config: TrainConfig, action_dim: int, levels: int, steps: int | None) -> None:
        super().__init__()
        width = config.denoiser_width
        self.shape = (config.horizon, action_dim)
        self.levels = levels
        if steps is None:
            self.time: nn.Module = Sinusoids(levels)
        else:
            self.time = nn.Embedding(steps, LEVEL_FEATURES)
            nn.init.normal_(self.time.weight, std=0.02)
            self.time.weight.data += _sinusoids(steps, LEVEL_FEATURES)
        self.condition = nn.Sequential(nn.Linear(config.embedding, width), nn.SiLU(), nn.Linear(width, width))
        self.step = nn.Sequential(nn.Linear(LEVEL_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def norms(self) -> Sequence[tuple[nn.LayerNorm, nn.Linear]]:
        """Every modulated norm with its FiLM layer, in the order of use."""
        raise NotImplementedError

    def features(self, chunk: Tensor, films: Sequence[Film]) -> Tensor:
        """Last hidden layer: [B, ...]."""
        raise NotImplementedError

    def predict(self, features: Tensor) -> Tensor:
        """Output [B, H, D] of `features`."""
        raise NotImplementedError

    def conditioning(self, embedding: Tensor, level: Tensor) -> list[Film]:
        """Gain and shift of every norm, [B, C] each; embedding [1 or B, E], level [B, levels] or, of integer steps, [B]."""
        context = F.silu(self.condition(embedding) + self.step(self.time(level)))
        films = []
        for norm, film in self.norms():
            scale, shift = film(context).chunk(2, -1)
            films.append((norm.weight * (1 + scale), norm.bias * (1 + scale) + shift))
        return films

    def forward(self, chunk: Tensor, embedding: Tensor, level: Tensor) -> Tensor:
        """Noised chunk [B, H, D], embedding [B or 1, E], level as in `conditioning`, B or 1 rows -> [B, H, D]."""
        return self.predict(self.features(chunk, self.conditioning(embedding, level)))


def modulate(x: Tensor, film: Film) -> Tensor:
    """Layer norm over the last dimension of x [B, C] or [B, T, C], with gain and shift of each row, or of all."""
    gain, shift = film
    size = (x.shape[-1],)
    if gain.shape[0] == 1:
        return F.layer_norm(x, size, gain[0], shift[0])
    if x.dim() == 3:
        gain, shift = gain[:, None], shift[:, None]
    return F.layer_norm(x, size) * gain + shift


def tokenwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Layers on each token of x [B, T, C], as rows of one matrix.

    ONNX Runtime then adds the bias of a product within it, and leaves a norm after a sum alone: joined, both take longer.
    """
    steps, channels = x.shape[1:]
    rows = layer(x.reshape(-1, channels))
    return rows.reshape(-1, steps, rows.shape[-1])


class Mlp(Backbone):
    """A residual MLP on the flattened chunk."""

    def __init__(self, config: TrainConfig, action_dim: int, levels: int, steps: int | None) -> None:
        super().__init__(config, action_dim, levels, steps)
        width, size = config.denoiser_width, config.horizon * action_dim
        self.inlet = nn.Linear(size, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "film": nn.Linear(width, 2 * width),
                    "up": nn.Linear(width, width),
                    "down": _zero(nn.Linear(width, width)),
                }
            )
            for _ in range(config.denoiser_blocks)
        )
        self.outlet = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def norms(self) -> Sequence[tuple[nn.LayerNorm, nn.Linear]]:
        return [(block["norm"], block["film"]) for block in self.blocks]

    def features(self, chunk: Tensor, films: Sequence[Film]) -> Tensor:
        x = self.inlet(chunk.flatten(1))
        for block, film in zip(self.blocks, films, strict=True):
            x = x + block["down"](F.silu(block["up"](modulate(x, film))))
        return x

    def predict(self, features: Tensor) -> Tensor:
        return self.outlet(features).reshape(-1, *self.shape)


class Conv(nn.Module):
    """Convolution along the chunk, kernel 5, zeros around it; [B, T, C] -> [B, T, C'], as one matrix product."""

    KERNEL = 5

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(self.KERNEL * channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        steps, channels = x.shape[1:]
        near = torch.arange(steps)[:, None] + torch.arange(self.KERNEL) - self.KERNEL // 2
        near = torch.where((near < 0) | (near >= steps), steps, near)  # the row of zeros behind the chunk
        taken = F.pad(x, (0, 0, 0, 1)).index_select(1, near.flatten().to(x.device))
        return tokenwise(self.linear, taken.reshape(-1, steps, self.KERNEL * channels))


class ConvBlock(nn.Module):
    """Two convolutions and a skip; the first norm is modulated (the block of Diffusion Policy's U-Net, Chi et al. 2023)."""

    def __init__(self, channels_in: int, channels_out: int, condition: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels_in, channels_out)
        self.norm = nn.LayerNorm(channels_out)
        self.film = nn.Linear(condition, 2 * channels_out)
        self.conv2 = Conv(channels_out, channels_out)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Linear(channels_in, channels_out)

    def forward(self, x: Tensor, film: Film) -> Tensor:
        skip = tokenwise(self.skip, x) if isinstance(self.skip, nn.Linear) else x
        return skip + self.conv2(F.silu(modulate(self.conv1(x), film)))


class UNet(Backbone):
    """A U-Net along the chunk, channels last; going down two steps become one, and channels double."""

    def __init__(self, config: TrainConfig, action_dim: int, levels: int, steps: int | None) -> None:
        super().__init__(config, action_dim, levels, steps)
        width = config.denoiser_width
        sizes = [width * 2**i for i in range(config.denoiser_blocks)]
        self.inlet = nn.Linear(action_dim, width)
        self.down = nn.ModuleList(ConvBlock(size, size, width) for size in sizes)
        self.halvings = nn.ModuleList(nn.Linear(2 * size, 2 * size) for size in sizes[:-1])
        self.middle = ConvBlock(sizes[-1], sizes[-1], width)
        self.doublings = nn.ModuleList(nn.Linear(2 * size, 2 * size) for size in reversed(sizes[:-1]))
        self.up = nn.ModuleList(ConvBlock(2 * size, size, width) for size in reversed(sizes[:-1]))
        self.outlet = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, action_dim))

    def norms(self) -> Sequence[tuple[nn.LayerNorm, nn.Linear]]:
        return [(block.norm, block.film) for block in (*self.down, self.middle, *self.up)]

    def features(self, chunk: Tensor, films: Sequence[Film]) -> Tensor:
        film = iter(films)
        x, skips = tokenwise(self.inlet, chunk), []
        for i, block in enumerate(self.down):
            x = block(x, next(film))
            if i < len(self.halvings):
                skips.append(x)
                steps, channels = x.shape[1:]
                x = tokenwise(self.halvings[i], x.reshape(-1, steps // 2, 2 * channels))
        x = self.middle(x, next(film))
        for double, block in zip(self.doublings, self.up, strict=True):
            steps, channels = x.shape[1:]
            x = tokenwise(double, x).reshape(-1, 2 * steps, channels // 2)
            x = block(torch.cat([x, skips.pop()], -1), next(film))
        return x

    def predict(self, features: Tensor) -> Tensor:
        return tokenwise(self.outlet, features)


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, before each of them a modulated norm (as in DiT, Peebles and Xie 2023, without gates)."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
        self.norm1, self.film1 = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.join = _zero(nn.Linear(width, width))
        self.norm2, self.film2 = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = _zero(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, attention: Film, mlp: Film) -> Tensor:
        steps, width = x.shape[1:]
        tokens = modulate(x, attention).reshape(-1, width)
        # A product for each head, of parts of the weights: to take the result of one product apart costs more than they do.
        size = width // self.heads
        parts = zip(self.qkv.weight.split(size), self.qkv.bias.split(size), strict=True)
        rows = [F.linear(tokens, w, b).reshape(-1, steps, size) for w, b in parts]
        queries, keys, values = (rows[i : i + self.heads] for i in range(0, len(rows), self.heads))
        seen = [
            (q @ k.transpose(1, 2) / math.sqrt(size)).softmax(-1) @ v
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
        x = x + tokenwise(self.join, torch.cat(seen, -1))
        return x + tokenwise(self.down, F.silu(tokenwise(self.up, modulate(x, mlp))))


class Transformer(Backbone):
    """One token per step of the chunk, each sees all."""

    def __init__(self, config: TrainConfig, action_dim: int, levels: int, steps: int | None) -> None:
        super().__init__(config, action_dim, levels, steps)
        width = config.denoiser_width
        self.inlet = nn.Linear(action_dim, width)
        self.place = nn.Parameter(_sinusoids(config.horizon, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.head_width) for _ in range(config.denoiser_blocks)
        )
        self.outlet = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))

    def norms(self) -> Sequence[tuple[nn.LayerNorm, nn.Linear]]:
        return [
            pair for block in self.blocks for pair in ((block.norm1, block.film1), (block.norm2, block.film2))
        ]

    def features(self, chunk: Tensor, films: Sequence[Film]) -> Tensor:
        x = tokenwise(self.inlet, chunk) + self.place
        for i, block in enumerate(self.blocks):
            x = block(x, films[2 * i], films[2 * i + 1])
        return x

    def predict(self, features: Tensor) -> Tensor:
        return tokenwise(self.outlet, features)


BACKBONES: dict[str, type[Backbone]] = {"mlp": Mlp, "unet": UNet, "transformer": Transformer}


def _zero(layer: nn.Linear) -> nn.Linear:
    """The last layer of a residual branch begins at zero, so that the branch begins as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _sinusoids(count: int, size: int) -> Tensor:
    positions = torch.arange(count)[:, None].float()
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 2) / (size // 2 - 1))
    return torch.cat([torch.sin(positions * frequencies), torch.cos(positions * frequencies)], -1)
