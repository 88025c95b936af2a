"""Every objective on every backbone learns a distribution with two modes: both are drawn, and never what lies between them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from vigil.train.backbones import BACKBONES, modulate  # noqa: E402
from vigil.train.config import TrainConfig  # noqa: E402
from vigil.train.model import PolicyNet, cosine_schedule  # noqa: E402
from vigil.train.objectives import ADAPTIVE_FLOOR, OBJECTIVES, dispersive_loss, mean_flow_loss  # noqa: E402
from vigil.train.samplers import Streaming, StreamingStart, make_sampler  # noqa: E402

H, D, E = 8, 2, 4
STEPS = {"diffusion": 10, "flow": 10, "mean_flow": 1, "streaming": 3}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def policy(objective: str, backbone: str = "mlp", **changes) -> PolicyNet:
    width = {"mlp": 128, "unet": 32, "transformer": 48}[backbone]
    settings = {
        "embedding": E,
        "denoiser_width": width,
        "denoiser_blocks": 2,
        "horizon": H,
        "executed_steps": 2,
    }
    config = TrainConfig(objective=objective, backbone=backbone, **settings | changes)
    ones = torch.ones(D)
    ranges = {"state_low": -ones, "state_high": ones, "action_low": -ones, "action_high": ones}
    return PolicyNet(config, ("scene",), ranges, 0)


def demonstrations(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """To the left or to the right of an obstacle, as often; how far is what the embedding says."""
    embedding = torch.randn(count, E)
    side = torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1
    far = 0.5 + 0.2 * torch.tanh(embedding[:, :1, None])
    along = torch.linspace(0.4, 1, H)[None, :, None]
    return embedding, (side * far * along).expand(-1, H, D)


def train(net: PolicyNet, updates: int = 500, batch: int = 128) -> None:
    optimiser = torch.optim.AdamW(net.denoiser.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, updates)
    for _ in range(updates):
        embedding, chunk = demonstrations(batch)
        loss = OBJECTIVES[net.config.objective].loss(net, embedding, chunk)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def draw(net: PolicyNet, embedding: torch.Tensor, count: int) -> torch.Tensor:
    steps = STEPS[net.config.objective]
    with torch.inference_mode():
        if net.config.objective != "streaming":
            return make_sampler(net, None, steps)(torch.randn(count, H, D), embedding)
        _, buffer = StreamingStart(net, steps)(torch.randn(count, H, D), embedding)
        for _ in range(2 * H // net.config.executed_steps):  # the stream runs on under the same observation
            chunks, buffer = Streaming(net, steps)(torch.randn(count, 2, D), buffer, embedding)
        return chunks


@pytest.mark.parametrize(
    ("objective", "backbone"),
    [(objective, "mlp") for objective in OBJECTIVES] + [("flow", "unet"), ("flow", "transformer")],
)
def test_two_ways_are_learnt_as_two_ways(objective, backbone):
    net = policy(objective, backbone)
    train(net)
    net.eval()
    embedding = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    chunks = draw(net, embedding, 256)
    if objective == "streaming":
        # A stream moves on while its world stands still: what it goes on with is its own side, at any distance.
        sides = chunks[:, 0].mean(-1)
        low, high, wanted = 0.1, 0.9, sides
    else:
        sides = chunks.mean((1, 2)) / 0.7
        low, high = 0.4, 0.9
        wanted = sides
    left, right = (wanted < 0).float().mean(), (wanted > 0).float().mean()
    assert left > 0.3 and right > 0.3, "both ways are drawn"
    within = ((wanted.abs() > low) & (wanted.abs() < high)).float().mean()
    assert within > 0.85, f"only {within:.0%} go one of the two ways"
    if objective != "streaming":
        one_side = (chunks.sign() == chunks.sign()[:, :1, :1]).float().mean()
        assert one_side > 0.95, "a chunk does not change sides"


def test_the_embedding_decides_what_it_decided_in_training():
    net = policy("mean_flow")
    train(net)
    far, near = (draw(net, torch.tensor([[x, 0.0, 0.0, 0.0]]), 128).abs().mean() for x in (2.0, -2.0))
    assert far > 1.4 * near


def test_mean_flow_without_intervals_is_flow_matching():
    """With r = t the target is the velocity itself: the derivative has no part in it."""
    net = policy("mean_flow", mean_flow_ratio=0.0)
    embedding, chunk = demonstrations(64)
    torch.manual_seed(1)
    loss = mean_flow_loss(net, embedding, chunk)
    loss.backward()
    torch.manual_seed(1)
    times = torch.sigmoid(-0.4 + torch.randn(64, 2)).sort(-1).values[:, 1]
    torch.rand(64)
    noise = torch.randn_like(chunk)
    x = (1 - times[:, None, None]) * chunk + times[:, None, None] * noise
    predicted = net.denoiser(x, embedding, torch.stack([times, torch.zeros_like(times)], -1))
    error = (predicted - (noise - chunk)).square().flatten(1).sum(-1)
    torch.testing.assert_close(loss, (error / (error + ADAPTIVE_FLOOR)).mean())


def test_the_jvp_is_the_derivative_along_the_path():
    net = policy("mean_flow")
    for parameter in net.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net.double()
    embedding, chunk = (x[:4].double() for x in demonstrations(4))
    velocity, begin, end = (
        torch.randn_like(chunk),
        torch.full((4,), 0.2).double(),
        torch.full((4,), 0.7).double(),
    )

    def average(x, end):
        return net.denoiser(x, embedding, torch.stack([end, end - begin], -1))

    _, slope = torch.func.jvp(average, (chunk, end), (velocity, torch.ones_like(end)))
    h = 1e-5
    ahead, behind = (average(chunk + s * h * velocity, end + s * h) for s in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), atol=1e-5, rtol=1e-5)


def test_the_dispersive_loss_falls_as_features_spread():
    features = torch.randn(16, 32)
    assert dispersive_loss(2 * features) < dispersive_loss(features) < dispersive_loss(0 * features + 1)
    assert abs(dispersive_loss(torch.ones(16, 32))) < 1e-5
    net = policy("mean_flow", dispersive_weight=0.5)
    embedding, chunk = demonstrations(16)
    mean_flow_loss(net, embedding, chunk).backward()
    assert net.denoiser.inlet.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_shared_condition_is_the_same_as_one_per_sample(backbone):
    net = policy("flow", backbone)
    for parameter in net.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    chunk, embedding, level = torch.randn(6, H, D), torch.randn(1, E), torch.full((1, 1), 0.3)
    alone = net.denoiser(chunk, embedding, level)
    each = net.denoiser(chunk, embedding.expand(6, -1), level.expand(6, -1))
    torch.testing.assert_close(alone, each, atol=1e-5, rtol=1e-4)
    assert alone.shape == chunk.shape


def test_a_shared_film_is_one_norm():
    x, gain, shift = torch.randn(3, H, 8), torch.randn(1, 8), torch.randn(1, 8)
    expected = torch.nn.functional.layer_norm(x, (8,)) * gain + shift
    torch.testing.assert_close(modulate(x, (gain, shift)), expected)


def test_the_schedule_falls_from_clean_to_noise():
    alphas = cosine_schedule(100)
    assert alphas[0] > 0.99 and alphas[-1] < 1e-3
    assert (alphas.diff() < 0).all()


def test_settings_that_do_not_fit_are_refused():
    for settings, reason in (
        ({"backbone": "unet", "horizon": 12}, "halves a chunk 3 times"),
        ({"backbone": "transformer", "denoiser_width": 100}, "64 wide"),
        ({"backbone": "transformer", "denoiser_width": 5}, "64 wide"),
        ({"objective": "streaming", "executed_steps": 5}, "has to divide horizon"),
    ):
        with pytest.raises(ValueError, match=reason):
            TrainConfig(**settings)
