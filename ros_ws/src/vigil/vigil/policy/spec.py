"""What ``bundle.yaml`` says of a policy, and the names and shapes of its graphs.

    encoder.onnx   image_<camera> uint8 [1, h, w, 3] per camera, state float32 [1, N] (rad, m), memory float32 [1, M]
                   -> embedding float32 [1, E], context float32 [1, ...], memory_next float32 [1, M]
    sampler        noise float32 [K, H, D], embedding (or context), known float32 [1, H, D], known_weight float32 [1, H]
                   -> chunks float32 [K, H, D] (rad, m)

K is dynamic. Normalisation lies inside the graphs. Where the spec says `observation_steps` n > 1, pictures and states carry one
more dimension: [1, n, h, w, 3] and [1, n, N], the newest last. ``memory``, ``context`` and ``known`` are there only where the spec
says so:

- ``memory`` is a recurrent policy's state; it is zero after every engagement, takeover and change of task.
- ``context`` is what the samplers read instead of the embedding, if that is too large for the monitor and the recordings.
- ``noise`` has other than H rows where ``noise_rows`` says so: a policy that also denoises steps before the observation, one that
  adds noise at every step, or one whose latent is not of a chunk's size.
- ``known`` are targets that a chunk has to keep, with a weight between 0 (free) and 1 (kept) each, as real-time chunking needs.

A streaming sampler keeps a chunk that is the cleaner the sooner its steps are due, and makes some more of them final at every call:

    start          noise [K, H, D], embedding -> chunks [K, H, D], buffer_next [K, H, D]
    sampler        noise [K, emitted, D], buffer [K, H, D], embedding -> chunks [K, H, D], buffer_next [K, H, D]

Each call's chunks begin at the observation of that call; the first ``emitted`` steps of them are final, the others a forecast.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vigil.errors import VigilError
from vigil.rig import Name, Positive, Strict, read_yaml, validate

SPEC_FILE = "bundle.yaml"
ENCODER_FILE = "encoder.onnx"
LOOP_FILE = "policy_loop.onnx"

IMAGE_PREFIX = "image_"
STATE_INPUT = "state"
MEMORY_INPUT, MEMORY_OUTPUT = "memory", "memory_next"
EMBEDDING, CONTEXT = "embedding", "context"
NOISE_INPUT = "noise"
KNOWN_INPUT, KNOWN_WEIGHT_INPUT = "known", "known_weight"
BUFFER_INPUT, BUFFER_OUTPUT = "buffer", "buffer_next"
CHUNKS_OUTPUT = "chunks"


def image_input(camera: str) -> str:
    """Name of the encoder's input for one camera."""
    return IMAGE_PREFIX + camera


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


Pixels = Annotated[int, Field(ge=8, le=1024)]


class Column(Strict):
    """One column of the state or of the action."""

    name: Name
    unit: Literal["rad", "m"]


Method = Literal["ddim", "ddpm", "dpm_solver", "euler", "midpoint", "mean_flow", "streaming", "direct"]

Precision = Literal["fp32", "fp16", "int8"]


