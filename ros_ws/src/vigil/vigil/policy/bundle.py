"""A policy as it is shipped: a folder with ``bundle.yaml`` and two ONNX graphs, verified before anything runs.

    encoder.onnx      image_<camera> uint8 [1, S, S, 3] per camera, state float32 [1, N] (rad, m)
                      -> embedding float32 [1, E]
    policy_loop.onnx  noise float32 [K, H, D], embedding float32 [1, E] -> chunks float32 [K, H, D] (rad, m)

K is dynamic. Normalisation lies inside the graphs. Files under ``monitor/`` and the model card do not belong to the
policy's identity (`Bundle.content_hash`), to which a monitor's calibration is bound.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import onnxruntime as ort
import yaml
from pydantic import Field, field_validator, model_validator

from vigil.errors import VigilError
from vigil.rig import Name, Positive, RigConfig, Strict, read_yaml, root, validate

SPEC_FILE = "bundle.yaml"
ENCODER_FILE = "encoder.onnx"
LOOP_FILE = "policy_loop.onnx"
MONITOR_FOLDER = "monitor"

IMAGE_PREFIX = "image_"
STATE_INPUT = "state"
EMBEDDING = "embedding"
NOISE_INPUT = "noise"
CHUNKS_OUTPUT = "chunks"

UINT8, FLOAT32 = "tensor(uint8)", "tensor(float)"


def image_input(camera: str) -> str:
    """Name of the encoder's input for one camera."""
    return IMAGE_PREFIX + camera


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Column(Strict):
    """One column of the state or of the action."""

    name: Name
    unit: Literal["rad", "m"]


class Sampler(Strict):
    """One way to draw chunks: a graph and the number of denoising steps unrolled in it."""

    file: FileName = LOOP_FILE
    steps: Annotated[int, Field(ge=1)]


class Parity(Strict):
    """Largest difference of ONNX and the trained network on the same inputs, in normalised units."""

    encoder: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    chunks: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tolerance: Positive = 1e-4

    @model_validator(mode="after")
    def _within_tolerance(self) -> Parity:
        worst = max(self.encoder, self.chunks)
        if worst > self.tolerance:
            raise ValueError(
                f"the graphs differ from the trained network by {worst}, more than {self.tolerance}"
            )
        return self


