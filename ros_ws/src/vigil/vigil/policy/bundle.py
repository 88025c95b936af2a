"""A policy as it is shipped: a folder with ``bundle.yaml`` and ONNX graphs, verified before anything runs.

`vigil.policy.spec` describes the content. Files under ``monitor/`` and the model card do not belong to the policy's identity
(`Bundle.content_hash`), to which a monitor's calibration is bound.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime as ort
import yaml

from vigil.errors import VigilError
from vigil.policy.spec import (
    BUFFER_INPUT,
    BUFFER_OUTPUT,
    CHUNKS_OUTPUT,
    CONTEXT,
    EMBEDDING,
    ENCODER_FILE,
    KNOWN_INPUT,
    KNOWN_WEIGHT_INPUT,
    MEMORY_INPUT,
    MEMORY_OUTPUT,
    NOISE_INPUT,
    SPEC_FILE,
    STATE_INPUT,
    BundleSpec,
    Sampler,
    image_input,
    read_spec,
)
from vigil.rig import RigConfig, root

MONITOR_FOLDER = "monitor"
UINT8, FLOAT32 = "tensor(uint8)", "tensor(float)"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk, and which of its samplers is used."""

    path: Path
    spec: BundleSpec
    sampler_name: str

    @property
    def sampler(self) -> Sampler:
        return self.spec.sampler(self.sampler_name)

    @cached_property
    def content_hash(self) -> str:
        """The policy's identity, see `BundleSpec.identity`."""
        return self.spec.identity(self.sampler_name)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def monitor_path(self) -> Path:
        """Folder of the failure monitor that was calibrated on this policy."""
        return self.path / MONITOR_FOLDER

    def file(self, name: str) -> Path:
        return self.path / name

    def check_rig(self, rig: RigConfig, task: str | None = None) -> None:
        """Refuse a rig that this policy was not made for.

        Args:
            task: the one that it is to do; None: the rig's own.

        Raises:
            VigilError: cameras, joints, kinematics, task or times differ; names both sides.
        """
        spec, problems = self.spec, []
        cameras = [camera.name for camera in rig.cameras]
        if lacking := [name for name in spec.cameras if name not in cameras]:
            problems.append(f"it looks through cameras {lacking}, the rig has {cameras}")
        if others := [arm.kinematics for arm in rig.arms if arm.kinematics != spec.kinematics]:
            problems.append(f"it drives a {spec.kinematics} arm, the rig has {', '.join(others)}")
        if spec.task != (task or rig.task):
            whose = "the rig's is" if task in (None, rig.task) else "it is asked for"
            problems.append(f"it was trained for the task {spec.task!r}, {whose} {task or rig.task!r}")
        columns = list(rig.columns)
        if sorted(spec.action_names) != sorted(columns):
            problems.append(f"it commands {list(spec.action_names)}, the rig has {columns}")
        if lacking := [name for name in spec.state_names if name not in columns]:
            problems.append(f"it reads joints {lacking}, the rig has {columns}")
        if spec.horizon * spec.step_dt <= rig.policy.period:
            problems.append(
                f"its chunks last {spec.horizon * spec.step_dt:g} s, not longer than the rig's policy period "
                f"of {rig.policy.period:g} s"
            )
        sampler = self.sampler
        if sampler.emitted is not None and abs(sampler.emitted * spec.step_dt - rig.policy.period) > 1e-6:
            problems.append(
                f"its sampler {self.sampler_name} makes {sampler.emitted} steps of {spec.step_dt:g} s final with every tick: "
                f"set policy.period to {sampler.emitted * spec.step_dt:g}, it is {rig.policy.period:g}"
            )
        if problems:
            raise VigilError(
                f"policy bundle {self.path} does not fit rig {rig.name}: {'; '.join(problems)}. "
                "Choose another bundle or correct the rig file"
            )


