"""Bundles with several samplers, bundles as checkpoints, and exports that are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml

torch = pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from vigil.errors import VigilError  # noqa: E402
from vigil.policy import spec as s  # noqa: E402
from vigil.policy.bundle import load_bundle  # noqa: E402
from vigil.policy.runtime import Known, PolicyRuntime  # noqa: E402
from vigil.rig import root  # noqa: E402
from vigil.train import export as export_module  # noqa: E402
from vigil.train.config import TrainConfig  # noqa: E402
from vigil.train.export import SamplerRequest, export_bundle  # noqa: E402
from vigil.train.model import PolicyNet  # noqa: E402
from vigil.train.samplers import SAMPLERS, Streaming, StreamingStart, make_sampler  # noqa: E402
from vigil.train.weights import NOTE, load_policy  # noqa: E402

SHIPPED = root() / "models" / "franka_pick_place"
SHIPPED_IDENTITY = "e63a45a9"
CAMERAS, COLUMNS = ("wrist", "scene"), ("a", "b", "gripper")
SMALL = {
    "name": "small",
    "width": 8,
    "keypoints": 4,
    "embedding": 16,
    "denoiser_width": 32,
    "denoiser_blocks": 2,
    "image_size": 32,
    "crop": 24,
    "horizon": 8,
    "executed_steps": 2,
}


def write_checkpoint(path: Path, encoder=None, **changes) -> PolicyNet:
    """A checkpoint of a network that was never trained, but whose every weight is a number of its own."""
    torch.manual_seed(len(changes))
    config = TrainConfig(**SMALL | changes)
    ranges = {f"{kind}_low": torch.tensor([-1.0, -2.0, 0.0]) for kind in ("state", "action")}
    ranges |= {f"{kind}_high": torch.tensor([1.0, 0.5, 0.08]) for kind in ("state", "action")}
    net = PolicyNet(config, CAMERAS, ranges, 0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    if encoder is not None:
        net.encoder.load_state_dict(encoder.state_dict())
    facts = {
        "cameras": list(CAMERAS),
        "columns": list(COLUMNS),
        "grippers": ["gripper"],
        "kinematics": "franka",
        "task": "stack",
        "action_std": [0.3, 0.2, 0.02],
        "demonstrations": 3,
        "rows": 90,
        "data_sha256": "0123456789abcdef",
    }
    torch.save(
        {
            "config": config.model_dump(),
            "data": facts,
            "average": net.state_dict(),
            "step": 7,
            "seconds": 60.0,
        },
        path,
    )
    return net.eval()


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A checkpoint, its network, and the bundle made of it."""
    folder = tmp_path_factory.mktemp("diffusion")
    net = write_checkpoint(folder / "checkpoint.pt")
    export_bundle(folder / "checkpoint.pt", folder / "bundle", SamplerRequest(steps=3))
    return folder, net


@pytest.fixture
def bundle(diffusion, tmp_path):
    return Path(shutil.copytree(diffusion[0] / "bundle", tmp_path / "bundle"))


def observation():
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 255, (32, 32, 3), np.uint8) for name in CAMERAS}
    return images, rng.uniform(-1, 1, 3).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [  # every sampler and every backbone; an export takes seconds, so not each with each
        *((method, "mlp") for method in ("ddim", "euler", "midpoint", "mean_flow", "streaming")),
        *((method, "unet") for method in ("ddim", "mean_flow")),
        *((method, "transformer") for method in ("euler", "streaming")),
    ],
)
def test_the_same_noise_gives_the_same_chunk_in_torch_and_onnx(method, backbone, diffusion, tmp_path):
    """Beside the first sampler, for any K, with a denoiser of its own on the same encoder."""
    folder, first = diffusion
    bundle = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    inpaint = SAMPLERS[method].inpaints
    width = 128 if backbone == "transformer" else 16  # two heads
    changes = {"objective": SAMPLERS[method].objective, "backbone": backbone, "denoiser_width": width}
    net = write_checkpoint(tmp_path / "checkpoint.pt", first.encoder, **changes)
    wanted = SamplerRequest(method, "other", 2, inpaint)
    runtime = PolicyRuntime(export_bundle(tmp_path / "checkpoint.pt", bundle, wanted))
    encoded = runtime.encode(*observation())
    embedding = torch.from_numpy(encoded.embedding)[None]
    for k in (1, 5):
        rng, same = np.random.default_rng(k), np.random.default_rng(k)
        if method == "streaming":
            chunks, buffer = runtime.stream(encoded, k, rng, None)
            following, after = runtime.stream(encoded, k, rng, buffer)
            with torch.inference_mode():
                noise = torch.from_numpy(same.standard_normal((k, 8, 3), dtype=np.float32))
                expected, middle = StreamingStart(net, 2)(noise, embedding)
                noise = torch.from_numpy(same.standard_normal((k, 2, 3), dtype=np.float32))
                then, last = Streaming(net, 2)(noise, middle, embedding)
            pairs = ((chunks, expected), (buffer, middle), (following, then), (after, last))
        else:
            known = Known(np.full((8, 3), 0.04, np.float32), np.linspace(1, 0, 8, dtype=np.float32))
            chunks = runtime.draw(encoded, k, rng, known if inpaint else None)
            given = [torch.from_numpy(known.positions[None]), torch.from_numpy(known.weight[None])]
            with torch.inference_mode():
                noise = torch.from_numpy(same.standard_normal((k, 8, 3), dtype=np.float32))
                sampler = make_sampler(net, method, 2, inpaint)
                pairs = ((chunks, sampler(noise, embedding, *(given if inpaint else ()))),)
        for made, wanted_values in pairs:
            np.testing.assert_allclose(made, wanted_values, atol=1e-4)
    read = load_policy(bundle, sampler="other")
    for name, values in net.state_dict().items():
        assert torch.equal(read.net.state_dict()[name], values), name
    assert read.net.config == net.config


