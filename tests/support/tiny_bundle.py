"""A tiny policy bundle made with `onnx.helper`: real graphs that the real runtime runs, small enough for any test.

The features are [mean of each camera's pictures / 255, state..., how many calls memory has seen]; the last only with memory, of
a history the newest state. They are the embedding; with a context they are that too. A chunk is the state's matching column (the
arm stays where it is) plus ``NOISE_GAIN`` times the noise: what comes out can be predicted by hand. Known targets are mixed in by
their weight. A stream's chunks are windows on one long row of noise, ``emitted`` steps further on with every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vigil.policy import bundle as b
from vigil.policy import spec as s

JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
COLUMNS = (*JOINTS, "gripper")
SIZE, HORIZON, NOISE_GAIN, STEP_DT = 96, 16, 0.01, 0.05
START_FILE = "stream_start.onnx"


def columns(names: tuple[str, ...] = COLUMNS) -> tuple[s.Column, ...]:
    return tuple(s.Column(name=name, unit="m" if name == "gripper" else "rad") for name in names)


def write_tiny_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    task: str = "put the cube on the tray",
    cameras: tuple[str, ...] = ("wrist", "scene"),
    names: tuple[str, ...] = COLUMNS,
    offset: float | Sequence[float] = 0.0,
    gain: float = NOISE_GAIN,
    history: int = 1,
    history_dt: float | None = None,
    memory: bool = False,
    context: bool = False,
    inpaint: bool = False,
    emitted: int | None = None,
) -> Path:
    """Write a bundle into ``folder``; ``offset`` (one for all, or one per name) is added to every target.

    A nan makes a policy that must be refused. ``inpaint`` adds a sampler ``inpaint`` after ``ddim``; with ``emitted`` the
    only sampler is ``stream``, which makes so many steps final with every call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = len(names)
    features = len(cameras) + width + memory
    wide = (2, features) if context else ()
    reads = (s.CONTEXT, [1, *wide]) if context else (s.EMBEDDING, [1, features])

    def write(graph: onnx.GraphProto, file: str) -> str:
        _save(graph, folder / file)
        return file

    write(_encoder(cameras, width, features, history, memory, context), s.ENCODER_FILE)

    def sampler(**kind: object) -> onnx.GraphProto:
        return _sampler(len(cameras), width, reads, offset, gain, **kind)

    if emitted is not None:
        start = write(sampler(stream="start", emitted=emitted), START_FILE)
        file = write(sampler(stream="next", emitted=emitted), "stream.onnx")
        samplers = {"stream": s.Sampler(file=file, steps=4, method="streaming", start=start, emitted=emitted)}
    else:
        samplers = {"ddim": s.Sampler(file=write(sampler(), s.LOOP_FILE), steps=10)}
        if inpaint:
            file = write(sampler(inpaint=True), "inpaint.onnx")
            samplers["inpaint"] = s.Sampler(file=file, steps=10, inpaint=True)
    files = [s.ENCODER_FILE, *(file for each in samplers.values() for file in each.files)]
    spec = s.BundleSpec(
        name=name,
        task=task,
        kinematics="franka",
        cameras=cameras,
        image_size=SIZE,
        state=columns(names),
        action=columns(names),
        action_std=(0.5,) * width,
        horizon=HORIZON,
        executed=8,
        step_dt=STEP_DT,
        embedding_dim=features,
        observation_steps=history,
        observation_dt=history_dt,
        memory=int(memory),
        context=wide,
        samplers=samplers,
        hashes={file: b.file_hash(folder / file) for file in files},
    )
    b.write_bundle_yaml(spec, folder)
    return folder


def _save(graph: onnx.GraphProto, path: Path) -> None:
    read = {name for each in graph.node for name in each.input}
    used = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def _integers(name: str, *values: int) -> onnx.TensorProto:
    return _constant(name, np.array(values, np.int64))


