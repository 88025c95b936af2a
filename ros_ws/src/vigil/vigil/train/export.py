"""A trained checkpoint -> a policy bundle: two ONNX graphs, their parity with torch, and bundle.yaml."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, file_hash, load_bundle, write_bundle_yaml
from vigil.policy.spec import (
    CHUNKS_OUTPUT,
    EMBEDDING,
    ENCODER_FILE,
    LOOP_FILE,
    NOISE_INPUT,
    STATE_INPUT,
    BundleSpec,
    Column,
    Parity,
    Sampler,
    image_input,
)
from vigil.train.config import TrainConfig
from vigil.train.model import DdimSampler, PolicyNet

PARITY_SAMPLES = 16


def load_policy(checkpoint: Path) -> tuple[PolicyNet, dict[str, Any]]:
    """The averaged network of a checkpoint, in evaluation mode, and the facts about its data."""
    if not checkpoint.is_file():
        raise VigilError(
            f"checkpoint {checkpoint} does not exist: `vigil train` writes it into its --out folder"
        )
    state = torch.load(checkpoint, weights_only=False, map_location="cpu")
    config = TrainConfig.model_validate(state["config"])
    weights, facts = state["average"], state["data"]
    names = ("state_low", "state_high", "action_low", "action_high")
    statistics = {n: weights[f"encoder.{n}" if n.startswith("state") else n] for n in names}
    net = PolicyNet(config, tuple(facts["cameras"]), statistics, weights["auxiliary.2.bias"].numel())
    net.load_state_dict(weights)
    facts = facts | {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1), "seed": config.seed}
    return net.eval(), facts


def export_bundle(checkpoint: Path, folder: Path, sampler_steps: int | None = None) -> Bundle:
    """Write the bundle of ``checkpoint`` to ``folder``; a calibration or model card already there is left alone.

    The sampler's steps default to those of the training configuration.

    Raises:
        VigilError: no checkpoint, or the graphs differ from torch by more than the tolerance.
    """
    net, facts = load_policy(checkpoint)
    config = net.config
    steps = sampler_steps or config.sampler_steps
    loop = DdimSampler(net, steps).eval()
    cameras, columns = net.encoder.cameras, facts["columns"]
    rng = np.random.default_rng(0)
    side = config.image_size
    images = [torch.from_numpy(rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8)) for _ in cameras]
    state = ((net.encoder.state_low + net.encoder.state_high) / 2)[None]
    noise = torch.from_numpy(
        rng.standard_normal((PARITY_SAMPLES, config.horizon, net.action_dim), np.float32)
    )
    with torch.inference_mode():
        embedding = net.encoder(*images, state)
        chunks = loop(noise, embedding)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _export(
            net.encoder,
            (*images, state),
            work / ENCODER_FILE,
            [*(image_input(camera) for camera in cameras), STATE_INPUT],
            EMBEDDING,
            None,
        )
        samples = {0: torch.export.Dim("K", min=1, max=4096)}
        _export(
            loop,
            (noise, embedding),
            work / LOOP_FILE,
            [NOISE_INPUT, EMBEDDING],
            CHUNKS_OUTPUT,
            (samples, None),
        )
        inputs = {image_input(c): image.numpy() for c, image in zip(cameras, images, strict=True)}
        onnx_embedding = _run(work / ENCODER_FILE, {**inputs, STATE_INPUT: state.numpy()})
        onnx_chunks = _run(work / LOOP_FILE, {NOISE_INPUT: noise.numpy(), EMBEDDING: embedding.numpy()})
        spread = (net.action_high - net.action_low).numpy() / 2
        parity = Parity(
            encoder=float(np.abs(onnx_embedding - embedding.numpy()).max()),
            chunks=float(np.abs((onnx_chunks - chunks.numpy()) / spread).max()),
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ENCODER_FILE, LOOP_FILE):
            shutil.move(work / name, folder / name)
    grippers = facts.get("grippers") or [facts["gripper"]]  # older checkpoints are of rigs with one
    units = [Column(name=c, unit="m" if c in grippers else "rad") for c in columns]
    spec = BundleSpec(
        name=config.name,
        task=facts["task"],
        kinematics=facts.get("kinematics", "franka"),  # older checkpoints do not tell
        cameras=cameras,
        image_size=side,
        state=units,
        action=units,
        action_std=facts["action_std"],
        horizon=config.horizon,
        executed=config.executed_steps,
        step_dt=config.step_dt,
        embedding_dim=config.embedding,
        samplers={"ddim": Sampler(file=LOOP_FILE, steps=steps)},
        hashes={name: file_hash(folder / name) for name in (ENCODER_FILE, LOOP_FILE)},
        parity=parity,
        training={
            k: v
            for k, v in facts.items()
            if k not in ("columns", "action_std", "cameras", "task", "gripper", "grippers", "kinematics")
        },
    )
    write_bundle_yaml(spec, folder)
    return load_bundle(folder)


def _export(
    module: torch.nn.Module, inputs: tuple, path: Path, names: list[str], output: str, dynamic: tuple | None
) -> None:
    torch.onnx.export(
        module,
        inputs,
        path,
        dynamo=True,
        input_names=names,
        output_names=[output],
        dynamic_shapes=dynamic,
        external_data=False,
        verbose=False,
    )
    strip_origin(path)


def strip_origin(path: Path) -> None:
    """Take the exporter's notes on every node out of an ONNX file: source lines and paths of the machine it ran on."""
    model = onnx.load(path)
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def _run(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