def test_a_sampler_more_leaves_everything_else_as_it_was(bundle, diffusion):
    before = load_bundle(bundle)
    files = {path.name: path.read_bytes() for path in bundle.glob("*.onnx")}
    added = export_bundle(bundle, bundle, SamplerRequest("dpm_solver", steps=2, inpaint=True))
    assert list(added.spec.samplers) == ["ddim", "dpm_solver"] and added.sampler_name == "dpm_solver"
    assert {name: (bundle / name).read_bytes() for name in files} == files
    assert added.spec.identity("ddim") == before.content_hash
    assert added.spec.default_sampler == "ddim"
    assert PolicyRuntime(load_bundle(bundle)).run(*observation(), np.zeros((2, 8, 3), np.float32))
    facts = added.spec.training["samplers"]["dpm_solver"]
    assert facts["config"]["objective"] == "diffusion" and facts["parity"] < 1e-4
    again = export_bundle(bundle, bundle, SamplerRequest("dpm_solver", steps=3))
    assert again.sampler.steps == 3 and not again.sampler.inpaint
    assert sorted(path.name for path in bundle.glob("*.onnx")) == [
        "dpm_solver.onnx",
        "encoder.onnx",
        "policy_loop.onnx",
    ]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("int8", 0.2)])
def test_fewer_bits_keep_the_tolerance_that_was_stated(precision, tolerance, bundle):
    before = load_bundle(bundle)
    added = export_bundle(bundle, bundle, SamplerRequest(steps=3, precision=precision, tolerance=tolerance))
    name = f"ddim_{precision}"
    assert (added.sampler_name, added.sampler.precision) == (name, precision)
    assert 1e-5 < added.spec.parity.chunks <= tolerance == added.spec.parity.tolerance
    assert added.spec.identity("ddim") == before.content_hash != added.content_hash
    assert (bundle / added.sampler.file).stat().st_size < 0.8 * (bundle / s.LOOP_FILE).stat().st_size
    noise = np.random.default_rng(0).standard_normal((4, 8, 3), np.float32)
    (_, full), (_, low) = (PolicyRuntime(b).run(*observation(), noise) for b in (before, added))
    assert low.dtype == np.float32 and 0 < np.abs(full - low).max() <= tolerance
    # Weights are used once per step: an even number of times, too.
    export_bundle(
        bundle, bundle, SamplerRequest("dpm_solver", None, 2, precision=precision, tolerance=tolerance)
    )
    with pytest.raises(VigilError, match=f"sampler {name} of bundle .* is {precision}: the trained weights"):
        load_policy(bundle, sampler=name)
    assert load_policy(bundle, "ddim").sampler == "ddim"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"precision": "fp16"}, "state one"),
        ({"tolerance": 0.1}, "none for fp32, which keeps 1e-04"),
        ({"precision": "int8", "tolerance": 2.0}, "between 0 and 1"),
        ({"precision": "fp16", "tolerance": 1e-9}, "more than 1e-09: nothing was written"),
    ],
)
def test_a_tolerance_is_stated_and_kept(changes, why, bundle):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(VigilError, match=why):
        export_bundle(bundle, bundle, SamplerRequest("ddim", steps=3, **changes))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_bundle_is_a_checkpoint(bundle, diffusion, tmp_path):
    _, net = diffusion
    read = load_policy(bundle)
    for name, values in net.state_dict().items():
        assert torch.equal(read.net.state_dict()[name], values), name
    assert read.facts["steps"] == 7 and read.facts["data_sha256"] == "0123456789abcdef"
    elsewhere = export_bundle(bundle, tmp_path / "new", SamplerRequest("dpm_solver", steps=2))
    assert elsewhere.spec.hashes["encoder.onnx"] == load_bundle(bundle).spec.hashes["encoder.onnx"]


