"""Graphs as torch's exporter leaves them, made smaller and free of repetition."""

from __future__ import annotations

from onnx_ir.passes import common as passes
from onnxscript import ir, optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import max_min_rule, min_max_rule

FOLDED_SIZE = 1024  # numbers; of larger ones no constant is made


def tidy(model: ir.Model) -> None:
    """Fold what is constant, and drop what is there twice or for nothing.

    All of onnxscript's optimizer takes thirty times as long, and makes no graph faster: the runtime knows such patterns itself.
    """
    passes.InlinePass()(model)
    # What a level alone decides could be folded into constants, but then the weights behind it would be lost.
    optimizer.fold_constants(model, input_size_limit=FOLDED_SIZE)
    rewrite(model, [max_min_rule, min_max_rule])  # the half-precision converter trips over the limits' names
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
