"""A trained network -> a policy bundle: ONNX graphs, their parity with torch, and bundle.yaml.

A bundle holds one encoder and any number of samplers, of one denoiser or of several that were trained on that encoder. A sampler
that is added leaves the other graphs as they are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, file_hash, load_bundle, write_bundle_yaml
from vigil.policy.spec import (
    BUFFER_INPUT,
    BUFFER_OUTPUT,
    CHUNKS_OUTPUT,
    EMBEDDING,
    ENCODER_FILE,
    KNOWN_INPUT,
    KNOWN_WEIGHT_INPUT,
    LOOP_FILE,
    NOISE_INPUT,
    SPEC_FILE,
    STATE_INPUT,
    BundleSpec,
    Column,
    Method,
    Parity,
    Precision,
    Sampler,
    image_input,
)
from vigil.train.model import PolicyNet
from vigil.train.precision import lower
from vigil.train.quiet import quiet
from vigil.train.samplers import SAMPLERS, SamplerModule, Streaming, StreamingStart, make_sampler
from vigil.train.tidy import tidy
from vigil.train.weights import ABOUT_DATA, RANGES, Trained, graph_weights, load_policy, note_weights

PARITY_SAMPLES = 16
TOLERANCE = 1e-4  # [normalised units]
MOST_SAMPLES = 4096  # K of one call
EXPORTER = "torch.onnx"  # the logger that tells of packages which are not needed


@dataclass(frozen=True)
class SamplerRequest:
    """Which sampler to export.

    Attributes:
        method: None: the usual one for the denoiser's objective.
        name: in the bundle; None: the method.
        steps: evaluations of the denoiser per call; None: the configuration's, or the method's default.
        inpaint: the graph takes known targets.
        denoiser: of a bundle with several: the sampler whose denoiser is taken; None: the first one that fits.
        precision: of the sampler's graphs; the encoder, which all samplers share, keeps its own.
        tolerance: largest difference to torch [normalised units]; has to be stated for less than fp32, and only there.
    """

    method: Method | None = None
    name: str | None = None
    steps: int | None = None
    inpaint: bool = False
    denoiser: str | None = None
    precision: Precision = "fp32"
    tolerance: float | None = None

    def allowed(self) -> float:
        """The largest difference to torch; VigilError if it was not stated, or must not be."""
        if (self.precision == "fp32") != (self.tolerance is None):
            raise VigilError(
                f"precision {self.precision} with a tolerance of {self.tolerance}: state one (--tolerance, in normalised units) for "
                f"fp16 and int8, and none for fp32, which keeps {TOLERANCE:.0e}"
            )
        if self.tolerance is None:
            return TOLERANCE
        if not 0 < self.tolerance < 1:
            raise VigilError(
                f"a tolerance of {self.tolerance:g}: actions span 2 normalised units, give a number between 0 and 1"
            )
        return self.tolerance


@dataclass(frozen=True)
class Graph:
    """One graph to be exported: its file, module, names of inputs and outputs, and inputs to trace and compare it with."""

    file: str
    module: torch.nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]

    def write(self, folder: Path, precision: Precision = "fp32") -> float:
        """Write it into ``folder``; gives the largest difference of its outputs to the module's."""
        values = tuple(self.inputs.values())
        samples = torch.export.Dim("K", min=1, max=MOST_SAMPLES)
        dynamic = [{0: samples} if name in (NOISE_INPUT, BUFFER_INPUT) else None for name in self.inputs]
        with quiet(EXPORTER):
            program = torch.onnx.export(
                self.module,
                values,
                dynamo=True,
                input_names=list(self.inputs),
                output_names=list(self.outputs),
                dynamic_shapes=tuple(dynamic) if any(dynamic) else None,
                optimize=False,
                verbose=False,
            )
        assert program is not None
        tidy(program.model)
        program.save(folder / self.file, external_data=False)
        strip_origin(folder / self.file)
        note_weights(folder / self.file, self.module)
        lower(folder / self.file, precision)
        made = run_graph(folder / self.file, self.outputs, self.inputs)
        with torch.inference_mode():
            expected = self.module(*values)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        return max(
            _difference(made, wanted, self.module.net if name == CHUNKS_OUTPUT else None)
            for name, made, wanted in zip(self.outputs, made, expected, strict=True)
        )


def run_graph(path: Path, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """One call of an exported graph."""
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {name: value.numpy() for name, value in inputs.items()})