class BundleSpec(Strict):
    """Content of ``bundle.yaml``."""

    name: Name
    task: Annotated[str, Field(min_length=1, description="the task text, as in the rig file")]
    kinematics: Literal["franka", "viperx300s"]
    cameras: tuple[Name, ...] = Field(min_length=1, description="in the encoder's input order")
    image_size: Annotated[int, Field(ge=8, le=1024)]
    state: tuple[Column, ...] = Field(min_length=1)
    action: tuple[Column, ...] = Field(min_length=1)
    action_std: tuple[Positive, ...] = Field(
        description="scale of each action column in the demonstrations [rad, m]: unit of distances between chunks"
    )
    horizon: Annotated[int, Field(ge=2, description="H, steps of one chunk")]
    executed: Annotated[int, Field(ge=1, description="steps meant to be executed before the next chunk")]
    step_dt: Positive = Field(description="time between two steps [s]")
    embedding_dim: Annotated[int, Field(ge=1)]
    samplers: dict[Name, Sampler] = Field(min_length=1)
    hashes: dict[FileName, Sha256] = Field(description="sha256 of every graph")
    parity: Parity | None = None
    training: dict[str, Any] = Field(
        default_factory=dict, description="facts for the card: data, seed, duration"
    )

    @field_validator("cameras")
    @classmethod
    def _cameras_differ(cls, cameras: tuple[str, ...]) -> tuple[str, ...]:
        return _unique(cameras)

    @field_validator("state", "action")
    @classmethod
    def _columns_differ(cls, columns: tuple[Column, ...]) -> tuple[Column, ...]:
        _unique(tuple(column.name for column in columns))
        return columns

    @model_validator(mode="after")
    def _fits_together(self) -> BundleSpec:
        if len(self.action_std) != len(self.action):
            raise ValueError(
                f"action_std has {len(self.action_std)} values for {len(self.action)} action columns"
            )
        if self.executed > self.horizon:
            raise ValueError(f"executed ({self.executed}) is more than the horizon ({self.horizon})")
        unhashed = sorted(set(self.files) - set(self.hashes))
        if unhashed:
            raise ValueError(f"hashes lacks {unhashed}: every graph needs its sha256")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Every graph, the encoder first, without repeats."""
        return tuple(dict.fromkeys((ENCODER_FILE, *(s.file for s in self.samplers.values()))))

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.state)

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.action)

    @property
    def default_sampler(self) -> str:
        """The first sampler listed."""
        return next(iter(self.samplers))

    def sampler(self, name: str) -> Sampler:
        """The sampler called ``name``; VigilError if not offered."""
        if name not in self.samplers:
            raise VigilError(f"bundle {self.name} has no sampler {name!r}; it offers {sorted(self.samplers)}")
        return self.samplers[name]


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"names repeat: {list(names)}")
    return names


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    spec: BundleSpec
    content_hash: str  # the policy's identity, see `content_hash`

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def monitor_path(self) -> Path:
        """Folder of the failure monitor that was calibrated on this policy."""
        return self.path / MONITOR_FOLDER

    def file(self, name: str) -> Path:
        return self.path / name

    def check_rig(self, rig: RigConfig) -> None:
        """Refuse a rig that this policy was not made for.

        Raises:
            VigilError: cameras, joints, kinematics, task or times differ; names both sides.
        """
        spec, problems = self.spec, []
        cameras = [camera.name for camera in rig.cameras]
        if lacking := [name for name in spec.cameras if name not in cameras]:
            problems.append(f"it looks through cameras {lacking}, the rig has {cameras}")
        if others := [arm.kinematics for arm in rig.arms if arm.kinematics != spec.kinematics]:
            problems.append(f"it drives a {spec.kinematics} arm, the rig has {', '.join(others)}")
        if spec.task != rig.task:
            problems.append(f"it was trained for the task {spec.task!r}, the rig's is {rig.task!r}")
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
        if problems:
            raise VigilError(
                f"policy bundle {self.path} does not fit rig {rig.name}: {'; '.join(problems)}. "
                "Choose another bundle or correct the rig file"
            )


def load_bundle(path: str | Path) -> Bundle:
    """Read and verify a bundle folder.

    Raises:
        VigilError: folder or file missing, spec broken, a graph altered or truncated, or of other shape than the
            spec says.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise VigilError(f"policy bundle {path} does not exist; {_what_exists(path)}")
    spec_path = path / SPEC_FILE
    if not spec_path.is_file():
        raise VigilError(f"{path} is no policy bundle: it has no {SPEC_FILE}")
    data, lines = read_yaml(spec_path)
    spec = validate(BundleSpec, data, spec_path, lines)
    for name in spec.files:
        _check_hash(path / name, spec.hashes[name])
    _check_encoder(path / ENCODER_FILE, spec)
    for sampler in spec.samplers.values():
        _check_loop(path / sampler.file, spec)
    return Bundle(path, spec, content_hash(spec))


def content_hash(spec: BundleSpec) -> str:
    """Identity of a policy: sha256 (hex) over its spec, which itself holds the hashes of the graphs.

    What only describes the policy (training facts, parity) does not count: adding a measured success rate to the
    bundle must not void the monitor's calibration.
    """
    described = spec.model_dump_json(exclude={"training", "parity"})
    return hashlib.sha256(described.encode()).hexdigest()


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


def _signature(path: Path) -> tuple[dict[str, tuple[str, list]], dict[str, tuple[str, list]]]:
    """Type and shape of every input and output by name. Nothing is optimised: this only reads the graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = open_session(path, options, ["CPUExecutionProvider"])
    inputs = {i.name: (i.type, list(i.shape)) for i in session.get_inputs()}
    outputs = {o.name: (o.type, list(o.shape)) for o in session.get_outputs()}
    return inputs, outputs


def _check_encoder(path: Path, spec: BundleSpec) -> None:
    side = spec.image_size
    inputs = {image_input(camera): (UINT8, [1, side, side, 3]) for camera in spec.cameras}
    inputs[STATE_INPUT] = (FLOAT32, [1, len(spec.state)])
    _check_signature(path, inputs, {EMBEDDING: (FLOAT32, [1, spec.embedding_dim])})


def _check_loop(path: Path, spec: BundleSpec) -> None:
    chunk = (FLOAT32, [None, spec.horizon, len(spec.action)])
    _check_signature(
        path,
        {NOISE_INPUT: chunk, EMBEDDING: (FLOAT32, [1, spec.embedding_dim])},
        {CHUNKS_OUTPUT: chunk},
    )


def _check_signature(path: Path, inputs: dict, outputs: dict) -> None:
    for kind, expected, found in zip(("input", "output"), (inputs, outputs), _signature(path), strict=True):
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
