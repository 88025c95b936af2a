"""Trained weights, read from a checkpoint of the trainer or from the graphs of a bundle: either is where to go on from.

The exporter gives most initialisers the names of the parameters they were, but folds some into others, transposes some, and lets
equal ones be one. So `note_weights` writes down in the graph which initialiser holds which parameter. Graphs without that note are
read by name, and their group norms by what consumes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, load_bundle
from vigil.policy.spec import ENCODER_FILE, Method
from vigil.train.config import TrainConfig
from vigil.train.model import Encoder, PolicyNet
from vigil.train.samplers import SAMPLERS

NOTE = "vigil.weights"  # key of a graph's metadata
RANGES = ("state_low", "state_high", "action_low", "action_high")
ABOUT_DATA = ("demonstrations", "rows", "data_sha256", "steps", "minutes", "seed")


@dataclass(frozen=True)
class Trained:
    """A trained network and what is known about it.

    Attributes:
        net: in evaluation mode.
        facts: columns, grippers, kinematics, task, action_std and what else a bundle says of its data.
        bundle: where it came from, if from a bundle.
        sampler: the bundle's sampler whose denoiser it has.
    """

    net: PolicyNet
    facts: dict[str, Any]
    bundle: Bundle | None = None
    sampler: str | None = None


def load_policy(path: Path, method: Method | None = None, sampler: str | None = None) -> Trained:
    """The network in ``path``: a checkpoint of `vigil train` (its averaged weights), or a bundle.

    Args:
        method: of a bundle with several denoisers: the first one that this sampler can use is taken.
        sampler: or that of this sampler of the bundle.

    Raises:
        VigilError: there is neither, or the bundle was not made by this trainer, or has no such denoiser.
    """
    if path.is_dir():
        return _of_bundle(path, method, sampler)
    if not path.is_file():
        raise VigilError(
            f"checkpoint {path} does not exist: `vigil train` writes it into its --out folder; a bundle's folder will do, too"
        )
    state = torch.load(path, weights_only=False, map_location="cpu")
    config = TrainConfig.model_validate(state["config"])
    weights = {name: values for name, values in state["average"].items() if values.numel()}
    facts = dict(state["data"])
    ranges = {n: weights[f"encoder.{n}" if n.startswith("state") else n] for n in RANGES}
    labels = weights["auxiliary.2.bias"].numel() if "auxiliary.2.bias" in weights else 0
    net = PolicyNet(config, tuple(facts["cameras"]), ranges, labels)
    net.load_state_dict(weights)
    facts |= {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1), "seed": config.seed}
    if "grippers" not in facts:  # older checkpoints are of rigs with one
        facts["grippers"] = [facts.pop("gripper")]
    return Trained(net.eval(), {"kinematics": "franka", **facts})


def _of_bundle(path: Path, method: Method | None, sampler: str | None) -> Trained:
    bundle = load_bundle(path)
    spec = bundle.spec
    name = sampler or _fitting(bundle, method)
    if (precision := spec.sampler(name).precision) != "fp32":
        raise VigilError(
            f"sampler {name} of bundle {path} is {precision}: the trained weights are not in its graph"
        )
    graph = onnx.load(bundle.file(spec.sampler(name).file))
    about = spec.training.get("samplers", {}).get(name, {})
    # Bundles that do not tell were made with the defaults; whether that is so, shapes and parity show.
    config = TrainConfig.model_validate(
        about.get("config")
        or {"name": spec.name, "image_size": spec.image_size, "horizon": spec.horizon}
        | {"executed_steps": spec.executed, "step_dt": spec.step_dt, "embedding": spec.embedding_dim}
    )
    encoder_graph = onnx.load(bundle.file(ENCODER_FILE))
    found = spec.training.get("ranges")
    ranges = (
        {n: torch.tensor(found[n], dtype=torch.float32) for n in RANGES}
        if found
        else _folded_range(encoder_graph, "state_low", "state")
        | _folded_range(graph, "net.action_low", "action")
    )
    net = PolicyNet(config, spec.cameras, ranges, 0)
    encoder = graph_weights(encoder_graph, net.encoder, bundle.file(ENCODER_FILE))
    denoiser = graph_weights(graph, net.denoiser, bundle.file(spec.sampler(name).file), "net.denoiser.")
    net.encoder.load_state_dict(encoder)
    net.denoiser.load_state_dict(denoiser)
    facts = {
        "cameras": list(spec.cameras),
        "columns": [column.name for column in spec.action],
        "grippers": [column.name for column in spec.action if column.unit == "m"],
        "kinematics": spec.kinematics,
        "task": spec.task,
        "action_std": list(spec.action_std),
    }
    facts |= {key: value for key, value in {**spec.training, **about}.items() if key in ABOUT_DATA}
    return Trained(net.eval(), facts, bundle, name)


def _fitting(bundle: Bundle, method: Method | None) -> str:
    samplers = bundle.spec.samplers
    fitting = [
        name
        for name, offered in samplers.items()
        if offered.method in SAMPLERS
        and offered.precision == "fp32"
        and (method is None or SAMPLERS[method].objective == SAMPLERS[offered.method].objective)
    ]
    if not fitting:
        needed = "that this trainer made" if method is None else f"of objective {SAMPLERS[method].objective}"
        has = ", ".join(f"{name} ({offered.method})" for name, offered in samplers.items())
        raise VigilError(
            f"bundle {bundle.path} has no denoiser {needed}; its samplers are {has}: train one (`vigil train --from`)"
        )
    return fitting[0]


def note_weights(path: Path, module: nn.Module) -> None:
    """Write into the graph at ``path`` which initialiser holds which parameter of ``module``, and whether it is transposed."""
    model = onnx.load(path)
    holders: dict[tuple[tuple[int, ...], bytes], str] = {}
    for initialiser in model.graph.initializer:
        values = numpy_helper.to_array(initialiser)
        if values.dtype == np.float32:
            shape = tuple(size for size in values.shape if size > 1)  # a norm's [C] may have become [C, 1, 1]
            holders.setdefault((shape, values.tobytes()), initialiser.name)
    note = {}
    for name, parameter in module.state_dict().items():
        values = parameter.numpy()
        for transposed in (False, True):
            stored = np.ascontiguousarray(values.T if transposed else values)
            shape = tuple(size for size in stored.shape if size > 1)
            if holder := holders.get((shape, stored.tobytes())):
                note[name] = [holder, transposed]
                break
    model.metadata_props.add(key=NOTE, value=json.dumps(note))
    onnx.save(model, path)


def graph_weights(
    graph: onnx.ModelProto, module: nn.Module, path: Path, prefix: str = ""
) -> dict[str, Tensor]:
    """Values for ``module``'s state, by name.

    Args:
        path: of the graph, for errors.
        prefix: of the module's parameters in the graph.

    Raises:
        VigilError: something is missing or of other shape.
    """
    held = {i.name: numpy_helper.to_array(i) for i in graph.graph.initializer}
    notes = [json.loads(p.value) for p in graph.metadata_props if p.key == NOTE]
    held |= _named(held, notes[0]) if notes else _folded_norms(graph, held, module, prefix)
    state, wrong = {}, []
    for name, parameter in module.state_dict().items():
        values = held.get(prefix + name)
        if values is None and name in RANGES:
            values = parameter.numpy()  # these come from elsewhere
        if values is None or values.size != parameter.numel():
            wrong.append(name)
            continue
        state[name] = torch.from_numpy(np.array(values.reshape(parameter.shape)))
    if wrong:
        raise VigilError(
            f"{path} does not hold the weights of a {type(module).__name__} as its configuration has it: {', '.join(wrong[:5])} "
            f"of {len(wrong)} missing: was it made by another program?"
        )
    return state


def _named(held: Mapping[str, np.ndarray], note: Mapping[str, tuple[str, bool]]) -> dict[str, np.ndarray]:
    return {
        name: held[holder].T if transposed else held[holder]
        for name, (holder, transposed) in note.items()
        if holder in held
    }


def _folded_norms(
    graph: onnx.ModelProto, held: Mapping[str, np.ndarray], module: nn.Module, prefix: str
) -> dict[str, np.ndarray]:
    """Group norms become InstanceNormalization, Reshape, Mul (weight) and Add (bias), in the order of their use."""
    consumers = {name: node for node in graph.graph.node for name in node.input}
    names = [name for name, part in module.named_modules() if isinstance(part, nn.GroupNorm)]
    found = [node for node in graph.graph.node if node.op_type == "InstanceNormalization"]
    weights = {}
    for name, node in zip(names, found, strict=False):
        for wanted, kind in (("", "Reshape"), ("weight", "Mul"), ("bias", "Add")):
            node = consumers[node.output[0]]
            constant = [values for values in map(held.get, node.input) if values is not None]
            if node.op_type != kind or (wanted and len(constant) != 1):
                return weights
            if wanted:
                weights[f"{prefix}{name}.{wanted}"] = constant[0]
    return weights


def _folded_range(graph: onnx.ModelProto, low: str, name: str) -> dict[str, Tensor]:
    """Both ends of a normalisation, whose width the exporter folded into one constant near the lower end ``low``."""
    held = {i.name: numpy_helper.to_array(i) for i in graph.graph.initializer}
    if low not in held:
        raise VigilError(f"the graph holds no {low}: the bundle was not made by `vigil export`")
    reader = next(node for node in graph.graph.node if low in node.input)
    makers = {output: node for node in graph.graph.node for output in node.output}
    consumers = {i: node for node in graph.graph.node for i in node.input}
    near = [makers[i] for i in reader.input if i in makers]  # of actions: what is multiplied before
    node = reader
    while node.output[0] in consumers and len(near) < 4:  # of states: what is divided by afterwards
        node = consumers[node.output[0]]
        near.append(node)
    same = [
        held[i]
        for node in near
        for i in node.input
        if i in held and held[i].shape == held[low].shape and (held[i] > 0).all()
    ]
    if len(same) != 1:
        raise VigilError(f"the graph does not tell the range above {low}: export it anew from its checkpoint")
    return {
        f"{name}_low": torch.from_numpy(np.array(held[low])),
        f"{name}_high": torch.from_numpy(held[low] + same[0]),
    }


def same_encoder(a: Encoder, b: Encoder) -> bool:
    """Whether two encoders have the same weights."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
