"""Diffusion Policy's conditional 1-D U-Net (Chi et al. 2023; Janner et al. 2022), rebuilt for ONNX Runtime on a CPU.

Parameters are called as in LeRobot and shaped as there; the arithmetic is arranged anew. Chunks stay [K, T, C], and a convolution
is one matrix product over shifted copies of them: ONNX Runtime has no fast kernel for Conv1d on a CPU, and the best one for matrices.
What depends on the observation and on the step alone, FiLM's scales and biases, is computed once for all K samples, and the
observation's share of it once for all steps.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigil.train.lerobot.config import DiffusionConfig


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra 2020) with one exponential: tanh(ln(1 + e)) = n / (n + 2), n = e (e + 2), e = exp(x).

    Above 20 the factor is 1 in float32, and the exponential of more would overflow.
    """
    e = x.clamp(max=20.0).exp()
    n = e * (e + 2)
    return x * (n / (n + 2))


class Conv1d(nn.Module):
    """Convolution over time of [K, T, C] with zero padding: [K, T / stride, out]."""

    def __init__(self, inward: int, outward: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(outward, inward, kernel))
        self.bias = nn.Parameter(torch.empty(outward))
        # [kernel * in, out], made of the weight when that is loaded: constants of the graph, not operations in it.
        self.register_buffer("matrix", torch.empty(kernel * inward, outward), persistent=False)
        self.register_load_state_dict_post_hook(_arrange)

    def arrange(self) -> None:
        """Put the weight in place for `forward`."""
        self.matrix = self.weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        steps, margin = x.shape[1], self.kernel // 2
        if margin:
            x = F.pad(x, (0, 0, margin, margin))
            shifted = [x[:, i : i + steps : self.stride] for i in range(self.kernel)]
            x = torch.cat(shifted, -1)
        return x @ self.matrix + self.bias


