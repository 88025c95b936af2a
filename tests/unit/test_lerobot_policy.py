"""Bundles of LeRobot's policies. Two frozen checkpoints that `lerobot` made, and what its `select_action` said, are always at hand;
where `lerobot` is installed, more of them are made anew. Needs torch (`make test-train`).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="export needs the extra `train`: run `make test-train`")

from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from support.lerobot import complete_torchvision  # noqa: E402
from support.lerobot_policies import CAMERAS, FROZEN, make, unpack  # noqa: E402
from vigil.cli import build_app  # noqa: E402
from vigil.errors import VigilError  # noqa: E402
from vigil.policy.bundle import load_bundle  # noqa: E402
from vigil.policy.runtime import PolicyRuntime  # noqa: E402
from vigil.rig import load_rig  # noqa: E402
from vigil.train.lerobot.binding import Wishes  # noqa: E402
from vigil.train.lerobot.export import build_policy, export_lerobot  # noqa: E402
from vigil.train.lerobot.vision import Resize  # noqa: E402

RIG = load_rig("franka_sim")
WISHES = Wishes(fps=20)
SAME = 1e-4  # [normalised units]: the bar


@pytest.fixture(scope="module", params=sorted(FROZEN))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def unpacked(kind, tmp_path_factory):
    """A frozen checkpoint and its reference."""
    return unpack(kind, tmp_path_factory.mktemp("lerobot"))


@pytest.fixture(scope="module")
def bundle(unpacked, tmp_path_factory):
    return export_lerobot(unpacked[0], tmp_path_factory.mktemp("bundles") / "bundle", RIG, WISHES)


@pytest.fixture
def copy(unpacked, tmp_path) -> Path:
    """A checkpoint that may be changed."""
    return Path(shutil.copytree(unpacked[0], tmp_path / "checkpoint"))


def change(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def answer(policy, images, state, noise):
    """The torch modules on one observation, in the rig's units; arrays in and out."""
    tensors = [torch.from_numpy(images[name])[None] for name in policy.binding.cameras]
    with torch.inference_mode():
        encoded = policy.encoder(*tensors, torch.from_numpy(state)[None])
        read = encoded[1] if isinstance(encoded, tuple) else encoded
        return policy.sampler(torch.from_numpy(noise), read).numpy()


def noise_of(reference, chunk: int, rows: int) -> np.ndarray:
    if reference.noise is not None:
        assert reference.noise.shape[2] == rows
        return reference.noise[chunk]
    return np.zeros((reference.actions.shape[1], rows, reference.actions.shape[-1]), np.float32)


def worst_difference(policy, reference) -> float:
    """Of all chunks, samples and steps, in normalised units."""
    unit = policy.actions.unit.numpy() * policy.sampler.scale.numpy()
    worst = 0.0
    for chunk in range(len(reference.ticks)):
        images, state = reference.history(chunk, policy.checkpoint.config.n_obs_steps)
        made = answer(policy, images, state, noise_of(reference, chunk, policy.noise_rows))
        said = reference.actions[chunk]
        worst = max(worst, float((np.abs(made[:, : said.shape[1]] - said) / unit).max()))
    return worst


def test_a_bundle_says_what_select_action_says(bundle, unpacked):
    _, reference = unpacked
    runtime = PolicyRuntime(load_bundle(bundle.path))
    std = np.array(bundle.spec.action_std)
    assert bundle.spec.horizon == reference.actions.shape[2] == bundle.spec.executed
    for chunk in range(len(reference.ticks)):
        images, state = reference.history(chunk, bundle.spec.observation_steps)
        rows = bundle.sampler.noise_rows or bundle.spec.horizon
        _, made = runtime.run(images, state, noise_of(reference, chunk, rows))
        assert np.abs((made - reference.actions[chunk]) / std).max() < SAME
    # No trivial agreement: the two chunks differ by more than a hundred times the tolerance, and both pictures count.
    assert np.abs((reference.actions[0] - reference.actions[1]) / std).max() > 100 * SAME
    for camera in CAMERAS:
        dark = images | {camera: np.zeros_like(images[camera])}
        _, other = runtime.run(dark, state, noise_of(reference, 1, rows))
        assert np.abs((other - made) / std).max() > 10 * SAME


