"""Samplers: whole sampling loops as modules, noise [K, H, D], embedding [1, E] -> chunks [K, H, D] in physical units.

Each is exported as one ONNX graph. What does not depend on the chunk is computed once for all steps and all K samples. Clean chunks
are clipped to the range of the demonstrations: a gripper told to close beyond its stop would be refused by the arm.

Samplers of diffusion and flow take known targets (``inpaint``): at every step the estimate of the clean chunk is pulled to them by
their weight, and the step is made from there, so that what is free is denoised beside a part that is already right, and joins it.
With weight 0 the chunk is exactly that of the plain sampler, with weight 1 it is the known one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vigil.errors import VigilError
from vigil.policy.spec import Method
from vigil.train.backbones import Film
from vigil.train.model import PolicyNet
from vigil.train.objectives import interval, staircase

Pull = Callable[[Tensor], Tensor]  # what is to be added to an estimate of the clean chunk


class SamplerModule(nn.Module):
    """Common part of all samplers.

    Args:
        net: a trained network.
        steps: evaluations of the denoiser per call; None: what the sampler has by default.
        inpaint: whether `forward` also takes known [1, H, D] (physical units) and its weight [1, H].

    Raises:
        VigilError: the network was trained with another objective, or the sampler cannot do that many steps, or inpaint.
    """

    objective: str
    default_steps: int
    inpaints = True

    def __init__(self, net: PolicyNet, steps: int | None = None, inpaint: bool = False) -> None:
        super().__init__()
        trained = net.config.objective
        if trained != self.objective:
            raise VigilError(
                f"the denoiser was trained with objective {trained}, this sampler needs {self.objective}: "
                f"choose {' or '.join(methods_of(trained))}"
            )
        if inpaint and not self.inpaints:
            raise VigilError("only samplers of diffusion and flow take known targets: leave inpaint out")
        self.net = net
        self.steps = steps or self.default_steps
        self.inpaint = inpaint

    def forward(
        self, noise: Tensor, embedding: Tensor, known: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """See the module; ``known`` and ``weight`` are given where the sampler inpaints, and only there."""
        pull = self._pull(known, weight) if self.inpaint else None
        return self.net.physical_actions(self.sample(noise, embedding, pull))

    def sample(self, x: Tensor, embedding: Tensor, pull: Pull | None) -> Tensor:
        """Normalised chunks made of noise x."""
        raise NotImplementedError

    def films(self, embedding: Tensor, levels: Tensor) -> list[list[Film]]:
        """The denoiser's conditioning at each of S levels; of one observation they are computed in one batch."""
        if len(embedding) > 1:
            return [self.net.denoiser.conditioning(embedding, level[None]) for level in levels]
        together = self.net.denoiser.conditioning(embedding, levels)
        return [[(gain[i : i + 1], shift[i : i + 1]) for gain, shift in together] for i in range(len(levels))]

    def denoise(self, x: Tensor, films: Sequence[Film]) -> Tensor:
        """What the denoiser says of chunks x under one level's conditioning."""
        return self.net.denoiser.predict(self.net.denoiser.features(x, films))

    def _pull(self, known: Tensor, weight: Tensor) -> Pull:
        targets = self.net.normalise_actions(known)
        return lambda clean: weight[..., None] * (targets - clean)


class DiffusionSampler(SamplerModule):
    """Common part of samplers that visit some steps of the DDPM, from noisy to clean."""

    objective, default_steps = "diffusion", 10

    def __init__(self, net: PolicyNet, steps: int | None = None, inpaint: bool = False) -> None:
        super().__init__(net, steps, inpaint)
        most = net.config.diffusion_steps
        if self.steps > most:
            raise VigilError(
                f"{self.steps} steps are more than the {most} that the denoiser was trained with"
            )
        self.visited = self.visit(most)
        self.alphas = [float(net.alpha_bar[step]) for step in self.visited] + [1.0]

    def visit(self, trained: int) -> list[int]:
        """The steps of the DDPM at which the denoiser is asked, of ``trained`` ones, from noisy to clean."""
        return ddim_steps(trained, self.steps)

    def clean(self, x: Tensor, a: float, films: Sequence[Film], pull: Pull | None) -> Tensor:
        """The estimate of the clean chunk, clipped to -1..1, then pulled to what is known; a: cumulative alpha of x."""
        clean = (a**0.5 * x - (1 - a) ** 0.5 * self.denoise(x, films)).clamp(-1, 1)
        return clean if pull is None else clean + pull(clean)


