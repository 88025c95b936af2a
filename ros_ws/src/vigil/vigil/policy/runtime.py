"""Runs a bundle with ONNX Runtime: TensorRT, CUDA or CPU, and says which and why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vigil.errors import VigilError
from vigil.policy.bundle import (
    CHUNKS_OUTPUT,
    EMBEDDING,
    ENCODER_FILE,
    NOISE_INPUT,
    STATE_INPUT,
    Bundle,
    image_input,
    open_session,
)
from vigil.policy.observation import Rejected

PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
WARM_UP_RUNS = 2  # the first run allocates memory and picks kernels, the second shows that it is over


@dataclass
class Providers:
    """Which execution provider runs each graph, and why faster ones do not."""

    used: dict[str, str] = field(default_factory=dict)  # by file
    not_used: dict[str, str] = field(default_factory=dict)  # by provider

    @property
    def name(self) -> str:
        """The provider in use; both, if the graphs run on different ones."""
        return ", ".join(dict.fromkeys(self.used.values()))

    @property
    def reasons(self) -> str:
        """Why each faster provider is not used; empty if the first choice runs."""
        return "; ".join(f"{name}: {why}" for name, why in self.not_used.items())


class PolicyRuntime:
    """The sessions of one bundle. One thread at a time may use it."""

    def __init__(self, bundle: Bundle, *, threads: int = 1, sampler: str | None = None) -> None:
        """Open the sessions and warm them up.

        Args:
            threads: threads of ONNX Runtime within one operator.
            sampler: one of the bundle's samplers; the first one if None.

        Raises:
            VigilError: a graph cannot be loaded or run, or the sampler is not offered.
        """
        self.bundle = bundle
        self.sampler = sampler or bundle.spec.default_sampler
        self.steps = bundle.spec.sampler(self.sampler).steps
        self.providers = Providers()
        self._threads = threads
        self._encoder = self._open(bundle.file(ENCODER_FILE))
        self._loop = self._open(bundle.file(bundle.spec.sampler(self.sampler).file))
        self.warm_up(1)

    def warm_up(self, samples: int) -> float:
        """Run on grey images with ``samples`` chunks; seconds of the last run."""
        spec = self.bundle.spec
        grey = np.full((spec.image_size, spec.image_size, 3), 128, np.uint8)
        images = dict.fromkeys(spec.cameras, grey)
        state = np.zeros(len(spec.state), np.float32)
        noise = np.zeros((samples, spec.horizon, len(spec.action)), np.float32)
        started = time.perf_counter()
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            self.run(images, state, noise)  # finite or not: the first real observation decides
        return time.perf_counter() - started

    def encode(self, images: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """Embedding [E] float32 of one observation.

        Args:
            images: uint8 [S, S, 3] by camera, from `prepare_image`.
            state: [N] in the bundle's column order; rad, m.

        Raises:
            Rejected: an input has the wrong shape or type or is not finite, or the output is not finite.
            VigilError: ONNX Runtime failed.
        """
        self._check(images, state)
        return self._finite(EMBEDDING, self._run_encoder(images, state))[0]

    def draw(self, embedding: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        """``k`` chunks [K, H, D] float32 (rad, m) for an embedding [E], in one batched call.

        Noise is taken from ``rng`` chunk by chunk: two calls draw the chunks that one call for both would have drawn.

        Raises:
            Rejected: an output is not finite.
            VigilError: ONNX Runtime failed.
        """
        spec = self.bundle.spec
        noise = rng.standard_normal((k, spec.horizon, len(spec.action)), dtype=np.float32)
        return self._finite(CHUNKS_OUTPUT, self._run_loop(noise, embedding[None]))

    def run(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The bare graphs: (embedding [E], chunks [K, H, D]) of given noise [K, H, D].

        Neither inputs nor outputs are checked.

        Raises:
            VigilError: ONNX Runtime failed.
        """
        embedding = self._run_encoder(images, state)
        return embedding[0], self._run_loop(noise, embedding)

    def _run_encoder(self, images: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        feed = {image_input(name): images[name][None] for name in self.bundle.spec.cameras}
        feed[STATE_INPUT] = state[None].astype(np.float32, copy=False)
        return self._run(self._encoder, EMBEDDING, feed)

    def _run_loop(self, noise: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        return self._run(self._loop, CHUNKS_OUTPUT, {NOISE_INPUT: noise, EMBEDDING: embedding})

    def _run(self, session: ort.InferenceSession, output: str, feed: dict[str, np.ndarray]) -> np.ndarray:
        try:
            return session.run([output], feed)[0]
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            reason = str(error).strip().splitlines()[0][:300]
            raise VigilError(f"ONNX Runtime failed on bundle {self.bundle.path}: {reason}") from None

    def _finite(self, name: str, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            bad = int(values.size - np.isfinite(values).sum())
            raise Rejected(
                f"bundle {self.bundle.name} put out {bad} values of {values.size} in {name} that are not finite: "
                "the chunk is discarded"
            )
        return values

    def _check(self, images: Mapping[str, np.ndarray], state: np.ndarray) -> None:
        spec = self.bundle.spec
        for name in spec.cameras:
            if name not in images:
                raise Rejected(
                    f"no image of camera {name}: got {sorted(images)}, the policy needs {list(spec.cameras)}"
                )
            image, wanted = images[name], (spec.image_size, spec.image_size, 3)
            if image.dtype != np.uint8 or image.shape != wanted:
                raise Rejected(
                    f"image of camera {name} is {image.dtype} {list(image.shape)}, the policy takes uint8 {list(wanted)}"
                )
        if state.shape != (len(spec.state),) or not np.isfinite(state).all():
            raise Rejected(
                f"state {np.array2string(state, precision=3)} of shape {list(state.shape)}: the policy takes "
                f"{len(spec.state)} finite values ({', '.join(spec.state_names)})"
            )

    def _open(self, path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the core from the control loop beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        offered = ort.get_available_providers()
        for name in PROVIDERS:
            if name not in offered:
                self.providers.not_used[name] = "not in this build of ONNX Runtime"
        session = open_session(path, options, [name for name in PROVIDERS if name in offered])
        # A provider that fails to start is dropped without an error: only what the session says is true.
        active = session.get_providers()
        for name in PROVIDERS[: PROVIDERS.index(active[0])]:
            self.providers.not_used.setdefault(name, "did not start: driver, GPU or library missing")
        self.providers.used[path.name] = active[0]
        return session
