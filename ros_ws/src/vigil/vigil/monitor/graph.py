"""Random network distillation as one ONNX graph: embeddings [N, E] in, scores [N] out."""

from __future__ import annotations

import numpy as np
import onnxruntime

from vigil.errors import VigilError
from vigil.monitor.mlp import LEAK, Mlp

OPSET, IR_VERSION = 17, 8
INPUT, OUTPUT = "embedding", "score"


def distance_graph(
    used: np.ndarray, mean: np.ndarray, std: np.ndarray, clip: float, nets: tuple[Mlp, Mlp], offset: float
) -> bytes:
    """Norm of the difference of two networks on the ``used`` features [E], standardised and clipped, as ONNX.

    Args:
        mean, std: [used], float32; ``clip`` in standard deviations, inf for none.
        offset: added to every difference before the norm is taken.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    x = node("Gather", [INPUT, constant("used", np.flatnonzero(used).astype(np.int64))], "picked", axis=1)
    x = node("Sub", [x, constant("mean", np.asarray(mean, np.float32))], "centred")
    x = node("Div", [x, constant("std", np.asarray(std, np.float32))], "scaled")
    if np.isfinite(clip):
        limits = [constant("low", np.float32(-clip)), constant("high", np.float32(clip))]
        x = node("Clip", [x, *limits], "clipped")
    outputs = []
    for name, net in zip(("target", "predictor"), nets, strict=True):
        y = x
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            inputs = [y, constant(f"{name}.{layer}.weight", weight), constant(f"{name}.{layer}.bias", bias)]
            y = node("Gemm", inputs, f"{name}.{layer}")
            if layer < len(net.leaks):
                leak = net.leaks[layer]
                y = (
                    node("LeakyRelu", [y], f"{name}.{layer}.out", alpha=LEAK)
                    if leak
                    else node("Relu", [y], f"{name}.{layer}.out")
                )
        outputs.append(y)
    difference = node("Sub", outputs[::-1], "difference")
    if offset:
        difference = node("Add", [difference, constant("offset", np.float32(offset))], "shifted")
    node("ReduceL2", [difference], OUTPUT, axes=[1], keepdims=0)
    graph = helper.make_graph(
        nodes,
        "random_network_distillation",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", len(used)])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="vigil")
    model.ir_version = IR_VERSION
    checker.check_model(model)
    return model.SerializeToString()


class Session:
    """A score's graph on one CPU thread: the tick is far too short to be shared out."""

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own types, without a common base
            raise VigilError(f"a score's ONNX graph cannot be loaded: {str(error).splitlines()[0]}") from None

    def __call__(self, embedding: np.ndarray) -> np.ndarray:
        """Scores [N] of embeddings [N, E]."""
        return self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(embedding, np.float32)})[0]
