"""Exported graphs with fewer bits: half floats for GPUs, 8-bit weights for CPUs. What that costs is measured at export.

Inputs and outputs stay float32, so whoever runs a graph need not know.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx

from vigil.errors import VigilError
from vigil.policy.spec import Precision


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

    full = path.with_suffix(".fp32.onnx")
    onnx.save(model, full)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises what the exporter has already done
    try:
        quantize_dynamic(full, path, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
        full.unlink()
    if not any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load(path).graph.node):
        raise VigilError(f"{path.name}: the graph has no product of matrices that 8 bits would do for")