def test_the_bundle_tells_what_the_checkpoint_does_not(bundle, kind):
    spec = bundle.spec
    assert spec.task == RIG.task and spec.cameras == CAMERAS and spec.image_size == (64, 80)
    assert spec.state_names == spec.action_names == RIG.columns
    assert [column.unit for column in spec.action] == ["rad"] * 7 + ["m"]
    assert spec.step_dt == pytest.approx(0.05)
    assert spec.parity is not None and max(spec.parity.encoder, spec.parity.chunks) < SAME
    if kind == "diffusion":
        assert (spec.observation_steps, spec.horizon) == (2, 7), "steps before the observation are cut off"
        assert (bundle.sampler.method, bundle.sampler.steps, bundle.sampler.noise_rows) == ("ddim", 10, 8)
    else:
        assert (spec.observation_steps, spec.horizon, bundle.sampler.method) == (1, 10, "direct")
        assert spec.context == (1 + 2 * 2 * 3, 32) and bundle.sampler.mode_first
    bundle.check_rig(RIG)


def test_samples_of_one_call_are_those_of_single_calls(bundle, unpacked):
    _, reference = unpacked
    runtime = PolicyRuntime(bundle)
    images, state = reference.history(1, bundle.spec.observation_steps)
    encoded = runtime.encode(images, state)
    together = runtime.draw(encoded, 5, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    alone = [runtime.draw(encoded, 1, rng, first=i == 0) for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    assert np.abs(np.diff(together, axis=0)).max() > 1e-4, "samples differ"
    if bundle.sampler.mode_first:
        np.testing.assert_allclose(together[0], reference.actions[1, 0], atol=1e-5)


def test_ddpm_adds_the_noise_of_its_rows(unpacked, kind, tmp_path):
    """In the graph as in torch; that torch is right is shown with lerobot's own checkpoints of DDPM."""
    if kind != "diffusion":
        pytest.skip("ACT draws no noise")
    wishes = Wishes(fps=20, sampler="ddpm", steps=4)
    runtime = PolicyRuntime(export_lerobot(unpacked[0], tmp_path / "bundle", RIG, wishes))
    policy, (images, state) = build_policy(unpacked[0], RIG, wishes), unpacked[1].history(1, 2)
    noise = np.random.default_rng(0).standard_normal((3, policy.noise_rows, 8), np.float32)
    encoded, made = runtime.run(images, state, noise)
    with torch.inference_mode():
        wanted = policy.sampler(torch.from_numpy(noise), torch.from_numpy(encoded.read.numpy())).numpy()
    std = np.array(runtime.bundle.spec.action_std)
    assert np.abs((made - wanted) / std).max() < SAME
    noise[:, 8:16] = 0.0  # what the first step adds
    assert np.abs((runtime.run(images, state, noise)[1] - made) / std).max() > 100 * SAME


def test_checkpoints_from_before_processors_hold_the_statistics_among_the_weights(copy, unpacked):
    """As lerobot 0.3 and older saved them: buffers with underscores for dots."""
    weights = load_file(copy / "model.safetensors")
    for file, name in (
        ("policy_preprocessor.json", "normalize_inputs"),
        ("policy_postprocessor.json", "unnormalize_outputs"),
    ):
        path = copy / file
        step = next(step for step in json.loads(path.read_text())["steps"] if "state_file" in step)
        for key, value in load_file(copy / step["state_file"]).items():
            feature, _, statistic = key.rpartition(".")
            if feature == "action" and name == "normalize_inputs":
                continue
            weights[f"{name}.buffer_{feature.replace('.', '_')}.{statistic}"] = value
        path.unlink()
    save_file(weights, copy / "model.safetensors")
    assert worst_difference(build_policy(copy, RIG, WISHES), unpacked[1]) < SAME


def test_weights_of_a_compiled_network_are_found(copy, unpacked, kind):
    if kind != "diffusion":
        pytest.skip("LeRobot compiles diffusion's network alone")
    weights = load_file(copy / "model.safetensors")
    save_file(
        {
            name.replace("diffusion.unet.", "diffusion.unet._orig_mod."): value
            for name, value in weights.items()
        },
        copy / "model.safetensors",
    )
    assert worst_difference(build_policy(copy, RIG, WISHES), unpacked[1]) < SAME


def test_degrees_and_other_units_are_turned_in_the_graph(unpacked):
    folder, reference = unpacked
    plain = build_policy(folder, RIG, WISHES)
    turned = build_policy(folder, RIG, Wishes(fps=20, degrees=True, scales={"gripper": (0.001, 0.01)}))
    scale = np.array([*[np.pi / 180] * 7, 0.001], np.float32)
    zero = np.array([*[0.0] * 7, 0.01], np.float32)
    images, state = reference.history(1, plain.checkpoint.config.n_obs_steps)
    noise = noise_of(reference, 1, plain.noise_rows)
    made = answer(turned, images, state * scale + zero, noise)
    np.testing.assert_allclose(made, answer(plain, images, state, noise) * scale + zero, atol=1e-5)


def test_columns_and_cameras_are_put_in_the_rigs_names(unpacked):
    folder, reference = unpacked
    order = tuple(reversed(RIG.columns))
    keys = {"wrist": "observation.images.scene", "scene": "observation.images.wrist"}
    policy = build_policy(folder, RIG, Wishes(fps=10, columns=order, cameras=keys))
    assert policy.binding.cameras == ("scene", "wrist") and policy.binding.step_dt == pytest.approx(0.1)
    assert tuple(column.name for column in policy.binding.action) == order
    assert [column.unit for column in policy.binding.state] == ["m"] + ["rad"] * 7
    images, state = reference.history(1, policy.checkpoint.config.n_obs_steps)
    swapped = {"scene": images["wrist"], "wrist": images["scene"]}
    noise = noise_of(reference, 1, policy.noise_rows)
    made = answer(policy, swapped, state, noise)
    np.testing.assert_allclose(made, reference.actions[1], atol=1e-5)


def dataset(folder: Path, names, fps: float = 25) -> Path:
    vector = {"dtype": "float32", "shape": [8], "names": names}
    (folder / "meta").mkdir(parents=True)
    info = {"fps": fps, "features": {"observation.state": vector, "action": vector}}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("form", ["list", "drivers", "groups"])
def test_a_data_sets_meta_names_the_columns_and_the_rate(unpacked, tmp_path, form):
    order = list(reversed(RIG.columns))
    names = {"list": order, "drivers": [f"{name}.pos" for name in order], "groups": {"motors": order}}[form]
    policy = build_policy(unpacked[0], RIG, Wishes(dataset=dataset(tmp_path / "set", names)))
    assert [
        column.name for column in policy.binding.action
    ] == order and policy.binding.step_dt == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (Wishes(), "--fps"),
        (Wishes(fps=-1), "-1 Hz"),
        (Wishes(fps=20, columns=("a", "b")), "--columns"),
        (Wishes(fps=20, columns=(*RIG.columns[:7], "claw")), "has no claw"),
        (Wishes(fps=20, columns=(*RIG.columns[:7], RIG.columns[0])), "repeat"),
        (Wishes(fps=20, state_columns=RIG.columns[:3]), "--state-columns"),
        (Wishes(fps=20, cameras={"front": "observation.images.wrist"}), "front=observation.images.wrist"),
        (Wishes(fps=20, cameras={"scene": "observation.images.wrist"}), "one camera for several"),
        (Wishes(fps=20, scales={"claw": (1.0, 0.0)}), "--scale claw"),
        (Wishes(fps=20, sampler="euler"), "--sampler|euler"),
        (Wishes(dataset=Path("nowhere")), "meta/info.json"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_rig_is_refused(unpacked, wishes, said):
    with pytest.raises(VigilError, match=said):
        build_policy(unpacked[0], RIG, wishes)


def test_a_data_set_that_does_not_fit_is_refused(unpacked, tmp_path):
    names = dataset(tmp_path / "names", [f"motor_{i}" for i in range(8)])
    with pytest.raises(VigilError, match=r"has no motor_0.*--columns"):
        build_policy(unpacked[0], RIG, Wishes(dataset=names))
    with pytest.raises(VigilError, match="--fps is 20, the data set says 25"):
        build_policy(unpacked[0], RIG, Wishes(fps=20, dataset=dataset(tmp_path / "rate", list(RIG.columns))))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": "smolvla"}, "type 'smolvla' are not supported, only diffusion, act"),
        ({"vision_backbone": "vit"}, "vision_backbone"),
        ({"rope": 3}, "rope"),
        ({"use_peft": True}, "use_peft"),
        ({"input_shapes": {}}, "before 0.1"),
        ({"input_features": {"observation.state": {"type": "STATE", "shape": [8]}}}, "without a camera"),
        (
            {"input_features": {"observation.environment_state": {"type": "ENV", "shape": [2]}}},
            "observation.state",
        ),
        ({"output_features": {"base": {"type": "ACTION", "shape": [2]}}}, "base"),
        ({"n_action_steps": 99}, "n_action_steps"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(copy, fields, said):
    change(copy, **fields)
    with pytest.raises(VigilError, match=said) as caught:
        build_policy(copy, RIG, WISHES)
    assert "config.json" in str(caught.value)


def test_fields_that_are_switched_off_are_no_reason_to_refuse(copy, unpacked):
    change(copy, a_later_option=None, another=False)
    assert worst_difference(build_policy(copy, RIG, WISHES), unpacked[1]) < SAME


def test_broken_checkpoints_are_refused(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(VigilError, match="no whole safetensors"):
        build_policy(copy, RIG, WISHES)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    lost = next(
        name
        for name in tensors
        if name.endswith("backbone.conv1.weight") or name.endswith("backbone.0.weight")
    )
    save_file({name: value for name, value in tensors.items() if name != lost}, weights)
    with pytest.raises(VigilError, match="missing 1"):
        build_policy(copy, RIG, WISHES)
    save_file({**tensors, "diffusion.more": tensors[lost].clone()}, weights)
    with pytest.raises(VigilError, match="without a place 1"):
        build_policy(copy, RIG, WISHES)
    weights.unlink()
    with pytest.raises(VigilError, match=r"lacks model\.safetensors"):
        build_policy(copy, RIG, WISHES)


def test_processors_that_do_something_else_are_refused(copy):
    path = copy / "policy_preprocessor.json"
    whole = json.loads(path.read_text())
    path.write_text(
        json.dumps(whole | {"steps": [*whole["steps"], {"registry_name": "delta_action_processor"}]})
    )
    with pytest.raises(VigilError, match="delta_action_processor"):
        build_policy(copy, RIG, WISHES)
    path.write_text(json.dumps(whole | {"steps": [s for s in whole["steps"] if "state_file" not in s]}))
    with pytest.raises(VigilError, match="has no normalizer_processor"):
        build_policy(copy, RIG, WISHES)
    path.unlink()
    with pytest.raises(VigilError, match="neither policy_preprocessor"):
        build_policy(copy, RIG, WISHES)


def test_missing_statistics_are_refused(copy):
    path = next(copy.glob("policy_preprocessor_*.safetensors"))
    kept = {
        name: value for name, value in load_file(path).items() if not name.startswith("observation.state.")
    }
    save_file(kept, path)
    with pytest.raises(VigilError, match=r"normalises observation\.state by"):
        build_policy(copy, RIG, WISHES)


def test_the_command_tells_whose_checkpoint_it_is(tmp_path):
    folder, _ = unpack("act", tmp_path)
    app, run = build_app("export"), CliRunner().invoke
    out = tmp_path / "bundle"
    done = run(
        app,
        [
            "export",
            str(folder),
            "--out",
            str(out),
            "--fps",
            "20",
            "--camera",
            "wrist=observation.images.wrist",
        ],
    )
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((out / "bundle.yaml").read_text())["name"].startswith("lerobot_")
    for option in (["--camera", "wrist"], ["--scale", "gripper=0"], ["--scale", "gripper=a"]):
        refused = run(app, ["export", str(folder), "--out", str(out), "--fps", "20", *option])
        assert refused.exit_code != 0 and option[0] in str(refused.exception or refused.output)


@pytest.mark.parametrize(
    ("before", "after"), [((64, 80), (32, 48)), ((30, 40), (60, 44)), ((48, 48), (37, 48))]
)
def test_resizing_is_that_of_torchvision(before, after):
    images = torch.rand(2, 3, *before)
    wanted = torch.nn.functional.interpolate(images, size=after, mode="bilinear", antialias=True)
    torch.testing.assert_close(Resize(before, after)(images), wanted, atol=1e-5, rtol=0)


RANGES = {"VISUAL": "MIN_MAX", "STATE": "QUANTILES", "ACTION": "QUANTILE10"}
PLAIN = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
DIFFUSION, ACT = FROZEN["diffusion"], FROZEN["act"]
VARIANTS: dict[str, tuple[dict, Wishes]] = {
    "ddpm": (DIFFUSION | {"noise_scheduler_type": "DDPM", "num_inference_steps": None}, Wishes(fps=20, sampler="ddpm")),
    "ddpm of few steps": (DIFFUSION | {"noise_scheduler_type": "DDPM", "num_inference_steps": 7}, Wishes(fps=20, sampler="ddpm")),
    "all steps of ddim": (DIFFUSION | {"num_inference_steps": 100}, WISHES),
    "sample": (DIFFUSION | {"prediction_type": "sample", "clip_sample_range": 0.7, "beta_schedule": "linear"}, WISHES),
    "sample of ddpm": (
        DIFFUSION | {"prediction_type": "sample", "noise_scheduler_type": "DDPM", "clip_sample": False, "beta_schedule": "scaled_linear"},
        Wishes(fps=20, sampler="ddpm"),
    ),
    "other networks": (
        DIFFUSION | {
            "use_separate_rgb_encoder_per_camera": True, "use_group_norm": False, "vision_backbone": "resnet34",
            "use_film_scale_modulation": False, "down_dims": (16, 24, 32), "kernel_size": 5, "crop_shape": None, "n_action_steps": 3,
        },
        WISHES,
    ),
    "resized": (DIFFUSION | {"resize_shape": (48, 50), "crop_ratio": 0.9, "normalization_mapping": RANGES}, WISHES),
    "one observation": (DIFFUSION | {"n_obs_steps": 1, "n_action_steps": 8, "normalization_mapping": PLAIN}, WISHES),
    "act before norms": (ACT | {"pre_norm": True, "feedforward_activation": "gelu", "n_decoder_layers": 2}, WISHES),
    "act without a vae": (
        ACT | {
            "use_vae": False, "vision_backbone": "resnet50", "replace_final_stride_with_dilation": True,
            "normalization_mapping": RANGES, "n_action_steps": 4,
        },
        WISHES,
    ),
    "act at every step": (ACT | {"n_action_steps": 10, "latent_dim": 5}, WISHES),
}  # fmt: skip


@pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None, reason="the package lerobot is not installed"
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_lerobot_makes_here_is_rebuilt(variant, tmp_path):
    complete_torchvision()
    options, wishes = VARIANTS[variant]
    reference = make(tmp_path / "checkpoint", options, seed=len(variant))
    policy = build_policy(tmp_path / "checkpoint", RIG, wishes)
    assert worst_difference(policy, reference) < SAME


@pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None, reason="the package lerobot is not installed"
)
def test_the_graph_of_ddpm_takes_the_noise_of_every_step(tmp_path):
    complete_torchvision()
    reference = make(tmp_path / "checkpoint", VARIANTS["ddpm of few steps"][0])
    bundle = export_lerobot(tmp_path / "checkpoint", tmp_path / "bundle", RIG, Wishes(fps=20, sampler="ddpm"))
    assert bundle.sampler.noise_rows == 7 * 8
    images, state = reference.history(1, 2)
    _, made = PolicyRuntime(bundle).run(images, state, reference.noise[1])
    assert np.abs((made - reference.actions[1]) / np.array(bundle.spec.action_std)).max() < SAME