class Ddim(DiffusionSampler):
    """Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0)."""

    def sample(self, x: Tensor, embedding: Tensor, pull: Pull | None) -> Tensor:
        films = self.films(embedding, torch.tensor(self.visited, device=x.device))
        for film, (a, a_next) in zip(films, itertools.pairwise(self.alphas), strict=True):
            clean = self.clean(x, a, film, pull)
            eps = (x - a**0.5 * clean) / (1 - a) ** 0.5
            x = a_next**0.5 * clean + (1 - a_next) ** 0.5 * eps
        return x


class DpmSolver(DiffusionSampler):
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order by the estimate of the step before.

    The first step has none, and the last one goes to noise zero, where log-SNR has no end: these two are of first order.
    """

    default_steps = 5

    def visit(self, trained: int) -> list[int]:
        """Evenly down to almost no noise: what is left is done in one step of first order, and that must not be far."""
        return dpm_steps(trained, self.steps)

    def sample(self, x: Tensor, embedding: Tensor, pull: Pull | None) -> Tensor:
        films = self.films(embedding, torch.tensor(self.visited, device=x.device))
        half_log_snr = [0.5 * math.log(a / (1 - a)) for a in self.alphas[:-1]]
        previous, last = None, self.steps - 1
        for i, (film, (a, a_next)) in enumerate(zip(films, itertools.pairwise(self.alphas), strict=True)):
            clean = estimate = self.clean(x, a, film, pull)
            if previous is not None and i < last:
                h, h_next = (b - a for a, b in itertools.pairwise(half_log_snr[i - 1 : i + 2]))
                estimate = clean + (clean - previous) * (h_next / (2 * h))
            noise_kept = ((1 - a_next) / (1 - a)) ** 0.5
            # With h the step in half log-SNR: sqrt(a_next) (1 - exp(-h)) = sqrt(a_next) - sqrt(a) sigma_next / sigma.
            x = noise_kept * x + (a_next**0.5 - a**0.5 * noise_kept) * estimate
            previous = clean
        return x


class Euler(SamplerModule):
    """Explicit Euler along a flow, from t = 1 (noise) to 0."""

    objective, default_steps = "flow", 5

    def sample(self, x: Tensor, embedding: Tensor, pull: Pull | None) -> Tensor:
        times = torch.linspace(1, 0, self.steps + 1)
        films = self.films(embedding, times[:-1, None].to(x.device))
        for film, (t, t_next) in zip(films, itertools.pairwise(times.tolist()), strict=True):
            clean = self.clean(x, t, film, pull)
            x = clean + t_next / t * (x - clean)
        return x

    def clean(self, x: Tensor, t: float, films: Sequence[Film], pull: Pull | None) -> Tensor:
        """The estimate x - t v of the clean chunk, clipped to -1..1, then pulled to what is known."""
        clean = (x - t * self.denoise(x, films)).clamp(-1, 1)
        return clean if pull is None else clean + pull(clean)


class Midpoint(Euler):
    """The midpoint rule along a flow: second order, two evaluations per interval."""

    default_steps = 6

    def __init__(self, net: PolicyNet, steps: int | None = None, inpaint: bool = False) -> None:
        super().__init__(net, steps, inpaint)
        if self.steps % 2:
            raise VigilError(
                f"the midpoint rule evaluates twice per interval: {self.steps} steps is an odd number"
            )

    def sample(self, x: Tensor, embedding: Tensor, pull: Pull | None) -> Tensor:
        times = torch.linspace(1, 0, self.steps + 1)
        films = self.films(embedding, times[:-1, None].to(x.device))
        t = times.tolist()
        for i in range(0, self.steps, 2):
            clean = self.clean(x, t[i], films[i], pull)
            middle = clean + t[i + 1] / t[i] * (x - clean)
            velocity = (middle - self.clean(middle, t[i + 1], films[i + 1], pull)) / t[i + 1]
            x = x + (t[i + 2] - t[i]) * velocity
        x = x.clamp(-1, 1)  # the last estimate was made before the end
        return x if pull is None else x + pull(x)


class MeanFlow(SamplerModule):
    """One step along the average velocity, or some (Geng et al. 2025, eq. 12)."""

    objective, default_steps, inpaints = "mean_flow", 1, False

    def sample(self, x: Tensor, embedding: Tensor, pull: Pull | None) -> Tensor:
        times = torch.linspace(1, 0, self.steps + 1)
        films = self.films(embedding, interval(times[1:], times[:-1]).to(x.device))
        for film, (t, t_next) in zip(films, itertools.pairwise(times.tolist()), strict=True):
            x = x + (t_next - t) * self.denoise(x, film)
        return x.clamp(-1, 1)


class Streaming(SamplerModule):
    """A running stream: noise [K, emitted, D], buffer [K, H, D], embedding -> chunks [K, H, D], next buffer [K, H, D].

    The buffer is the normalised chunk as the last call left it, a stair noisier with every ``emitted`` steps (`staircase`). It moves
    on by one stair, noise comes in at its end, and all of it is denoised by one stair: its first block becomes final. The other steps
    of ``chunks`` are estimates.
    """

    objective, default_steps, inpaints = "streaming", 1, False

    @property
    def emitted(self) -> int:
        """Steps that become final with every call."""
        return self.net.config.executed_steps

    def forward(self, noise: Tensor, buffer: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        stair = self.emitted / self.net.config.horizon
        x = torch.cat([buffer[:, self.emitted :], noise], 1)
        return self.advance(x, embedding, torch.linspace(stair, 0, self.steps + 1))

    def advance(self, x: Tensor, embedding: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Denoise from the first to the last phase [S + 1]; chunks in physical units, and the buffer."""
        horizon = self.net.config.horizon
        levels = staircase(phases[:, None], horizon, self.emitted)[..., None].to(x.device)  # [S + 1, H, 1]
        films = self.films(embedding, phases[:-1, None].to(x.device))
        for film, (level, level_next) in zip(films, itertools.pairwise(levels), strict=True):
            clean = (x - level * self.denoise(x, film)).clamp(-1, 1)
            x = clean + level_next / level * (x - clean)
        return self.net.physical_actions(clean), x