def _floats(name: str, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _encoder(
    cameras: tuple[str, ...], width: int, features: int, history: int, memory: bool, context: bool
) -> onnx.GraphProto:
    node, past = helper.make_node, [] if history == 1 else [history]
    nodes, parts = [], []
    for camera in cameras:
        axes = list(range(1, 4 + len(past)))
        nodes += [
            node("Cast", [s.image_input(camera)], [f"{camera}_f"], to=TensorProto.FLOAT),
            node("ReduceMean", [f"{camera}_f"], [f"{camera}_m"], axes=axes, keepdims=0),
            node("Div", [f"{camera}_m", "white"], [f"{camera}_n"]),
            node("Reshape", [f"{camera}_n", "row"], [f"{camera}_r"]),
        ]
        parts.append(f"{camera}_r")
    if past:
        nodes.append(node("Gather", [s.STATE_INPUT, "newest"], ["state_now"], axis=1))
    parts.append("state_now" if past else s.STATE_INPUT)
    inputs = [
        helper.make_tensor_value_info(s.image_input(c), TensorProto.UINT8, [1, *past, SIZE, SIZE, 3])
        for c in cameras
    ]
    inputs.append(_floats(s.STATE_INPUT, [1, *past, width]))
    outputs = [_floats(s.EMBEDDING, [1, features])]
    if memory:
        nodes.append(node("Add", [s.MEMORY_INPUT, "one"], [s.MEMORY_OUTPUT]))
        parts.append(s.MEMORY_INPUT)
        inputs.append(_floats(s.MEMORY_INPUT, [1, 1]))
        outputs.append(_floats(s.MEMORY_OUTPUT, [1, 1]))
    nodes.append(node("Concat", parts, [s.EMBEDDING], axis=1))
    if context:
        nodes.append(node("Unsqueeze", [s.EMBEDDING, "middle"], ["lifted"]))
        nodes.append(node("Concat", ["lifted", "lifted"], [s.CONTEXT], axis=1))
        outputs.append(_floats(s.CONTEXT, [1, 2, features]))
    constants = [
        _constant("white", np.float32(255)),
        _constant("one", np.float32(1)),
        _constant("newest", np.int64(-1)),
        _integers("row", 1, 1),
        _integers("middle", 1),
    ]
    return helper.make_graph(nodes, "encoder", inputs, outputs, constants)


def _sampler(
    images: int,
    width: int,
    reads: tuple[str, list],
    offset: float | Sequence[float],
    gain: float,
    *,
    inpaint: bool = False,
    stream: str = "",
    emitted: int = 0,
) -> onnx.GraphProto:
    node, chunk = helper.make_node, ["K", HORIZON, width]
    name, shape = reads
    # The state's columns, of a context those of its first row: the last axis but what follows the state.
    nodes = [
        node("Reshape", [name, "rows"], ["features"]),
        node("Slice", ["features", "first", "last", "axes"], ["state"]),
    ]
    noise = s.NOISE_INPUT
    inputs = [_floats(noise, ["K", emitted if stream == "next" else HORIZON, width]), _floats(name, shape)]
    outputs = [_floats(s.CHUNKS_OUTPUT, chunk)]
    if stream == "next":
        nodes.append(node("Slice", [s.BUFFER_INPUT, "zero", "kept", "axis_h"], ["carried"]))
        nodes.append(node("Concat", ["carried", noise], ["window"], axis=1))
        inputs.append(_floats(s.BUFFER_INPUT, chunk))
        noise = "window"
    if stream:
        nodes.append(node("Slice", [noise, "emitted", "end", "axis_h"], ["rest"]))
        nodes.append(node("Pad", ["rest", "pads"], [s.BUFFER_OUTPUT]))
        outputs.append(_floats(s.BUFFER_OUTPUT, chunk))
    nodes += [
        node("Mul", [noise, "gain"], ["scaled"]),
        node("Add", ["scaled", "state"], ["about"]),
        node("Add", ["about", "offset"], ["free" if inpaint else s.CHUNKS_OUTPUT]),
    ]
    if inpaint:
        nodes += [
            node("Unsqueeze", [s.KNOWN_WEIGHT_INPUT, "axis_d"], ["weight"]),
            node("Sub", [s.KNOWN_INPUT, "free"], ["difference"]),
            node("Mul", ["weight", "difference"], ["pull"]),
            node("Add", ["free", "pull"], [s.CHUNKS_OUTPUT]),
        ]
        inputs.append(_floats(s.KNOWN_INPUT, [1, HORIZON, width]))
        inputs.append(_floats(s.KNOWN_WEIGHT_INPUT, [1, HORIZON]))
    constants = [
        _integers("rows", -1, shape[-1]),
        _integers("first", 0, images),
        _integers("last", 1, images + width),
        _integers("axes", 0, 1),
        _integers("zero", 0),
        _integers("kept", HORIZON - emitted),
        _integers("emitted", emitted),
        _integers("end", HORIZON),
        _integers("axis_h", 1),
        _integers("axis_d", 2),
        _integers("pads", 0, 0, 0, 0, emitted, 0),
        _constant("gain", np.float32(gain)),
        _constant("offset", np.asarray(offset, np.float32)),
    ]
    return helper.make_graph(nodes, "sampler", inputs, outputs, constants)
