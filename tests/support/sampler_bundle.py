"""A tiny policy bundle with several samplers, each of which is wrong by an amount of its own.

They are those of `support.tiny_bundle`, with another offset; one that streams keeps a row of noise as its buffer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from support.tiny_bundle import COLUMNS, HORIZON, NOISE_GAIN, write_tiny_bundle
from vigil.policy import spec as s
from vigil.policy.bundle import file_hash, load_bundle, write_bundle_yaml

CAMERAS = ("wrist", "scene")


def write_sampler_bundle(
    folder: Path, offsets: dict[str, float], emitted: int | None = None, **options: object
) -> Path:
    """A bundle whose samplers, by name, miss every target by ``offsets`` [rad, m]; the first is its default.

    Args:
        emitted: adds the sampler ``stream``, which makes so many steps final with every call and misses nothing.
        options: as of `write_tiny_bundle`.
    """
    write_tiny_bundle(folder, **options)
    samplers, made = {}, [s.ENCODER_FILE]
    for number, (name, offset) in enumerate(offsets.items()):
        samplers[name] = s.Sampler(file=_shifted(folder, name, offset), steps=number + 1, method="euler")
        made.append(samplers[name].file)
    if emitted is not None:
        start, step = _streaming(folder, emitted)
        samplers["stream"] = s.Sampler(file=step, start=start, emitted=emitted, steps=4, method="streaming")
        made += [start, step]
    (folder / s.LOOP_FILE).unlink()
    hashes = {file: file_hash(folder / file) for file in made}
    data = yaml.safe_load((folder / s.SPEC_FILE).read_text()) | {
        "samplers": {name: sampler.model_dump(exclude_none=True) for name, sampler in samplers.items()},
        "hashes": hashes,
    }
    write_bundle_yaml(s.BundleSpec.model_validate(data), folder)
    load_bundle(folder)
    return folder


def _shifted(folder: Path, name: str, offset: float) -> str:
    """The loop of the tiny bundle with another offset, as a file of its own."""
    model = onnx.load(folder / s.LOOP_FILE)
    (found,) = [tensor for tensor in model.graph.initializer if tensor.name == "offset"]
    found.CopyFrom(numpy_helper.from_array(np.asarray(offset, np.float32), "offset"))
    onnx.save(model, folder / f"{name}.onnx")
    return f"{name}.onnx"


def _streaming(folder: Path, emitted: int) -> tuple[str, str]:
    """Graphs of the first call and of the others: state + gain * buffer, which moves on by ``emitted`` steps."""
    width = len(COLUMNS)
    size, chunk = len(CAMERAS) + width, ["K", HORIZON, width]
    constants = {
        "first": np.array([len(CAMERAS)], np.int64), "last": np.array([size], np.int64), "one": np.array([1], np.int64),
        "gain": np.float32(NOISE_GAIN),
    }  # fmt: skip
    moving = {"from": np.array([emitted], np.int64), "to": np.array([HORIZON], np.int64)}

    def write(name: str, moves: bool) -> str:
        if moves:
            nodes = [
                helper.make_node("Slice", [s.BUFFER_INPUT, "from", "to", "one"], ["kept"]),
                helper.make_node("Concat", ["kept", s.NOISE_INPUT], [s.BUFFER_OUTPUT], axis=1),
            ]
        else:
            nodes = [helper.make_node("Identity", [s.NOISE_INPUT], [s.BUFFER_OUTPUT])]
        nodes += [
            helper.make_node("Slice", [s.EMBEDDING, "first", "last", "one"], ["state"]),
            helper.make_node("Mul", [s.BUFFER_OUTPUT, "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "state"], [s.CHUNKS_OUTPUT]),
        ]
        given = {s.NOISE_INPUT: ["K", emitted if moves else HORIZON, width], s.EMBEDDING: [1, size]}
        given |= {s.BUFFER_INPUT: chunk} if moves else {}
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in given.items()],
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, chunk)
                for n in (s.CHUNKS_OUTPUT, s.BUFFER_OUTPUT)
            ],
            [
                numpy_helper.from_array(value, n)
                for n, value in (constants | (moving if moves else {})).items()
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, folder / name)
        return name

    return write("stream_start.onnx", False), write("stream.onnx", True)
