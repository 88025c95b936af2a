"""Execution providers: which are tried, the reasons for the others, and what TensorRT is told."""

from __future__ import annotations

import numpy as np
import pytest

from support.tiny_bundle import write_tiny_bundle
from vigil.errors import VigilError
from vigil.policy import providers as p
from vigil.policy.bundle import load_bundle, signature
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.spec import LOOP_FILE

GPU = p.Gpu("NVIDIA Test", (9, 0), 12080)
EVERY = (p.TENSORRT, p.CUDA, p.CPU)


def no_gpu():
    raise p.NoGpu("the NVIDIA driver finds no GPU (status 100)")


@pytest.mark.parametrize(
    ("choice", "offered", "gpu", "tried", "because"),
    [
        ("auto", EVERY, lambda: GPU, EVERY, {}),
        ("auto", EVERY, no_gpu, (p.CPU,), {p.TENSORRT: "no GPU", p.CUDA: "no GPU"}),
        ("auto", EVERY[1:], lambda: GPU, EVERY[1:], {p.TENSORRT: "not in this build"}),
        ("auto", (p.CPU,), no_gpu, (p.CPU,), {p.TENSORRT: r"vigil\[gpu\]", p.CUDA: r"vigil\[gpu\]"}),
        ("cuda", EVERY, lambda: GPU, EVERY[1:], {p.TENSORRT: "policy.provider is cuda"}),
        ("cpu", EVERY, lambda: GPU, (p.CPU,), {p.TENSORRT: "is cpu", p.CUDA: "is cpu"}),
    ],
)
def test_each_provider_is_tried_or_has_its_reason(choice, offered, gpu, tried, because):
    import re

    order, reasons = p.candidates(choice, offered, gpu)
    assert order == tried and set(reasons) == set(because) == set(EVERY) - set(tried)
    for name, words in because.items():
        assert re.search(words, reasons[name])


@pytest.mark.parametrize(
    ("choice", "offered", "reason"),
    [("cuda", (p.CPU,), "not in this build"), ("tensorrt", EVERY, "finds no GPU")],
)
def test_one_that_was_asked_for_and_cannot_run_is_refused(choice, offered, reason):
    with pytest.raises(VigilError, match=rf"policy.provider is {choice}.*{reason}.*auto"):
        p.candidates(choice, offered, no_gpu)


def test_one_that_was_dropped_in_silence_is_refused():
    with pytest.raises(VigilError, match=r"policy\.provider is cuda, but CUDAExecutionProvider does not run"):
        p.check_running("cuda", [p.CPU])
    p.check_running("auto", [p.CPU])
    p.check_running("cuda", [p.CUDA, p.CPU])


def test_tensorrt_is_told_the_range_of_k_and_keeps_its_engines(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny", emitted=4)
    dynamic = {
        name: tuple(shape[1:])
        for name, (_, shape) in signature(folder / "stream.onnx")[0].items()
        if not isinstance(shape[0], int)
    }
    assert dynamic == {"noise": (4, 8), "buffer": (16, 8)}
    place = tmp_path / "cache" / "key"
    options = p.options_of(p.TENSORRT, dynamic, 24, place)
    assert options["trt_profile_min_shapes"] == "noise:1x4x8,buffer:1x16x8"
    assert options["trt_profile_opt_shapes"] == "noise:24x4x8,buffer:24x16x8"
    assert options["trt_profile_max_shapes"] == "noise:512x4x8,buffer:512x16x8"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(place)
    assert place.is_dir() and options["trt_fp16_enable"] == "0"
    assert "trt_profile_min_shapes" not in p.options_of(p.TENSORRT, {}, 24, place), "an encoder has one shape"


def test_an_engine_is_kept_apart_for_each_graph_gpu_and_version(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = ("a" * 64, GPU, {"onnxruntime": "1.31.1", "tensorrt": "101300"})
    folders = {
        p.cache_folder(*base),
        p.cache_folder("b" * 64, *base[1:]),
        p.cache_folder(base[0], p.Gpu("NVIDIA Test", (8, 6), 12080), base[2]),
        p.cache_folder(*base[:2], {"onnxruntime": "1.31.1", "tensorrt": "101400"}),
    }
    assert len(folders) == 4 and all(tmp_path in folder.parents for folder in folders)
    assert p.cache_folder(*base) in folders


def test_without_a_gpu_the_cpu_runs_and_the_reasons_are_told(tmp_path):
    bundle = load_bundle(write_tiny_bundle(tmp_path / "tiny"))
    runtime = PolicyRuntime(bundle, provider="cpu")
    assert runtime.providers.used[LOOP_FILE] == p.CPU
    assert runtime.providers.not_used == {
        p.TENSORRT: "policy.provider is cpu",
        p.CUDA: "policy.provider is cpu",
    }
    assert np.isfinite(runtime.warm_up(4))
