"""A tiny policy bundle made with `onnx.helper`: real graphs that the real runtime runs, small enough for any test.

The embedding is [mean of each camera's image / 255, state...]. A chunk is the state's matching column (the arm stays
where it is) plus ``NOISE_GAIN`` times the noise: what comes out can be predicted by hand.
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
SIZE, HORIZON, NOISE_GAIN = 96, 16, 0.01


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
) -> Path:
    """Write a bundle into ``folder``; ``offset`` (one for all, or one per name) is added to every target.

    A nan makes a policy that must be refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = len(names)
    embedding = len(cameras) + width
    _save(_encoder(cameras, width, embedding), folder / s.ENCODER_FILE)
    _save(_loop(len(cameras), width, embedding, offset, gain), folder / s.LOOP_FILE)
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
        step_dt=0.05,
        embedding_dim=embedding,
        samplers={"ddim": s.Sampler(steps=10)},
        hashes={file: b.file_hash(folder / file) for file in (s.ENCODER_FILE, s.LOOP_FILE)},
    )
    b.write_bundle_yaml(spec, folder)
    return folder


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def _encoder(cameras: tuple[str, ...], width: int, embedding: int) -> onnx.GraphProto:
    nodes, means = [], []
    for camera in cameras:
        nodes += [
            helper.make_node("Cast", [s.image_input(camera)], [f"{camera}_f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", [f"{camera}_f"], [f"{camera}_m"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Div", [f"{camera}_m", "white"], [f"{camera}_n"]),
            helper.make_node("Reshape", [f"{camera}_n", "row"], [f"{camera}_r"]),
        ]
        means.append(f"{camera}_r")
    nodes.append(helper.make_node("Concat", [*means, s.STATE_INPUT], [s.EMBEDDING], axis=1))
    images = [
        helper.make_tensor_value_info(s.image_input(c), TensorProto.UINT8, [1, SIZE, SIZE, 3])
        for c in cameras
    ]
    return helper.make_graph(
        nodes,
        "encoder",
        [*images, helper.make_tensor_value_info(s.STATE_INPUT, TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info(s.EMBEDDING, TensorProto.FLOAT, [1, embedding])],
        [_constant("white", np.float32(255)), _constant("row", np.array([1, 1], np.int64))],
    )


def _loop(
    images: int, width: int, embedding: int, offset: float | Sequence[float], gain: float
) -> onnx.GraphProto:
    chunk = ["K", HORIZON, width]
    return helper.make_graph(
        [
            helper.make_node("Slice", [s.EMBEDDING, "first", "last", "axis"], ["state"]),
            helper.make_node("Mul", [s.NOISE_INPUT, "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "state"], ["about"]),
            helper.make_node("Add", ["about", "offset"], [s.CHUNKS_OUTPUT]),
        ],
        "policy_loop",
        [
            helper.make_tensor_value_info(s.NOISE_INPUT, TensorProto.FLOAT, chunk),
            helper.make_tensor_value_info(s.EMBEDDING, TensorProto.FLOAT, [1, embedding]),
        ],
        [helper.make_tensor_value_info(s.CHUNKS_OUTPUT, TensorProto.FLOAT, chunk)],
        [
            _constant("first", np.array([images], np.int64)),
            _constant("last", np.array([embedding], np.int64)),
            _constant("axis", np.array([1], np.int64)),
            _constant("gain", np.float32(gain)),
            _constant("offset", np.asarray(offset, np.float32)),
        ],
    )
