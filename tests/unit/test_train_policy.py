"""Training and export on a small synthetic data set. Needs torch (`make test-train` installs it)."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from vigil.errors import VigilError  # noqa: E402
from vigil.policy.runtime import PolicyRuntime  # noqa: E402
from vigil.rig import load_rig  # noqa: E402
from vigil.train.config import TrainConfig, load_config  # noqa: E402
from vigil.train.demonstrations import (  # noqa: E402
    DemonstrationSet,
    chunks_of,
    draw_appearance,
    kinematics_of,
)
from vigil.train.export import export_bundle, load_policy  # noqa: E402
from vigil.train.model import DdimSampler, PolicyNet, cosine_schedule, ddim_steps  # noqa: E402
from vigil.train.trainer import Trainer  # noqa: E402

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


def test_the_schedule_falls_from_clean_to_noise_and_ddim_begins_at_noise() -> None:
    alphas = cosine_schedule(100)
    assert alphas[0] > 0.99 and alphas[-1] < 1e-3
    assert (alphas.diff() < 0).all()
    steps = ddim_steps(100, 10)
    assert steps == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]


def test_the_sampler_undoes_noise_when_the_velocity_is_right() -> None:
    data = small_set()
    statistics = {n: torch.from_numpy(v) for n, v in data.statistics(np.arange(len(data.states))).items()}
    net = PolicyNet(config(), data.cameras, statistics, 4)
    clean = torch.linspace(-0.9, 0.9, 16 * 8)[None]

    class Perfect(torch.nn.Module):
        def forward(self, x, embedding, step):
            a = net.alpha_bar[step][:, None]
            noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
            return net.velocity(clean.expand_as(x), noise, step)

    net.denoiser = Perfect()
    chunks = DdimSampler(net, 10)(torch.randn(3, 16, 8), torch.zeros(1, 32))
    expected = net.physical_actions(clean.reshape(1, 16, 8)).expand(3, -1, -1)
    torch.testing.assert_close(chunks, expected, atol=1e-4, rtol=0)


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
    net, _ = load_policy(whole.checkpoint_path)
    noise = np.random.default_rng(1).standard_normal((5, 16, 8), np.float32)
    images = {name: data.images[name][0] for name in data.cameras}
    embedding, chunks = PolicyRuntime(bundle).run(images, data.states[0], noise)
    with torch.inference_mode():
        tensors = [torch.from_numpy(images[name][None]) for name in net.encoder.cameras]
        expected = net.encoder(*tensors, torch.from_numpy(data.states[:1]))
        sampled = DdimSampler(net, 4)(torch.from_numpy(noise), expected)
    np.testing.assert_allclose(embedding, expected[0], atol=1e-5)
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
