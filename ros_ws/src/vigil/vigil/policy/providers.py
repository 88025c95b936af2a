"""Execution providers of ONNX Runtime: TensorRT, CUDA or CPU, which one runs a graph, and why a faster one does not."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vigil.errors import VigilError

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS = (TENSORRT, CUDA, CPU)
"""In the order in which they are tried."""
CHOICES = {"tensorrt": TENSORRT, "cuda": CUDA, "cpu": CPU}
"""By the name in a rig file (``policy.provider``)."""
MOST_SAMPLES = 512
"""K of one call, as `policy.samples` of a rig file allows."""
_LIBRARIES = {TENSORRT: "libonnxruntime_providers_tensorrt.so", CUDA: "libonnxruntime_providers_cuda.so"}


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


@dataclass(frozen=True)
class Gpu:
    """The first GPU, as the driver tells it."""

    name: str
    capability: tuple[int, int]
    driver: int


class NoGpu(VigilError):
    """There is none that could be used; the text says why."""


@cache
def find_gpu() -> Gpu:
    """Ask the CUDA driver, without any CUDA library; NoGpu if there is no driver, or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoGpu("no NVIDIA driver is installed (libcuda.so.1 is not there)") from None
    count, number, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        raise NoGpu(f"the NVIDIA driver finds no GPU (status {status})")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    return Gpu(name.value.decode(), (capability[0], capability[1]), version.value)


def candidates(
    choice: str, offered: Sequence[str], gpu: Callable[[], Gpu] = find_gpu
) -> tuple[tuple[str, ...], dict[str, str]]:
    """(providers to be tried in order, why the others are not) for ``policy.provider``; the CPU runs what a GPU cannot.

    Args:
        choice: tensorrt, cuda, cpu or auto.
        offered: what this build of ONNX Runtime has.
        gpu: finds one; NoGpu if there is none.

    Raises:
        VigilError: the one that was asked for cannot run here.
    """
    wanted = PROVIDERS if choice == "auto" else PROVIDERS[PROVIDERS.index(CHOICES[choice]) :]
    reasons = {}
    for name in PROVIDERS[:-1]:
        if name not in wanted:
            reasons[name] = f"policy.provider is {choice}"
        elif name not in offered:
            reasons[name] = (
                "not in this build of ONNX Runtime; onnxruntime-gpu has it (install vigil[gpu] in place of vigil[cpu])"
            )
        else:
            try:
                gpu()
            except NoGpu as error:
                reasons[name] = str(error)
    if choice != "auto" and CHOICES[choice] in reasons:
        raise VigilError(
            f"policy.provider is {choice}, but {CHOICES[choice]} cannot run: {reasons[CHOICES[choice]]}; or set "
            "policy.provider: auto"
        )
    return tuple(name for name in wanted if name not in reasons), reasons


def device_of(session: ort.InferenceSession) -> str:
    """Where a session's outputs are computed, as ONNX Runtime calls it."""
    return "cpu" if session.get_providers()[0] == CPU else "cuda"


def why_not(name: str) -> str:
    """Why a provider that this build has did not start though there is a GPU, in words."""
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARIES[name]))
    except OSError as error:
        return f"a library is missing: {error}"
    return "it did not start, though driver and libraries are there: ONNX Runtime's own log says more"


def cache_folder(graph_hash: str, gpu: Gpu, versions: Mapping[str, str]) -> Path:
    """Where TensorRT keeps what it built of one graph for one GPU, below the user's cache (``XDG_CACHE_HOME``).

    An engine holds for the graph, the GPU and the versions that it was built with, and for nothing else: each has its own.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parts = [
        graph_hash,
        gpu.name,
        str(gpu.capability),
        *(f"{name} {version}" for name, version in sorted(versions.items())),
    ]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return home / "vigil" / "engines" / key


def options_of(
    name: str,
    dynamic: Mapping[str, tuple[int, ...]] | None = None,
    samples: int = 1,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Provider options for one graph.

    Args:
        dynamic: TensorRT: of each input whose first dimension is K the shape that follows it.
        samples: TensorRT: K that is asked for in every tick.
        folder: TensorRT: where it keeps what it built; made if it is not there.
    """
    if name == CUDA:
        # Exact single precision: a bundle's parity was measured with it. Memory grows by what is asked for, as other processes
        # (rendering, other policies) share the GPU.
        return {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if name != TENSORRT or folder is None:
        return {}
    # No CUDA graphs: they want one shape and fixed addresses, and K is free.
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": "0",
    }
    for kind, k in (("min", 1), ("opt", samples), ("max", MOST_SAMPLES)) if dynamic else ():
        shapes = (f"{n}:{'x'.join(map(str, (k, *shape)))}" for n, shape in dynamic.items())
        options[f"trt_profile_{kind}_shapes"] = ",".join(shapes)
    return options


def versions() -> dict[str, str]:
    """Versions that an engine depends on."""
    found = {"onnxruntime": ort.__version__, "cuda": str(getattr(ort, "cuda_version", ""))}
    try:
        library = ctypes.CDLL("libnvinfer.so.10")
        found["tensorrt"] = str(library.getInferLibVersion())
    except (OSError, AttributeError):
        found["tensorrt"] = "none"
    return found


def preload() -> None:
    """Load the CUDA libraries that came as wheels, which the loader does not find by itself."""
    if CUDA in ort.get_available_providers() and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def check_running(choice: str, active: list[str]) -> None:
    """VigilError if a session that was to run on ``policy.provider`` does not; ``active``: what it says of itself."""
    if choice != "auto" and active[0] != CHOICES[choice]:
        raise VigilError(
            f"policy.provider is {choice}, but {CHOICES[choice]} does not run: {why_not(CHOICES[choice])}; "
            "or set policy.provider: auto"
        )