def load_bundle(path: str | Path, sampler: str | None = None) -> Bundle:
    """Read and verify a bundle folder.

    Args:
        path: the folder.
        sampler: the one to be used; None: the bundle's first.

    Raises:
        VigilError: folder or file missing, spec broken, a graph altered or truncated, or of other shape than the
            spec says, or the sampler is not offered.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise VigilError(f"policy bundle {path} does not exist; {_what_exists(path)}")
    if not (path / SPEC_FILE).is_file():
        raise VigilError(f"{path} is no policy bundle: it has no {SPEC_FILE}")
    spec = read_spec(path)
    sampler = sampler or spec.default_sampler
    spec.sampler(sampler)
    for name in spec.files:
        _check_hash(path / name, spec.hashes[name])
    _check_encoder(path / ENCODER_FILE, spec)
    for offered in spec.samplers.values():
        _check_sampler(path, offered, spec)
    return Bundle(path, spec, sampler)


def bundle_of(rig: RigConfig, task: str | None = None) -> Bundle:
    """The bundle and sampler that a rig names for a task (None: its own); raises as `load_bundle` does."""
    return load_bundle(rig.bundle_path(task), rig.policy.sampler)


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_bundle_yaml(spec: BundleSpec, folder: Path) -> Path:
    """Write ``bundle.yaml`` into ``folder`` (atomically) and return its path."""
    target, partial = folder / SPEC_FILE, folder / (SPEC_FILE + ".partial")
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)
    return target


def _what_exists(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return (
            f"nor does its folder {folder}: give `policy.bundle` relative to {root()} or as an absolute path"
        )
    found = sorted(p.name for p in folder.iterdir() if (p / SPEC_FILE).is_file())
    if not found:
        return f"{folder} holds no bundles: train one, or name another folder in `policy.bundle`"
    return f"{folder} has {', '.join(found)}: name one of them in `policy.bundle`"


def _check_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise VigilError(f"policy bundle {path.parent} lacks {path.name}: copy the whole bundle again")
    found = file_hash(path)
    if found != expected:
        raise VigilError(
            f"{path} is corrupted or was replaced: its sha256 is {found[:12]}…, {SPEC_FILE} says {expected[:12]}… "
            f"(size {path.stat().st_size} bytes): copy the bundle again, or export it anew"
        )


def open_session(path: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    """An ONNX Runtime session; VigilError if the graph cannot be loaded (unknown operator, not ONNX)."""
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime has no common base class for its errors
        reason = str(error).strip().splitlines()[0][:300]
        raise VigilError(f"ONNX Runtime cannot load {path}: {reason}. Export the bundle again") from None


def signature(path: Path) -> tuple[dict[str, tuple[str, list]], dict[str, tuple[str, list]]]:
    """Type and shape of every input and output by name. Nothing is optimised: this only reads the graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = open_session(path, options, ["CPUExecutionProvider"])
    inputs = {i.name: (i.type, list(i.shape)) for i in session.get_inputs()}
    outputs = {o.name: (o.type, list(o.shape)) for o in session.get_outputs()}
    return inputs, outputs


def _check_encoder(path: Path, spec: BundleSpec) -> None:
    picture = (UINT8, [1, *spec.history, *spec.image_shape, 3])
    inputs = {image_input(camera): picture for camera in spec.cameras}
    inputs[STATE_INPUT] = (FLOAT32, [1, *spec.history, len(spec.state)])
    outputs = {EMBEDDING: (FLOAT32, [1, spec.embedding_dim])}
    if spec.context:
        outputs[CONTEXT] = (FLOAT32, [1, *spec.context])
    if spec.memory:
        inputs[MEMORY_INPUT] = outputs[MEMORY_OUTPUT] = (FLOAT32, [1, spec.memory])
    _check_signature(path, inputs, outputs)


def _check_sampler(folder: Path, sampler: Sampler, spec: BundleSpec) -> None:
    chunk = (FLOAT32, [None, spec.horizon, len(spec.action)])
    read = (
        {CONTEXT: (FLOAT32, [1, *spec.context])}
        if spec.context
        else {EMBEDDING: (FLOAT32, [1, spec.embedding_dim])}
    )
    outputs = {CHUNKS_OUTPUT: chunk}
    rows = sampler.noise_rows or spec.horizon
    inputs = {NOISE_INPUT: (FLOAT32, [None, rows, len(spec.action)]), **read}
    if sampler.start is not None:
        outputs[BUFFER_OUTPUT] = chunk
        _check_signature(folder / sampler.start, inputs, outputs)
        inputs |= {NOISE_INPUT: (FLOAT32, [None, sampler.emitted, len(spec.action)]), BUFFER_INPUT: chunk}
    if sampler.inpaint:
        inputs[KNOWN_INPUT] = (FLOAT32, [1, spec.horizon, len(spec.action)])
        inputs[KNOWN_WEIGHT_INPUT] = (FLOAT32, [1, spec.horizon])
    _check_signature(folder / sampler.file, inputs, outputs)


def _check_signature(path: Path, inputs: dict, outputs: dict) -> None:
    for kind, expected, found in zip(("input", "output"), (inputs, outputs), signature(path), strict=True):
        if set(expected) != set(found):
            raise VigilError(f"{path}: {kind}s are {sorted(found)}, {SPEC_FILE} calls for {sorted(expected)}")
        for name, (type_, shape) in expected.items():
            given_type, given_shape = found[name]
            if given_type != type_ or not _shape_fits(given_shape, shape):
                raise VigilError(
                    f"{path}: {kind} {name} is {given_type} {given_shape}, {SPEC_FILE} calls for {type_} {shape}"
                )


def _shape_fits(given: list, wanted: list) -> bool:
    """Symbolic dimensions of the graph fit anything; None in ``wanted`` has to be symbolic (K is dynamic)."""
    if len(given) != len(wanted):
        return False
    return all(
        not isinstance(g, int) if w is None else (g == w or not isinstance(g, int))
        for g, w in zip(given, wanted, strict=True)
    )