def test_a_bundle_whose_graphs_lost_their_notes_is_no_checkpoint(bundle):
    data = yaml.safe_load((bundle / s.SPEC_FILE).read_text())
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path)
        assert [p.key for p in model.metadata_props] == [NOTE]
        model.ClearField("metadata_props")
        onnx.save(model, path)
        data["hashes"][path.name] = export_module.file_hash(path)
    (bundle / s.SPEC_FILE).write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(VigilError, match="does not hold the weights"):
        load_policy(bundle)


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no shipped bundle")
def test_the_shipped_bundle_is_its_own_checkpoint():
    """Its checkpoint is lost: the weights come out of its graphs, the eldest without notes, and give what the graphs give."""
    shipped = load_bundle(SHIPPED)
    assert shipped.spec.identity("ddim").startswith(SHIPPED_IDENTITY), (
        "the monitor's calibration is bound to it"
    )
    trained = load_policy(SHIPPED, "ddim")
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (96, 96, 3), np.uint8) for name in shipped.spec.cameras}
    state = rng.uniform(-1, 1, 8).astype(np.float32)
    noise = rng.standard_normal((8, 16, 8), np.float32)
    encoded, chunks = PolicyRuntime(load_bundle(SHIPPED, "ddim")).run(images, state, noise)
    with torch.inference_mode():
        tensors = [torch.from_numpy(images[name][None]) for name in shipped.spec.cameras]
        embedding = trained.net.encoder(*tensors, torch.from_numpy(state[None]))
        sampled = make_sampler(trained.net, "ddim", shipped.spec.samplers["ddim"].steps)(
            torch.from_numpy(noise), embedding
        )
    np.testing.assert_allclose(encoded.embedding, embedding[0], atol=1e-5)
    np.testing.assert_allclose(chunks, sampled, atol=1e-5)


def test_an_export_that_differs_from_torch_is_refused_and_changes_nothing(bundle, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    class Wrong(ort.InferenceSession):
        def run(self, names, feed, *rest):
            made = super().run(names, feed, *rest)
            return [value + 3e-4 for value in made] if names == [s.CHUNKS_OUTPUT] else made

    monkeypatch.setattr(export_module, "InferenceSession", Wrong)
    with pytest.raises(
        VigilError, match=r"sampler dpm_solver: .* differs from the trained network by .* nothing was written"
    ):
        export_bundle(bundle, bundle, SamplerRequest("dpm_solver", steps=2))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_graph_that_gives_no_number_is_refused(bundle, monkeypatch):
    class Broken(ort.InferenceSession):
        def run(self, names, feed, *rest):
            return [value * np.nan for value in super().run(names, feed, *rest)]

    monkeypatch.setattr(export_module, "InferenceSession", Broken)
    with pytest.raises(VigilError, match="differ"):
        export_bundle(bundle, bundle, SamplerRequest("dpm_solver", steps=2))


def test_a_denoiser_on_another_encoder_does_not_go_into_the_bundle(bundle, tmp_path):
    write_checkpoint(tmp_path / "other.pt", objective="flow")
    with pytest.raises(VigilError, match="has another encoder"):
        export_bundle(tmp_path / "other.pt", bundle)
    replaced = export_bundle(tmp_path / "other.pt", bundle, SamplerRequest(steps=2), replace=True)
    assert list(replaced.spec.samplers) == ["euler"]


def test_a_denoiser_of_other_chunks_does_not_go_into_the_bundle(bundle, diffusion, tmp_path):
    write_checkpoint(tmp_path / "long.pt", diffusion[1].encoder, objective="flow", horizon=16)
    with pytest.raises(VigilError, match=r"is for something else .horizon: 16, there 8"):
        export_bundle(tmp_path / "long.pt", bundle, SamplerRequest(steps=2))


def test_what_a_bundle_cannot_give_is_told(bundle, tmp_path):
    with pytest.raises(
        VigilError, match=r"no denoiser of objective flow; its samplers are ddim \(ddim\): train one"
    ):
        export_bundle(bundle, bundle, SamplerRequest("euler"))
    with pytest.raises(VigilError, match="has no sampler 'fast'"):
        export_bundle(bundle, bundle, SamplerRequest("ddim", denoiser="fast"))
    model = onnx.load(bundle / s.LOOP_FILE)
    model.ClearField("metadata_props")
    for initialiser in model.graph.initializer:
        if initialiser.name == "net.denoiser.inlet.weight":
            initialiser.name = "w"
    for node in model.graph.node:
        node.input[:] = ["w" if name == "net.denoiser.inlet.weight" else name for name in node.input]
    onnx.save(model, bundle / s.LOOP_FILE)
    data = yaml.safe_load((bundle / s.SPEC_FILE).read_text())
    data["hashes"][s.LOOP_FILE] = export_module.file_hash(bundle / s.LOOP_FILE)
    (bundle / s.SPEC_FILE).write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(VigilError, match=r"does not hold the weights of a Mlp .*inlet\.weight"):
        load_policy(bundle)
