"""Runs a bundle with ONNX Runtime: TensorRT, CUDA or CPU, and says which and why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, open_session, signature
from vigil.policy.observation import Rejected
from vigil.policy.providers import (
    PROVIDERS,
    TENSORRT,
    Providers,
    cache_folder,
    candidates,
    check_running,
    device_of,
    find_gpu,
    options_of,
    preload,
    versions,
    why_not,
)
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
    STATE_INPUT,
    image_input,
)

WARM_UP_RUNS = 2  # the first run allocates memory and picks kernels, the second shows that it is over


@dataclass(frozen=True)
class Encoded:
    """What the encoder made of one observation."""

    embedding: np.ndarray  # [E] float32
    read: ort.OrtValue  # [1, ...] float32 where it was computed: what the sampler reads, embedding or context
    memory: np.ndarray | None  # [M] float32, a recurrent policy's state after this observation


@dataclass(frozen=True)
class Known:
    """Targets that a chunk has to keep, for samplers that take them."""

    positions: np.ndarray  # [H, D] float32; rad, m
    weight: np.ndarray  # [H] float32, 0 (free) to 1 (kept)


class PolicyRuntime:
    """The sessions of one bundle and one of its samplers. One thread at a time may use it."""

    def __init__(
        self, bundle: Bundle, *, threads: int = 1, provider: str = "auto", samples: int = 32
    ) -> None:
        """Open the sessions and warm them up.

        Args:
            bundle: the bundle, with the sampler that is to be used.
            threads: threads of ONNX Runtime within one operator.
            provider: tensorrt, cuda or cpu; auto: the first of them that starts.
            samples: K that will be asked for most; what TensorRT is tuned for.

        Raises:
            VigilError: a graph cannot be loaded or run.
        """
        self.bundle = bundle
        self.sampler = bundle.sampler
        self._threads, self._provider, self._samples = threads, provider, samples
        order, reasons = candidates(provider, tuple(ort.get_available_providers()))
        self._order, self.providers = order, Providers(not_used=reasons)
        preload()
        self._encoder = self._open(bundle.file(ENCODER_FILE))
        self._loop = self._open(bundle.file(self.sampler.file))
        self._start = (
            self._loop if self.sampler.start is None else self._open(bundle.file(self.sampler.start))
        )
        spec = bundle.spec
        self._free = Known(
            np.zeros((spec.horizon, len(spec.action)), np.float32), np.zeros(spec.horizon, np.float32)
        )
        self.warm_up(1)

    def warm_up(self, samples: int) -> float:
        """Run on grey images with ``samples`` chunks; seconds of the last run."""
        spec = self.bundle.spec
        images = dict.fromkeys(spec.cameras, np.full((*spec.history, *spec.image_shape, 3), 128, np.uint8))
        state = np.zeros((*spec.history, len(spec.state)), np.float32)
        noise = np.zeros((samples, self._rows, len(spec.action)), np.float32)
        started = time.perf_counter()
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            encoded, chunks = self.run(
                images, state, noise
            )  # finite or not: the first real observation decides
            if self.sampler.emitted is not None:
                started = time.perf_counter()
                self._run_stream(noise[:, : self.sampler.emitted], chunks, encoded)
        return time.perf_counter() - started

    def encode(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, memory: np.ndarray | None = None
    ) -> Encoded:
        """Encode one observation; of a policy that reads n of them, one more dimension n comes first, the newest last.

        Args:
            images: uint8 [h, w, 3] by camera, from `prepare_image`.
            state: [N] in the bundle's column order; rad, m.
            memory: [M] what a recurrent policy's last call gave; None: it begins anew.

        Raises:
            Rejected: an input has the wrong shape or type or is not finite, or the output is not finite.
            VigilError: ONNX Runtime failed.
        """
        self._check(images, state)
        encoded = self._run_encoder(images, state, memory)
        self._finite(EMBEDDING, encoded.embedding)
        if self.bundle.spec.context:
            self._finite(CONTEXT, encoded.read.numpy())
        if encoded.memory is not None:
            self._finite(MEMORY_OUTPUT, encoded.memory)
        return encoded

    def draw(
        self,
        encoded: Encoded,
        k: int,
        rng: np.random.Generator,
        known: Known | None = None,
        first: bool = True,
    ) -> np.ndarray:
        """``k`` chunks [K, H, D] float32 (rad, m) of an observation, in one batched call.

        Noise is taken from ``rng`` chunk by chunk: two calls draw the chunks that one call for both would have drawn.

        Args:
            known: targets to be kept; the sampler has to take them.
            first: whether these are the tick's first chunks; they begin with the mode, where the sampler has one.

        Raises:
            Rejected: an output is not finite.
            VigilError: ONNX Runtime failed, or the sampler takes no known targets.
        """
        if known is not None and not self.sampler.inpaint:
            raise VigilError(
                f"sampler {self.bundle.sampler_name} of bundle {self.bundle.name} takes no known targets"
            )
        noise = self._noise(k, self._rows, rng)
        if first and self.sampler.mode_first:
            noise[0] = 0.0
        return self._finite(CHUNKS_OUTPUT, self._run_loop(noise, encoded, known))

    def stream(
        self, encoded: Encoded, k: int, rng: np.random.Generator, buffer: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry ``k`` chunks on by one call of a streaming sampler: (chunks [K, H, D], the next call's buffer).

        Args:
            buffer: [K, H, D] of the last call; None: begin anew.

        Raises:
            Rejected: an output is not finite.
            VigilError: ONNX Runtime failed.
        """
        if self.sampler.emitted is None:
            raise VigilError(
                f"sampler {self.bundle.sampler_name} of bundle {self.bundle.name} does not stream"
            )
        rows = self._rows if buffer is None else self.sampler.emitted
        chunks, buffer = self._run_stream(self._noise(k, rows, rng), buffer, encoded)
        return self._finite(CHUNKS_OUTPUT, chunks), self._finite(BUFFER_OUTPUT, buffer)

    def run(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, noise: np.ndarray
    ) -> tuple[Encoded, np.ndarray]:
        """The bare graphs: chunks [K, H, D] of given noise [K, R, D].

        Neither inputs nor outputs are checked.

        Raises:
            VigilError: ONNX Runtime failed.
        """
        encoded = self._run_encoder(images, state, None)
        if self.sampler.streams:
            return encoded, self._run_stream(noise, None, encoded)[0]
        return encoded, self._run_loop(noise, encoded, None)

    def _noise(self, k: int, rows: int, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((k, rows, len(self.bundle.spec.action)), dtype=np.float32)

    def _run_encoder(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, memory: np.ndarray | None
    ) -> Encoded:
        spec = self.bundle.spec
        feed = {image_input(name): images[name][None] for name in spec.cameras}
        feed[STATE_INPUT] = state[None].astype(np.float32, copy=False)
        outputs = [EMBEDDING]
        if spec.context:
            outputs.append(CONTEXT)
        if spec.memory:
            feed[MEMORY_INPUT] = np.zeros((1, spec.memory), np.float32) if memory is None else memory[None]
            outputs.append(MEMORY_OUTPUT)
        made = dict(zip(outputs, self._run(self._encoder, outputs, feed), strict=True))
        after = made[MEMORY_OUTPUT].numpy()[0] if spec.memory else None
        return Encoded(made[EMBEDDING].numpy()[0], made[self._reads], after)

    def _run_loop(self, noise: np.ndarray, encoded: Encoded, known: Known | None) -> np.ndarray:
        feed = {NOISE_INPUT: noise, self._reads: encoded.read}
        if self.sampler.inpaint:
            known = known or self._free
            feed[KNOWN_INPUT], feed[KNOWN_WEIGHT_INPUT] = known.positions[None], known.weight[None]
        return self._run(self._loop, [CHUNKS_OUTPUT], feed)[0].numpy()

    def _run_stream(
        self, noise: np.ndarray, buffer: np.ndarray | None, encoded: Encoded
    ) -> tuple[np.ndarray, np.ndarray]:
        feed, session = {NOISE_INPUT: noise, self._reads: encoded.read}, self._start
        if buffer is not None:
            feed[BUFFER_INPUT], session = buffer, self._loop
        chunks, after = self._run(session, [CHUNKS_OUTPUT, BUFFER_OUTPUT], feed)
        return chunks.numpy(), after.numpy()

    @property
    def _rows(self) -> int:
        return self.sampler.noise_rows or self.bundle.spec.horizon

    @property
    def _reads(self) -> str:
        return CONTEXT if self.bundle.spec.context else EMBEDDING

    def _run(
        self, session: ort.InferenceSession, outputs: list[str], feed: Mapping[str, np.ndarray | ort.OrtValue]
    ) -> list[ort.OrtValue]:
        """Outputs stay where they were computed: what one graph makes for the other does not leave a GPU."""
        try:
            binding = session.io_binding()
            arrays = {k: np.ascontiguousarray(v) for k, v in feed.items() if isinstance(v, np.ndarray)}
            for name, array in arrays.items():  # they have to live until the call is over
                binding.bind_cpu_input(name, array)
            for name in feed.keys() - arrays.keys():
                binding.bind_ortvalue_input(name, feed[name])
            for name in outputs:
                binding.bind_output(name, device_of(session))
            session.run_with_iobinding(binding)
            return binding.get_outputs()
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
            image, wanted = images[name], (*spec.history, *spec.image_shape, 3)
            if image.dtype != np.uint8 or image.shape != wanted:
                raise Rejected(
                    f"image of camera {name} is {image.dtype} {list(image.shape)}, the policy takes uint8 {list(wanted)}"
                )
        if state.shape != (*spec.history, len(spec.state)) or not np.isfinite(state).all():
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
        session = open_session(path, options, [(name, self._options(name, path)) for name in self._order])
        # A provider that fails to start is dropped without an error: only what the session says is true.
        active = session.get_providers()
        check_running(self._provider, active)
        for name in PROVIDERS[: PROVIDERS.index(active[0])]:
            if name not in self.providers.not_used:
                self.providers.not_used[name] = why_not(name)
        self.providers.used[path.name] = active[0]
        return session

    def _options(self, name: str, path: Path) -> dict[str, Any]:
        if name != TENSORRT:
            return options_of(name)
        folder = cache_folder(self.bundle.spec.hashes[path.name], find_gpu(), versions())
        # Inputs whose first dimension has no number are those of K chunks.
        shapes = {known: shape for known, (_, shape) in signature(path)[0].items()}
        dynamic = {n: tuple(shape[1:]) for n, shape in shapes.items() if not isinstance(shape[0], int)}
        return options_of(name, dynamic, self._samples, folder)