class Sampler(Strict):
    """One way to draw chunks: a graph, and the number of calls of the denoiser unrolled in it."""

    file: FileName = LOOP_FILE
    steps: Annotated[int, Field(ge=1)]
    method: Method = "ddim"
    inpaint: bool = Field(False, description="the graph takes known targets")
    mode_first: bool = Field(
        False,
        description="sample 0 is drawn with noise zero: for policies whose mode is what they were tested with",
    )
    noise_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="R, rows of noise that one chunk is made of; None: as many as it has steps"
    )
    precision: Precision = Field("fp32", description="of the numbers inside the graph")
    start: FileName | None = Field(None, description="of a streaming sampler: the graph of the first chunk")
    emitted: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of a streaming sampler: steps that become final with every call"
    )

    @model_validator(mode="after")
    def _streams_or_not(self) -> Sampler:
        given = (self.start is not None, self.emitted is not None)
        if given != (self.streams, self.streams):
            raise ValueError(
                f"method {self.method}: `start` and `emitted` belong to streaming samplers, and to these alone"
            )
        if self.streams and self.inpaint:
            raise ValueError("a streaming sampler keeps its own chunk: it takes no known targets")
        if self.streams and self.noise_rows is not None:
            raise ValueError(
                "a streaming sampler takes noise for the steps that it adds: leave noise_rows out"
            )
        return self

    @property
    def streams(self) -> bool:
        """Whether a chunk is carried on from call to call."""
        return self.method == "streaming"

    @property
    def files(self) -> tuple[str, ...]:
        """Its graphs."""
        return (self.file,) if self.start is None else (self.file, self.start)


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
    image_size: Pixels | tuple[Pixels, Pixels] = Field(
        description="side of a square, or height and width [px]"
    )
    state: tuple[Column, ...] = Field(min_length=1)
    action: tuple[Column, ...] = Field(min_length=1)
    action_std: tuple[Positive, ...] = Field(
        description="scale of each action column in the demonstrations [rad, m]: unit of distances between chunks"
    )
    horizon: Annotated[int, Field(ge=2, description="H, steps of one chunk")]
    executed: Annotated[int, Field(ge=1, description="steps meant to be executed before the next chunk")]
    step_dt: Positive = Field(description="time between two steps [s]")
    embedding_dim: Annotated[int, Field(ge=1)]
    observation_steps: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="observations that the encoder reads"
    )
    observation_dt: Positive | None = Field(None, description="time between two of them [s]; None: step_dt")
    memory: Annotated[int, Field(ge=0)] = Field(0, description="M, size of a recurrent policy's state")
    context: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="shape of what samplers read instead of the embedding, without its first dimension 1"
    )
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
        for name, sampler in self.samplers.items():
            if sampler.emitted is not None and sampler.emitted >= self.horizon:
                raise ValueError(
                    f"sampler {name} emits {sampler.emitted} steps of {self.horizon}: some have to stay"
                )
        unhashed = sorted(set(self.files) - set(self.hashes))
        if unhashed:
            raise ValueError(f"hashes lacks {unhashed}: every graph needs its sha256")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Every graph, the encoder first, without repeats."""
        graphs = (file for sampler in self.samplers.values() for file in sampler.files)
        return tuple(dict.fromkeys((ENCODER_FILE, *graphs)))

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the pictures that the encoder reads [px]."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def history(self) -> tuple[int, ...]:
        """The dimension that pictures and states have more where the encoder reads several: (n,), else ()."""
        return () if self.observation_steps == 1 else (self.observation_steps,)

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

    def identity(self, sampler: str) -> str:
        """sha256 (hex) of the policy as ``sampler`` runs it: spec and hashes of its graphs.

        What only describes the policy (training facts, parity) does not count, nor do other samplers: a measured success rate
        or another graph that is added to the bundle must not void the monitor's calibration.
        """
        chosen = self.sampler(sampler)
        graphs = (ENCODER_FILE, *chosen.files)
        hashes = {file: value for file, value in self.hashes.items() if file in graphs}
        alone = self.model_copy(update={"samplers": {sampler: chosen}, "hashes": hashes})
        # Fields that came later count only where they are used: older bundles keep their identity.
        uncounted: dict[str, Any] = {"training": True, "parity": True, **_unused(self, LATER_FIELDS)}
        uncounted["samplers"] = {sampler: _unused(chosen, LATER_SAMPLER_FIELDS)}
        return hashlib.sha256(alone.model_dump_json(exclude=uncounted).encode()).hexdigest()


def read_spec(folder: Path) -> BundleSpec:
    """``bundle.yaml`` of a folder; no graph is looked at. VigilError if it is missing or broken."""
    path = folder / SPEC_FILE
    data, lines = read_yaml(path)
    return validate(BundleSpec, data, path, lines)


LATER_FIELDS = ("observation_steps", "observation_dt", "memory", "context")
LATER_SAMPLER_FIELDS = ("method", "inpaint", "mode_first", "noise_rows", "precision", "start", "emitted")


def _unused(model: Strict, fields: tuple[str, ...]) -> dict[str, bool]:
    kinds = type(model).model_fields
    return {name: True for name in fields if getattr(model, name) == kinds[name].default}


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"names repeat: {list(names)}")
    return names
