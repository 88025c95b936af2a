"""Exported graphs with fewer bits: half floats for GPUs, 8-bit weights for CPUs. What that costs is measured at export.

Inputs and outputs stay float32, so whoever runs a graph need not know.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vigil.errors import VigilError
from vigil.policy.spec import Precision
from vigil.train.quiet import quiet


def lower(path: Path, precision: Precision) -> None:
    """Rewrite the graph at ``path``. Its weights are then no longer those that were trained, and it says nothing of them.

    Raises:
        VigilError: no operator of the graph can be lowered.
    """
    if precision == "fp32":
        return
    model = onnx.load(path)
    del model.metadata_props[:]
    del model.graph.value_info[
        :
    ]  # shapes from before the exporter's own optimisation; they are inferred again
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of every number that is too small for half floats
            model = convert_float_to_float16(model, keep_io_types=True)
        onnx.save(model, path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _without_gemm(model.graph)
    full = path.with_suffix(".fp32.onnx")
    onnx.save(model, full)
    try:
        with quiet():  # it advises what the exporter has already done
            quantize_dynamic(
                full,
                path,
                weight_type=QuantType.QInt8,
                extra_options={
                    "DefaultTensorType": onnx.TensorProto.FLOAT
                },  # where shapes cannot be inferred
            )
    finally:
        full.unlink()
    if not any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load(path).graph.node):
        raise VigilError(f"{path.name}: the graph has no product of matrices that 8 bits would do for")


def _without_gemm(graph: onnx.GraphProto) -> None:
    """Products with a bias as product and sum. The quantiser would do it too, but turns weights over once for each of their uses."""
    weights = {initialiser.name: initialiser for initialiser in graph.initializer}
    nodes, turned = [], {}
    for node in graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        scaled = any(given.get(name, 1.0) != 1.0 for name in ("alpha", "beta")) or given.get("transA")
        if node.op_type != "Gemm" or node.input[1] not in weights or scaled:
            nodes.append(node)
            continue
        a, weight, *bias = node.input
        if given.get("transB"):
            if weight not in turned:
                values = numpy_helper.to_array(weights[weight]).T
                turned[weight] = numpy_helper.from_array(np.ascontiguousarray(values), f"{weight}/turned")
            weight = turned[weight].name
        (out,) = node.output
        product = f"{out}/product" if bias else out
        nodes.append(helper.make_node("MatMul", [a, weight], [product], f"{node.name}/product"))
        if bias:
            nodes.append(helper.make_node("Add", [product, *bias], [out], f"{node.name}/sum"))
    read = {name for node in nodes for name in node.input}
    kept = [i for i in (*graph.initializer, *turned.values()) if i.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
