"""A sampling loop put together of three graphs does what the same loop does in numpy. Needs neither torch nor a checkpoint."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from vigil.train.lerobot.loop import ADDED, COEFFICIENTS, FILM, NEXT, OBSERVED, X, looped

K, HORIZON, DIM, STEPS = 3, 4, 2, 5


def graph(nodes: list, inputs: dict[str, list], outputs: dict[str, list]) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "part",
        [info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("ancestral", [False, True])
def test_every_step_gets_its_constants_and_its_noise(ancestral):
    chunk = ["K", HORIZON, DIM]
    nodes = [helper.make_node("Add", [X, FILM], ["a"]), helper.make_node("Mul", ["a", COEFFICIENTS], [NEXT])]
    inputs = {X: chunk, FILM: [1, DIM], COEFFICIENTS: [DIM]}
    if ancestral:
        nodes = [
            nodes[0],
            helper.make_node("Mul", ["a", COEFFICIENTS], ["b"]),
            helper.make_node("Add", ["b", ADDED], [NEXT]),
        ]
        inputs[ADDED] = chunk
    rng = np.random.default_rng(0)
    films, coefficients = rng.standard_normal((2, STEPS, DIM)).astype(np.float32)
    rows = HORIZON * (STEPS if ancestral else 1)
    model = looped(
        graph(
            [helper.make_node("Neg", ["embedding"], [OBSERVED])],
            {"embedding": [1, DIM]},
            {OBSERVED: [1, DIM]},
        ),
        graph(nodes, inputs, {NEXT: chunk}),
        graph([helper.make_node("Neg", [X], ["chunks"])], {X: chunk}, {"chunks": chunk}),
        films,
        coefficients,
        ("noise", rows, DIM),
        "chunks",
    )
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = rng.standard_normal((K, rows, DIM)).astype(np.float32)
    embedding = rng.standard_normal((1, DIM)).astype(np.float32)
    (made,) = session.run(None, {"noise": noise, "embedding": embedding})

    x = noise[:, :HORIZON]
    for i in range(STEPS):
        x = (x - embedding + films[i]) * coefficients[i]
        if ancestral:
            block = min(i + 1, STEPS - 1)
            x = x + noise[:, HORIZON * block : HORIZON * (block + 1)]
    np.testing.assert_allclose(made, -x, atol=1e-5)