class StreamingStart(Streaming):
    """A stream's first chunk: noise [K, H, D], embedding -> chunks [K, H, D], buffer [K, H, D]."""

    def forward(self, noise: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self.net.config.horizon // self.emitted
        return self.advance(noise, embedding, torch.linspace(1, 0, blocks * self.steps + 1))


SAMPLERS: dict[Method, type[SamplerModule]] = {
    "ddim": Ddim,
    "dpm_solver": DpmSolver,
    "euler": Euler,
    "midpoint": Midpoint,
    "mean_flow": MeanFlow,
    "streaming": Streaming,
}


def methods_of(objective: str) -> list[Method]:
    """Samplers for a denoiser trained with ``objective``, the usual one first."""
    return [name for name, kind in SAMPLERS.items() if kind.objective == objective]


def make_sampler(
    net: PolicyNet, method: Method | None = None, steps: int | None = None, inpaint: bool = False
) -> SamplerModule:
    """A sampler of a trained network; by default the usual one for its objective, with the configuration's steps.

    Raises:
        VigilError: there is no such sampler, or see `SamplerModule`.
    """
    usual = methods_of(net.config.objective)[0]
    if method is None or method == usual:
        method, steps = usual, steps or net.config.sampler_steps
    if method not in SAMPLERS:
        raise VigilError(f"there is no sampler {method!r}: choose {', '.join(SAMPLERS)}")
    return SAMPLERS[method](net, steps, inpaint).eval()


def ddim_steps(diffusion_steps: int, sampler_steps: int) -> list[int]:
    """The steps visited by DDIM, from noisy to clean, with trailing spacing (Lin et al. 2024, table 2)."""
    return [round(diffusion_steps - i * diffusion_steps / sampler_steps) - 1 for i in range(sampler_steps)]


def dpm_steps(diffusion_steps: int, sampler_steps: int) -> list[int]:
    """The steps visited by DPM-Solver++, evenly from the noisiest to the cleanest (Lin et al. 2024, table 2: linspace)."""
    last = diffusion_steps - 1
    return [round(last - i * last / max(1, sampler_steps - 1)) for i in range(sampler_steps)]