class Doubled(nn.Module):
    """Transposed convolution over time with kernel 4, stride 2, padding 1: [K, T, C] -> [K, 2 T, C].

    Of each pair of new steps, the even one is made of the old step and the one before, the odd one of it and the one after.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 4))
        self.bias = nn.Parameter(torch.empty(channels))
        for name in ("even", "odd"):
            self.register_buffer(name, torch.empty(2 * channels, channels), persistent=False)
        self.register_load_state_dict_post_hook(_arrange)

    def arrange(self) -> None:
        """Put the weight in place for `forward`."""
        before, here, ahead, after = (self.weight.detach()[:, :, i] for i in (3, 1, 2, 0))
        self.even = torch.cat([before, here]).contiguous()
        self.odd = torch.cat([ahead, after]).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        steps, channels = x.shape[1:]
        padded = F.pad(x, (0, 0, 1, 1))
        even = torch.cat([padded[:, :steps], x], -1) @ self.even
        odd = torch.cat([x, padded[:, 2:]], -1) @ self.odd
        return torch.stack([even, odd], 2).reshape(-1, 2 * steps, channels) + self.bias


def _arrange(module: Any, _: Any) -> None:
    module.arrange()


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) of [K, T, C]: mean and variance over time and the channels of a group."""

    def forward(self, x: Tensor) -> Tensor:
        steps, channels = x.shape[1:]
        grouped = x.reshape(-1, steps, self.num_groups, channels // self.num_groups)
        rows = grouped.transpose(1, 2).flatten(2)
        rows = F.layer_norm(rows, rows.shape[-1:], eps=self.eps)
        rows = rows.reshape(-1, self.num_groups, steps, channels // self.num_groups).transpose(1, 2)
        return rows.reshape(-1, steps, channels) * self.weight + self.bias


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, inward: int, outward: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(Conv1d(inward, outward, kernel), GroupNorm(groups, outward))

    def forward(self, x: Tensor) -> Tensor:
        return mish(self.block(x))


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM (Perez et al. 2018) between, and a skip."""

    def __init__(self, inward: int, outward: int, config: DiffusionConfig, condition: int) -> None:
        super().__init__()
        kernel, groups = config.kernel_size, config.n_groups
        self.scaled = config.use_film_scale_modulation
        self.conv1 = ConvBlock(inward, outward, kernel, groups)
        self.cond_encoder = nn.Sequential(
            nn.Mish(), nn.Linear(condition, outward * (2 if self.scaled else 1))
        )
        self.conv2 = ConvBlock(outward, outward, kernel, groups)
        self.residual_conv = Conv1d(inward, outward, 1) if inward != outward else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """``film`` [1, outward or 2 outward] for all samples."""
        y = self.conv1(x)
        if self.scaled:
            half = film.shape[-1] // 2
            y = film[:, None, :half] * y + film[:, None, half:]
        else:
            y = y + film[:, None]
        return self.conv2(y) + self.residual_conv(x)


class StepEncoder(nn.Sequential):
    """Sinusoids of diffusion steps (Vaswani et al. 2017, sec. 3.5), and two layers; float [N] -> [N, size]."""

    def __init__(self, size: int) -> None:
        # LeRobot's first child makes the sinusoids and has no parameters.
        super().__init__(nn.Identity(), nn.Linear(size, 4 * size), nn.Mish(), nn.Linear(4 * size, size))
        half = size // 2
        self.register_buffer(
            "frequencies", torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1))), persistent=False
        )

    def forward(self, step: Tensor) -> Tensor:
        angles = step[:, None] * self.frequencies[None]
        return super().forward(torch.cat([angles.sin(), angles.cos()], -1))


class UNet(nn.Module):
    """The denoiser: noised chunk [K, T, D], FiLM of this step [1, F] -> prediction [K, T, D]."""

    def __init__(self, config: DiffusionConfig, condition: int) -> None:
        super().__init__()
        size, dims = config.diffusion_step_embed_dim, config.down_dims
        self.diffusion_step_encoder = StepEncoder(size)
        self.step_size = size
        levels = [(config.action_dim, dims[0]), *pairwise(dims)]

        def block(inward: int, outward: int) -> ResidualBlock:
            return ResidualBlock(inward, outward, config, size + condition)

        last = len(levels) - 1
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    block(inward, outward),
                    block(outward, outward),
                    Conv1d(outward, outward, 3, stride=2) if i != last else nn.Identity(),
                ]
            )
            for i, (inward, outward) in enumerate(levels)
        )
        self.mid_modules = nn.ModuleList(block(dims[-1], dims[-1]) for _ in range(2))
        # As many as are needed to undo the halving: the first level's counterpart does not exist.
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * outward, inward), block(inward, inward), Doubled(inward)])
            for inward, outward in reversed(levels[1:])
        )
        self.final_conv = nn.Sequential(
            ConvBlock(dims[0], dims[0], config.kernel_size, 8), Conv1d(dims[0], config.action_dim, 1)
        )

    @property
    def blocks(self) -> list[ResidualBlock]:
        """All residual blocks, in the order of `forward`."""
        levels = [
            *((a, b) for a, b, _ in self.down_modules),
            tuple(self.mid_modules),
            *((a, b) for a, b, _ in self.up_modules),
        ]
        return [block for level in levels for block in level]

    def observed(self, condition: Tensor) -> Tensor:
        """The observation's share of every block's FiLM, side by side; condition [1, C] -> [1, F]."""
        weights = torch.cat([block.cond_encoder[1].weight[:, self.step_size :] for block in self.blocks])
        return F.linear(mish(condition), weights)

    def stepped(self, step: Tensor) -> Tensor:
        """The steps' share of it: what the layers give of both, concatenated, is the sum. Steps float [N] -> [N, F]."""
        layers = [block.cond_encoder[1] for block in self.blocks]
        weights = torch.cat([layer.weight[:, : self.step_size] for layer in layers])
        return F.linear(
            mish(self.diffusion_step_encoder(step)), weights, torch.cat([layer.bias for layer in layers])
        )

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        sizes = [block.cond_encoder[1].out_features for block in self.blocks]
        ends = list(accumulate(sizes, initial=0))
        films, skips = (film[:, a:b] for a, b in pairwise(ends)), []
        for first, second, halve in self.down_modules:
            x = second(first(x, next(films)), next(films))
            skips.append(x)
            x = halve(x)
        for block in self.mid_modules:
            x = block(x, next(films))
        for first, second, double in self.up_modules:
            x = torch.cat([x, skips.pop()], -1)
            x = double(second(first(x, next(films)), next(films)))
        return self.final_conv(x)