def export_bundle(
    source: Path, folder: Path, wanted: SamplerRequest | None = None, *, replace: bool = False
) -> Bundle:
    """Put one sampler of the network in ``source`` into the bundle ``folder``, which is made if there is none.

    A bundle that is there keeps its other graphs; a sampler of the same name is replaced. A calibration and a model card are left
    alone.

    Args:
        source: a checkpoint, or a bundle.
        replace: begin the bundle anew, whatever is there.

    Raises:
        VigilError: there is nothing at ``source``; the wanted precision and tolerance do not go together; the sampler does not suit the denoiser; the bundle there has another encoder or
            other columns or times; or a graph differs from torch by more than the tolerance. Nothing has changed then.
    """
    wanted = wanted or SamplerRequest()
    tolerance = wanted.allowed()
    trained = load_policy(source, wanted.method, wanted.denoiser)
    sampler = make_sampler(trained.net, wanted.method, wanted.steps, wanted.inpaint)
    method = next(name for name, kind in SAMPLERS.items() if kind is type(sampler))
    name = wanted.name or (method if wanted.precision == "fp32" else f"{method}_{wanted.precision}")
    present = None if replace or not (folder / SPEC_FILE).is_file() else load_bundle(folder)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        difference = _encoder_parity(trained, present, work)
        file = _file_name(name, present)
        graphs = sampler_graphs(sampler, file)
        parity = Parity(
            encoder=difference,
            chunks=_checked(
                max(graph.write(work, wanted.precision) for graph in graphs), f"sampler {name}", tolerance
            ),
            tolerance=tolerance,
        )
        if wanted.precision == "fp32":
            _readable_again(work / file, trained.net)
        entry = Sampler(
            file=file,
            steps=sampler.steps,
            method=method,
            inpaint=wanted.inpaint,
            precision=wanted.precision,
            start=graphs[1].file if len(graphs) > 1 else None,
            emitted=sampler.emitted if isinstance(sampler, Streaming) else None,
        )
        spec = _spec(trained, name, entry, parity, {path.name: file_hash(path) for path in work.iterdir()})
        spec = spec if present is None else _joined(present, spec, name)
        folder.mkdir(parents=True, exist_ok=True)
        for path in work.iterdir():
            shutil.move(path, folder / path.name)
        write_bundle_yaml(spec, folder)
    _remove_unused(present, spec, folder)
    return load_bundle(folder, name)


def sampler_graphs(sampler: SamplerModule, file: str) -> list[Graph]:
    """The graphs of a sampler with example inputs: one, or of a stream two, the first chunk's last."""
    net, rng = sampler.net, np.random.default_rng(0)
    horizon, dim = net.config.horizon, net.action_dim

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32))

    noise, embedding = normal(PARITY_SAMPLES, horizon, dim), normal(1, net.config.embedding)
    if isinstance(sampler, Streaming):
        start = StreamingStart(net, sampler.steps).eval()
        with torch.inference_mode():
            buffer = start(noise, embedding)[1].clone()
        inputs = {
            NOISE_INPUT: normal(PARITY_SAMPLES, sampler.emitted, dim),
            BUFFER_INPUT: buffer,
            EMBEDDING: embedding,
        }
        outputs = (CHUNKS_OUTPUT, BUFFER_OUTPUT)
        first = f"{Path(file).stem}_start.onnx"
        return [
            Graph(file, sampler, inputs, outputs),
            Graph(first, start, {NOISE_INPUT: noise, EMBEDDING: embedding}, outputs),
        ]
    inputs = {NOISE_INPUT: noise, EMBEDDING: embedding}
    if sampler.inpaint:
        inputs[KNOWN_INPUT] = net.physical_actions(normal(1, horizon, dim).clamp(-1, 1))
        inputs[KNOWN_WEIGHT_INPUT] = torch.linspace(1, 0, horizon)[None]
    return [Graph(file, sampler, inputs, (CHUNKS_OUTPUT,))]


def _encoder_graph(net: PolicyNet) -> Graph:
    side, rng = net.config.image_size, np.random.default_rng(0)
    inputs = {
        image_input(camera): torch.from_numpy(rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8))
        for camera in net.encoder.cameras
    }
    inputs[STATE_INPUT] = ((net.encoder.state_low + net.encoder.state_high) / 2)[None]
    return Graph(ENCODER_FILE, net.encoder, inputs, (EMBEDDING,))


def _encoder_parity(trained: Trained, present: Bundle | None, work: Path) -> float:
    """Write the encoder, or take the one that is there; gives its difference to torch."""
    graph = _encoder_graph(trained.net)
    if present is None and trained.bundle is None:
        return _checked(graph.write(work), "the encoder")
    there = present or trained.bundle
    assert there is not None
    path = there.file(ENCODER_FILE)
    if present is None:
        path = Path(shutil.copy(path, work / ENCODER_FILE))
    try:
        made = run_graph(path, graph.outputs, graph.inputs)[0]
    except Exception:  # ONNX Runtime has no common base class; here: other cameras, or other sizes
        difference = float("inf")
    else:
        with torch.inference_mode():
            expected = graph.module(*graph.inputs.values())
        difference = _difference(made, expected)
    if present is not None and not difference <= TOLERANCE:
        raise VigilError(
            f"bundle {present.path} has another encoder (embeddings differ by {difference:.1e}): samplers of one bundle share it. "
            "Train with --from that bundle and freeze_encoder, name another folder, or begin the bundle anew (--replace)"
        )
    return _checked(difference, "the encoder")


