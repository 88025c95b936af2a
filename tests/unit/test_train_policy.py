"""Training and export on a small synthetic data set. Needs torch (`make test-train` installs it)."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from vigil.errors import VigilError  # noqa: E402
from vigil.policy.runtime import PolicyRuntime  # noqa: E402
from vigil.rig import load_rig  # noqa: E402
from vigil.train.backbones import Conv, TransformerBlock  # noqa: E402
from vigil.train.choice import best  # noqa: E402
from vigil.train.config import TrainConfig, load_config  # noqa: E402
from vigil.train.demonstrations import (  # noqa: E402
    DemonstrationSet,
    chunks_of,
    draw_appearance,
    kinematics_of,
)
from vigil.train.export import export_bundle  # noqa: E402
from vigil.train.objectives import OBJECTIVES  # noqa: E402
from vigil.train.samplers import make_sampler  # noqa: E402
from vigil.train.trainer import Trainer, inherit  # noqa: E402
from vigil.train.weights import Trained, load_policy, same_encoder  # noqa: E402

RIG = load_rig("franka_sim")
SMALL = {
    "embedding": 32,
    "denoiser_width": 64,
    "denoiser_blocks": 2,
    "batch": 8,
    "warmup": 5,
    "checkpoint_every": 20,
    "validation_episodes": 1,
    "sampler_steps": 4,
}


def config(**changes) -> TrainConfig:
    return TrainConfig(**SMALL | {"steps": 40} | changes)


def small_set(episodes: int = 3, steps: int = 12, kinematics: str = "franka") -> DemonstrationSet:
    """Pictures that say where the arm has to go: their brightness is the wanted joint angle."""
    rng = np.random.default_rng(0)
    rows, columns = episodes * steps, len(RIG.arm.columns)
    goal = rng.uniform(0.2, 0.8, rows).astype(np.float32)
    picture = (goal[:, None, None, None] * np.full((rows, 96, 96, 3), 255)).astype(np.uint8)
    return DemonstrationSet(
        cameras=("wrist", "scene"),
        columns=RIG.arm.columns,
        grippers=("gripper",),
        kinematics=kinematics,
        task=RIG.task,
        images={"wrist": picture, "scene": picture.copy()},
        states=rng.uniform(-1, 1, (rows, columns)).astype(np.float32),
        chunks=np.repeat(goal[:, None, None], 16, 1) * np.ones(columns, np.float32),
        labels=goal[:, None] * np.ones(4, np.float32),
        episode=np.repeat(np.arange(episodes), steps),
    )


def test_chunks_hold_what_is_due_now_and_next_and_end_at_rest() -> None:
    commands = np.arange(5, dtype=np.float32)[:, None]
    chunks = chunks_of(commands, 3)
    assert chunks[0, :, 0].tolist() == [0, 1, 2]
    assert chunks[3, :, 0].tolist() == [3, 4, 4]
    assert chunks[4, :, 0].tolist() == [4, 4, 4]


def test_episodes_are_never_split_between_training_and_validation() -> None:
    data = small_set()
    training, validation = data.split(1, seed=3)
    assert not set(data.episode[training]) & set(data.episode[validation])
    with pytest.raises(VigilError, match="record more"):
        data.split(3, seed=0)


def test_appearances_are_ones_that_every_camera_knows() -> None:
    from vigil.sim.appearance import decode, encode

    rng = np.random.default_rng(0)
    for _ in range(20):
        look = draw_appearance(rng)
        assert set(decode(encode(look))) == set(look)


def test_training_learns_resumes_exactly_and_exports_a_bundle_that_runs(tmp_path) -> None:
    data = small_set()
    whole = Trainer(config(), data, tmp_path / "whole")
    before = whole.validate()["validation_loss"]
    whole.run()
    assert whole.validate()["validation_loss"] < 0.9 * before
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 1000

    first = Trainer(config(), data, tmp_path / "resumed")
    for _ in range(20):
        first._update()
        first.step += 1
    (tmp_path / "resumed").mkdir()
    first.save()
    second = Trainer(config(), data, tmp_path / "resumed")
    second.run()
    for a, b in zip(whole.net.parameters(), second.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

    other = Trainer(config(learning_rate=1e-3), data, tmp_path / "resumed")
    with pytest.raises(VigilError, match="another configuration"):
        other.run()

    bundle = export_bundle(whole.checkpoint_path, tmp_path / "bundle")
    assert bundle.spec.parity.chunks < 1e-4
    bundle.check_rig(RIG)
    for path in bundle.path.glob("*.onnx"):
        assert not re.search(rb"\.py\b", path.read_bytes()), "no source paths of the machine that exported it"
    net = load_policy(whole.checkpoint_path).net
    noise = np.random.default_rng(1).standard_normal((5, 16, 8), np.float32)
    images = {name: data.images[name][0] for name in data.cameras}
    embedding, chunks = PolicyRuntime(bundle).run(images, data.states[0], noise)
    with torch.inference_mode():
        tensors = [torch.from_numpy(images[name][None]) for name in net.encoder.cameras]
        expected = net.encoder(*tensors, torch.from_numpy(data.states[:1]))
        sampled = make_sampler(net)(torch.from_numpy(noise), expected)
    np.testing.assert_allclose(embedding.embedding, expected[0], atol=1e-5)
    np.testing.assert_allclose(chunks, sampled, atol=1e-4)


def test_a_bundle_is_for_the_arms_of_its_rig(tmp_path) -> None:
    assert [kinematics_of(load_rig(name)) for name in ("franka_sim", "aloha")] == ["franka", "viperx300s"]
    first, second = load_rig("aloha").arms
    mixed = load_rig("aloha").model_copy(
        update={"arms": (first, second.model_copy(update={"kinematics": "franka"}))}
    )
    with pytest.raises(VigilError, match="several kinds"):
        kinematics_of(mixed)
    trainer = Trainer(config(steps=2), small_set(kinematics="viperx300s"), tmp_path / "run")
    trainer.run()
    spec = export_bundle(trainer.checkpoint_path, tmp_path / "bundle").spec
    assert spec.kinematics == "viperx300s"
    assert "kinematics" not in spec.training


def test_a_missing_checkpoint_and_a_wrong_setting_say_what_to_do(tmp_path) -> None:
    with pytest.raises(VigilError, match="vigil train"):
        export_bundle(tmp_path / "none.pt", tmp_path / "bundle")
    file = tmp_path / "train.yaml"
    file.write_text("steps: 0\nbach: 3\n")
    with pytest.raises(VigilError, match=r"train.yaml:1: steps.*\n.*train.yaml:2: bach is not a setting"):
        load_config(file)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A diffusion policy, trained a little, to go on from."""
    trainer = Trainer(config(steps=10), small_set(), tmp_path_factory.mktemp("first"))
    trainer.run()
    return trainer


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_denoiser_of_any_objective_is_trained_on_a_frozen_encoder_and_resumes_exactly(
    objective, first_run, tmp_path
):
    source = load_policy(first_run.checkpoint_path)
    wanted = inherit(config(objective=objective, freeze_encoder=True, sampler_steps=None), source.net.config)
    whole = Trainer(wanted, small_set(), tmp_path / "whole", source)
    before = whole.validate()["validation_loss"]
    whole.run()
    assert whole.validate()["validation_loss"] < before
    assert same_encoder(whole.average.encoder, source.net.encoder), "not a bit of the encoder may change"
    assert np.isfinite([row["loss"] for row in whole.log]).all()

    (tmp_path / "resumed").mkdir()
    half = Trainer(wanted, small_set(), tmp_path / "resumed", source)
    for _ in range(20):
        half._update()
        half.step += 1
    half.save()
    resumed = Trainer(wanted, small_set(), tmp_path / "resumed", source)
    resumed.run()
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

    assert [path.name for path in whole.kept()] == ["step_0000020.pt", "step_0000040.pt"]
    kept = load_policy(whole.kept()[-1]).net
    for a, b in zip(kept.parameters(), whole.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_embeddings_of_a_frozen_encoder_are_made_once_and_the_first_is_what_serving_has(first_run, tmp_path):
    source, data = load_policy(first_run.checkpoint_path), small_set()
    wanted = inherit(config(steps=1, freeze_encoder=True, augmentations=3), source.net.config)
    trainer = Trainer(wanted, data, tmp_path / "run", source)
    images = [torch.from_numpy(data.images[name]) for name in data.cameras]
    with torch.inference_mode():
        served = source.net.encoder(*images, torch.from_numpy(data.states))
    np.testing.assert_allclose(trainer.embeddings[0], served, atol=1e-4)
    assert trainer.embeddings.shape == (3, len(data.states), 32)
    assert abs(trainer.embeddings[1] - trainer.embeddings[0]).max() > 1e-3, (
        "the others are of changed pictures"
    )
    written = (tmp_path / "run" / "embeddings.npz").stat().st_mtime_ns
    again = Trainer(wanted, data, tmp_path / "run", source)
    assert (tmp_path / "run" / "embeddings.npz").stat().st_mtime_ns == written
    assert np.array_equal(again.embeddings, trainer.embeddings)


def test_going_on_takes_the_encoder_as_it_is_and_refuses_another(first_run, tmp_path):
    source = load_policy(first_run.checkpoint_path)
    with pytest.raises(VigilError, match=r"made otherwise: embedding 64 \(there 32\)"):
        inherit(config(embedding=64), source.net.config)
    assert inherit(TrainConfig(), source.net.config).embedding == 32
    strange = Trained(source.net, {**source.facts, "cameras": ["left"]})
    with pytest.raises(VigilError, match=r"made for the cameras \['left'\]"):
        Trainer(inherit(config(), source.net.config), small_set(), tmp_path, strange)
    same_kind = Trainer(inherit(config(), source.net.config), small_set(), tmp_path, source)
    assert torch.equal(same_kind.net.denoiser.inlet.weight, source.net.denoiser.inlet.weight)
    frozen = inherit(config(freeze_encoder=True), source.net.config)
    anew = Trainer(frozen, small_set(), tmp_path / "anew", source)
    assert not torch.equal(anew.net.denoiser.inlet.weight, source.net.denoiser.inlet.weight)


def test_the_best_checkpoint_succeeds_most_then_fastest_then_is_the_last():
    def row(successes, seconds):
        return {"successes": successes, "mean_success_s": seconds}

    assert best([row(9, 5.0), row(10, 7.0), row(8, 4.0)]) == 1
    assert best([row(10, 7.0), row(10, 6.5), row(9, 1.0)]) == 1
    assert best([row(10, 7.0), row(10, 7.0)]) == 1
    assert best([row(0, None), row(1, 9.0)]) == 1


def test_the_convolution_is_that_of_torch():
    """Written as one product of matrices; zeros around the chunk."""
    torch.manual_seed(0)
    made, x = Conv(6, 4), torch.randn(3, 8, 6)
    weight = made.linear.weight.reshape(4, Conv.KERNEL, 6).permute(0, 2, 1)
    wanted = torch.nn.functional.conv1d(x.transpose(1, 2), weight, made.linear.bias, padding=Conv.KERNEL // 2)
    torch.testing.assert_close(made(x), wanted.transpose(1, 2))


@pytest.mark.parametrize("head_width", [64, 48])
def test_the_attention_is_that_of_torch(head_width):
    torch.manual_seed(0)
    block, x = TransformerBlock(192, head_width), torch.randn(2, 5, 192)
    torch.nn.init.normal_(block.join.weight)
    torch.nn.init.zeros_(block.down.weight)
    plain = (torch.ones(1, 192), torch.zeros(1, 192))
    reference = torch.nn.MultiheadAttention(192, 192 // head_width, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    reference.out_proj.weight.data, reference.out_proj.bias.data = (
        block.join.weight.data,
        block.join.bias.data,
    )
    tokens = torch.nn.functional.layer_norm(x, (192,))
    torch.testing.assert_close(block(x, plain, plain), x + reference(tokens, tokens, tokens)[0])


@pytest.mark.parametrize(
    ("width", "head_width", "reason"),
    [(160, 64, "64 wide .* multiple"), (192, 36, "36 wide .* multiple"), (189, 63, "has to be even")],
)
def test_a_transformer_that_its_heads_do_not_divide_is_refused(width, head_width, reason):
    with pytest.raises(ValueError, match=reason):
        TrainConfig(backbone="transformer", denoiser_width=width, head_width=head_width)
    TrainConfig(backbone="mlp", denoiser_width=width, head_width=head_width)  # which has none
