"""Samplers against flows whose solution is known in closed form, in-painting, and streams."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from vigil.errors import VigilError  # noqa: E402
from vigil.train.config import TrainConfig  # noqa: E402
from vigil.train.model import PolicyNet  # noqa: E402
from vigil.train.objectives import OBJECTIVES, mix, staircase  # noqa: E402
from vigil.train.samplers import (  # noqa: E402
    SAMPLERS,
    Streaming,
    StreamingStart,
    ddim_steps,
    make_sampler,
    methods_of,
)

H, D, E = 16, 3, 8
MEAN = torch.linspace(-0.4, 0.4, H * D).reshape(H, D)
SIGMA = torch.linspace(0.05, 0.15, H * D).reshape(H, D)
RANGES = {"low": torch.tensor([-1.0, -2.0, 0.0]), "high": torch.tensor([1.0, 0.5, 0.08])}


def policy(objective: str, **changes) -> PolicyNet:
    """An untrained network; actions have ranges that are not -1..1, so that a missing normalisation shows."""
    settings = {"embedding": E, "denoiser_width": 16, "denoiser_blocks": 2, "horizon": H, "executed_steps": 4}
    config = TrainConfig(objective=objective, **settings | changes)
    ranges = {f"{kind}_{end}": values for kind in ("state", "action") for end, values in RANGES.items()}
    return PolicyNet(config, ("scene",), ranges, 0).eval()


class Gaussian(torch.nn.Module):
    """The perfect denoiser of normally distributed chunks: what a network would learn of N(MEAN, SIGMA^2) per number.

    ``say`` maps chunk and level to the output; the level comes through `conditioning`, as in a real one.
    """

    def __init__(self, say) -> None:
        super().__init__()
        self.say = say

    def conditioning(self, embedding, level):
        return [(level.float().reshape(len(level), -1), level.float().reshape(len(level), -1))]

    def features(self, chunk, films):
        return self.say(chunk, films[0][0])

    def predict(self, features):
        return features


def spread(signal, noise):
    """Mean and sigma of signal * chunk + noise * eps."""
    return signal * MEAN, ((signal * SIGMA) ** 2 + noise**2) ** 0.5


def flow_velocity(x, level):
    """E[eps - chunk | x] on the straight path at level t, a number or one per step."""
    centre, sigma = spread(1 - level, level)
    return (-(1 - level) * SIGMA**2 + level) / sigma**2 * (x - centre) - MEAN


def gaussian_policy(objective: str) -> PolicyNet:
    net = policy(objective)

    def diffusion(x, level):
        a = net.alpha_bar[int(level)]
        centre, sigma = spread(a.sqrt(), (1 - a).sqrt())
        clean = MEAN + a.sqrt() * SIGMA**2 / sigma**2 * (x - centre)
        noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    def average(x, level):
        end, begin = level[0, 0], level[0, 0] - level[0, 1]
        (there, wide), (here, narrow) = spread(1 - end, end), spread(1 - begin, begin)
        return (x - (here + narrow * (x - there) / wide)) / (end - begin)

    def stream(x, phase):
        return flow_velocity(x, staircase(phase.reshape(1, 1), H, 4)[0, :, None])

    says = {"diffusion": diffusion, "mean_flow": average, "streaming": stream}
    net.denoiser = Gaussian(says.get(objective, lambda x, level: flow_velocity(x, level[0, 0])))
    return net


def exact(net: PolicyNet, noise) -> torch.Tensor:
    """Where the flow takes noise: every number keeps its rank in its distribution."""
    start = float(net.alpha_bar[-1]) if hasattr(net, "alpha_bar") else 0.0
    centre, sigma = spread(start**0.5, (1 - start) ** 0.5)
    return net.physical_actions(MEAN + SIGMA * (noise - centre) / sigma)


def error(method: str, steps: int) -> float:
    objective = SAMPLERS[method].objective
    net = gaussian_policy(objective)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((64, H, D), np.float32))
    sampler = make_sampler(net, method, steps)
    made = sampler(noise, torch.zeros(1, E))
    scale = net.action_high - net.action_low
    return float(((made - exact(net, noise)) / scale).abs().mean())


@pytest.mark.parametrize("method", ["ddim", "dpm_solver", "euler", "midpoint"])
def test_more_steps_come_nearer_to_the_exact_flow(method):
    errors = [error(method, steps) for steps in (4, 10, 50)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 6e-3


@pytest.mark.parametrize(("second", "first"), [("dpm_solver", "ddim"), ("midpoint", "euler")])
@pytest.mark.parametrize("steps", [10, 20])
def test_second_order_is_nearer_at_the_same_price(second, first, steps):
    assert error(second, steps) < 0.7 * error(first, steps)


def test_the_midpoint_rule_is_of_second_order():
    assert error("midpoint", 40) < error("midpoint", 20) / 3


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_average_velocity_needs_one_step(steps):
    assert error("mean_flow", steps) < 1e-5


@pytest.mark.parametrize("method", SAMPLERS)
def test_no_chunk_leaves_the_range_of_the_demonstrations(method):
    """Whatever the denoiser says: the first policies without this held the arm by closing the gripper beyond its stop."""
    torch.manual_seed(0)
    net = policy(SAMPLERS[method].objective)
    for parameter in net.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    noise, embedding = 3 * torch.randn(32, H, D), torch.randn(1, E)
    if method == "streaming":
        chunks, buffer = StreamingStart(net)(noise, embedding)
        chunks = torch.cat([chunks, Streaming(net)(noise[:, :4], buffer, embedding)[0]])
    else:
        chunks = make_sampler(net, method, 2)(noise, embedding)
    assert (chunks >= net.action_low - 1e-6).all() and (chunks <= net.action_high + 1e-6).all()


def test_ddim_visits_trailing_steps():
    assert ddim_steps(100, 10) == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]


INPAINTING = [name for name, kind in SAMPLERS.items() if kind.inpaints]


@pytest.mark.parametrize("method", INPAINTING)
@pytest.mark.parametrize("backbone", ["mlp", "unet", "transformer"])
def test_known_targets_are_free_at_weight_zero_and_kept_at_weight_one(method, backbone):
    torch.manual_seed(0)
    net = policy(SAMPLERS[method].objective, backbone=backbone)
    for parameter in net.denoiser.parameters():  # branches that begin at zero would hide something
        torch.nn.init.normal_(parameter, std=0.1)
    noise, embedding = torch.randn(5, H, D), torch.randn(1, E)
    known = net.physical_actions(torch.linspace(-1.2, 1.2, H)[None, :, None].expand(1, H, D))
    plain = make_sampler(net, method, 4)(noise, embedding)
    painter = make_sampler(net, method, 4, inpaint=True)
    assert torch.equal(painter(noise, embedding, known, torch.zeros(1, H)), plain)
    weight = torch.zeros(1, H)
    weight[:, :5] = 1
    made = painter(noise, embedding, known, weight)
    torch.testing.assert_close(made[:, :5], known[:, :5].expand(5, -1, -1), atol=1e-5, rtol=0)
    assert not torch.allclose(made[:, 5:], plain[:, 5:], atol=1e-4), "what is free heeds what is known"
    between = painter(noise, embedding, known, torch.full((1, H), 0.5))
    assert ((between - known).abs().mean() < (plain - known).abs().mean()).all()


@pytest.mark.parametrize("method", ["mean_flow", "streaming"])
def test_samplers_that_cannot_inpaint_say_so(method):
    with pytest.raises(VigilError, match="only samplers of diffusion and flow take known targets"):
        make_sampler(policy(SAMPLERS[method].objective), method, inpaint=True)


def test_a_sampler_for_another_objective_is_refused_with_what_fits():
    with pytest.raises(
        VigilError,
        match="trained with objective flow, this sampler needs diffusion: choose euler or midpoint",
    ):
        make_sampler(policy("flow"), "ddim")
    with pytest.raises(VigilError, match="there is no sampler 'heun'"):
        make_sampler(policy("flow"), "heun")
    with pytest.raises(VigilError, match="5 steps is an odd number"):
        make_sampler(policy("flow"), "midpoint", 5)
    with pytest.raises(VigilError, match="101 steps are more than the 100"):
        make_sampler(policy("diffusion"), "ddim", 101)
    assert {name: methods_of(name)[0] for name in OBJECTIVES} == {
        "diffusion": "ddim",
        "flow": "euler",
        "mean_flow": "mean_flow",
        "streaming": "streaming",
    }


# Streaming ------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_cleaner_the_sooner_its_steps_are_due():
    phases = torch.linspace(1, 0, 9)[:, None]
    levels = staircase(phases, H, 4)
    assert (levels[0] == 1).all() and (levels.diff(dim=0) <= 0).all() and (levels.diff(dim=1) >= 0).all()
    assert levels[-1].tolist() == [0.0] * 4 + [0.25] * 4 + [0.5] * 4 + [0.75] * 4
    # What is left after a call, moved on by one block with noise behind it, is where the next call begins.
    moved = torch.cat([levels[-1, 4:], torch.ones(4)])
    torch.testing.assert_close(moved, staircase(torch.tensor([[0.25]]), H, 4)[0])


def test_a_stream_of_an_exact_denoiser_stays_on_its_distribution():
    """Fine steps: every number that is emitted is where the flow takes the noise that it came from."""
    net = gaussian_policy("streaming")
    rng, embedding = np.random.default_rng(0), torch.zeros(1, E)
    noise = torch.from_numpy(rng.standard_normal((32, H, D), np.float32))
    chunks, buffer = StreamingStart(net, 50)(noise, embedding)
    step = Streaming(net, 50)
    # Distributions differ from step to step of the chunk here, so only the first call's block has a closed form.
    expected = exact(net, noise)
    scale = net.action_high - net.action_low
    assert float(((chunks - expected) / scale)[:, :4].abs().mean()) < 3e-3
    fresh = torch.from_numpy(rng.standard_normal((32, 4, D), np.float32))
    following, after = step(fresh, buffer, embedding)
    assert following.shape == (32, H, D) and after.shape == buffer.shape
    final = net.normalise_actions(following[:, :4])
    torch.testing.assert_close(final, after[:, :4], atol=1e-4, rtol=0)


def test_noise_of_a_stream_comes_out_in_its_turn():
    """A block's noise decides about that block, when its turn comes, and about none that was emitted before."""
    torch.manual_seed(0)
    net = policy("streaming")
    embedding, step = torch.randn(1, E), Streaming(net, 1)
    _, buffer = StreamingStart(net, 1)(torch.randn(2, H, D), embedding)
    noise = torch.randn(2, 4, D)
    one, after_one = step(noise, buffer, embedding)
    other, after_other = step(noise + 1, buffer, embedding)
    torch.testing.assert_close(
        after_one[:, 12:] - after_other[:, 12:], torch.full((2, 4, D), -1.0), atol=1, rtol=0
    )
    assert not torch.allclose(one[:, 12:], other[:, 12:])


def test_mixing_goes_from_the_chunk_to_noise():
    chunk, noise = torch.zeros(2, H, D), torch.ones(2, H, D)
    assert torch.equal(mix(chunk, noise, torch.tensor(0.0)), chunk)
    assert torch.equal(mix(chunk, noise, torch.tensor(1.0)), noise)