def _difference(made: np.ndarray, expected: Tensor, net: PolicyNet | None = None) -> float:
    """Largest absolute difference; with ``net`` of chunks, in normalised units."""
    difference = np.abs(made - expected.numpy())
    if net is not None:
        difference = difference / ((net.action_high - net.action_low).numpy() / 2)
    worst = float(difference.max())
    return worst if np.isfinite(worst) else float("inf")


def _checked(difference: float, what: str, tolerance: float = TOLERANCE) -> float:
    if not difference <= tolerance:
        raise VigilError(
            f"{what}: the exported graph differs from the trained network by {difference:.1e} in normalised units, more than "
            f"{tolerance:.0e}: nothing was written"
        )
    return difference


def _readable_again(path: Path, net: PolicyNet) -> None:
    """A bundle is a checkpoint, too: its weights have to be there to the last bit."""
    found = graph_weights(onnx.load(path), net.denoiser, path, "net.denoiser.")
    if lost := [
        name for name, values in net.denoiser.state_dict().items() if not torch.equal(found[name], values)
    ]:
        raise VigilError(f"{path.name}: the exporter changed the weights {', '.join(lost[:5])}")


def _file_name(name: str, present: Bundle | None) -> str:
    if present is None:
        return LOOP_FILE
    there = present.spec.samplers.get(name)
    return f"{name}.onnx" if there is None else there.file


def _spec(
    trained: Trained, name: str, sampler: Sampler, parity: Parity, hashes: dict[str, str]
) -> BundleSpec:
    net, facts = trained.net, trained.facts
    config = net.config
    units = [Column(name=c, unit="m" if c in facts["grippers"] else "rad") for c in facts["columns"]]
    ranges = {n: getattr(net.encoder if n.startswith("state") else net, n).tolist() for n in RANGES}
    about = {key: facts[key] for key in ABOUT_DATA if key in facts}
    return BundleSpec(
        name=config.name,
        task=facts["task"],
        kinematics=facts["kinematics"],
        cameras=net.encoder.cameras,
        image_size=config.image_size,
        state=units,
        action=units,
        action_std=facts["action_std"],
        horizon=config.horizon,
        executed=config.executed_steps,
        step_dt=config.step_dt,
        embedding_dim=config.embedding,
        samplers={name: sampler},
        hashes={ENCODER_FILE: hashes.get(ENCODER_FILE, "0" * 64), **hashes},
        parity=parity,
        training={
            **about,
            "ranges": ranges,
            "samplers": {name: {**about, "parity": parity.chunks, "config": config.model_dump(mode="json")}},
        },
    )


SHARED = ("task", "kinematics", "cameras", "state", "action", "horizon", "executed", "step_dt")


def _joined(present: Bundle, new: BundleSpec, name: str) -> BundleSpec:
    """The spec of the bundle that is there, with one sampler more; what describes its policy stays as it is."""
    old = present.spec
    if differing := [field for field in SHARED if getattr(old, field) != getattr(new, field)]:
        sides = "; ".join(f"{f}: {getattr(new, f)}, there {getattr(old, f)}" for f in differing)
        raise VigilError(f"bundle {present.path} is for something else ({sides}): name another folder")
    samplers = {**old.samplers, name: new.samplers[name]}
    # In their order: an identity is of the spec as it is written.
    used = {file for sampler in samplers.values() for file in sampler.files} | {ENCODER_FILE}
    hashes = {**old.hashes, **{file: new.hashes[file] for file in new.samplers[name].files}}
    known, parity = old.training, old.parity
    training = {
        **known,
        "ranges": known.get("ranges") or new.training["ranges"],
        "samplers": {**known.get("samplers", {}), **new.training["samplers"]},
    }
    if parity is not None and new.parity is not None:
        parity = Parity(
            encoder=parity.encoder,
            chunks=max(parity.chunks, new.parity.chunks),
            tolerance=max(parity.tolerance, new.parity.tolerance),
        )
    return old.model_copy(
        update={
            "samplers": samplers,
            "hashes": {file: value for file, value in hashes.items() if file in used},
            "parity": parity,
            "training": training,
        }
    )


def _remove_unused(present: Bundle | None, spec: BundleSpec, folder: Path) -> None:
    for file in set(present.spec.files if present else ()) - set(spec.files):
        (folder / file).unlink(missing_ok=True)


def strip_origin(path: Path) -> None:
    """Take the exporter's notes on every node out of an ONNX file: source lines and paths of the machine it ran on."""
    model = onnx.load(path)
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)
