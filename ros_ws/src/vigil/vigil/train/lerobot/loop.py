"""A sampling loop as one ONNX graph: the step is traced once, whatever the number of steps, and repeated by ONNX's Loop.

Unrolled, a U-Net of LeRobot's size takes minutes to trace for ten steps, and a hundred would not end.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

X, FILM, COEFFICIENTS, ADDED, NEXT, OBSERVED = "x", "film", "coefficients", "added", "next", "observed"


def looped(
    start: onnx.ModelProto,
    step: onnx.ModelProto,
    finish: onnx.ModelProto,
    films: np.ndarray,
    coefficients: np.ndarray,
    noise: tuple[str, int, int],
    chunks: str,
) -> onnx.ModelProto:
    """Join the three parts.

    Args:
        start: embedding (or context) -> `OBSERVED` [1, F].
        step: `X` [K, T, D], `FILM` [1, F], `COEFFICIENTS` [C], and `ADDED` [K, T, D] if it takes noise -> `NEXT` [K, T, D].
        finish: `X` -> chunks.
        films: [N, F], added to `OBSERVED` at each step.
        coefficients: [N, C].
        noise: its name, its rows R, and its columns D; the first T of its rows are the loop's beginning, and each step but the last
            adds the next T of them.
        chunks: name of the output.
    """
    name, rows, columns = noise
    steps = len(films)
    takes_noise = any(value.name == ADDED for value in step.graph.input)
    horizon = rows // steps if takes_noise else rows
    start, step, finish = (
        compose.add_prefix(part, f"{label}/", rename_inputs=True, rename_outputs=True)
        for part, label in ((start, "start"), (step, "step"), (finish, "finish"))
    )
    if any(part.functions for part in (start, step, finish)):
        raise ValueError("the exporter left functions in a graph: they have no place in a loop's body")

    body = [
        helper.make_node("Unsqueeze", ["loop/i", "loop/axis0"], ["loop/index"]),
        helper.make_node("Gather", ["loop/films", "loop/index"], ["loop/film"]),
        helper.make_node("Add", [f"start/{OBSERVED}", "loop/film"], [f"step/{FILM}"]),
        helper.make_node("Gather", ["loop/coefficients", "loop/i"], [f"step/{COEFFICIENTS}"]),
        helper.make_node("Identity", ["loop/on"], ["loop/still_on"]),
    ]
    constants: dict[str, np.ndarray] = {}
    if takes_noise:
        begins = horizon * np.minimum(np.arange(1, steps + 1), steps - 1)
        constants = {"loop/begins": begins.astype(np.int64), "loop/ends": (begins + horizon).astype(np.int64)}
        body += [
            helper.make_node("Gather", ["loop/begins", "loop/index"], ["loop/begin"]),
            helper.make_node("Gather", ["loop/ends", "loop/index"], ["loop/end"]),
            helper.make_node("Slice", [name, "loop/begin", "loop/end", "loop/axis1"], [f"step/{ADDED}"]),
        ]
    constants |= {
        "loop/films": films.astype(np.float32),
        "loop/coefficients": coefficients.astype(np.float32),
        "loop/count": np.array(steps, np.int64),
        "loop/true": np.array(True),
        "loop/zero": np.array([0], np.int64),
        "loop/horizon": np.array([horizon], np.int64),
        "loop/axis0": np.array([0], np.int64),
        "loop/axis1": np.array([1], np.int64),
    }
    chunk = ["K", horizon, columns]
    graph = helper.make_graph(
        [*body, *step.graph.node],
        "step",
        [
            helper.make_tensor_value_info("loop/i", TensorProto.INT64, []),
            helper.make_tensor_value_info("loop/on", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"step/{X}", TensorProto.FLOAT, chunk),
        ],
        [
            helper.make_tensor_value_info("loop/still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"step/{NEXT}", TensorProto.FLOAT, chunk),
        ],
        list(step.graph.initializer),
    )
    (embedding,) = start.graph.input
    (made,) = finish.graph.output
    read = embedding.name.removeprefix("start/")
    nodes = [
        helper.make_node("Identity", [read], [embedding.name]),
        *start.graph.node,
        helper.make_node("Slice", [name, "loop/zero", "loop/horizon", "loop/axis1"], ["loop/first"]),
        helper.make_node("Loop", ["loop/count", "loop/true", "loop/first"], [f"finish/{X}"], body=graph),
        *finish.graph.node,
        helper.make_node("Identity", [made.name], [chunks]),
    ]
    initializers = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    outer = onnx.ValueInfoProto.FromString(embedding.SerializeToString())
    outer.name = read
    shape = [d.dim_param or d.dim_value for d in made.type.tensor_type.shape.dim]
    whole = helper.make_graph(
        nodes,
        "sampler",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["K", rows, columns]), outer],
        [helper.make_tensor_value_info(chunks, TensorProto.FLOAT, ["K", *shape[1:]])],
        [*initializers, *start.graph.initializer, *finish.graph.initializer],
    )
    return helper.make_model(whole, opset_imports=step.opset_import, ir_version=step.ir_version)
