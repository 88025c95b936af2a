"""A LeRobot checkpoint -> a policy bundle."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, file_hash, load_bundle, write_bundle_yaml
from vigil.policy.spec import (
    CHUNKS_OUTPUT,
    CONTEXT,
    EMBEDDING,
    ENCODER_FILE,
    LOOP_FILE,
    NOISE_INPUT,
    STATE_INPUT,
    BundleSpec,
    Parity,
    Sampler,
    image_input,
)
from vigil.rig import RigConfig
from vigil.train.export import (
    EXPORTER,
    MOST_SAMPLES,
    PARITY_SAMPLES,
    TOLERANCE,
    run_graph,
    strip_origin,
)
from vigil.train.lerobot import act, diffusion
from vigil.train.lerobot.binding import Binding, Unit, Wishes, bind
from vigil.train.lerobot.checkpoint import Checkpoint, read_checkpoint
from vigil.train.lerobot.config import ACTION, DiffusionConfig
from vigil.train.lerobot.loop import ADDED, COEFFICIENTS, FILM, NEXT, OBSERVED, X, looped
from vigil.train.lerobot.normalise import Normaliser
from vigil.train.quiet import quiet

DDIM_STEPS = 10  # of policies that were tested with many steps of DDPM


class RigUnits(nn.Module):
    """Puts an encoder behind the rig's units: its last input, the state, comes in rad and m."""

    def __init__(self, encoder: nn.Module, units: tuple[Unit, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("scale", torch.tensor([unit.scale for unit in units]))
        self.register_buffer("zero", torch.tensor([unit.zero for unit in units]))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        *images, state = inputs
        return self.encoder(*images, (state - self.zero) / self.scale)


class RigTargets(nn.Module):
    """Puts a sampler, or its last part, before the rig's units: chunks go out in rad and m."""

    def __init__(self, sampler: nn.Module | Callable[..., Tensor], units: tuple[Unit, ...]) -> None:
        super().__init__()
        self.sampler = sampler
        self.register_buffer("scale", torch.tensor([unit.scale for unit in units]))
        self.register_buffer("zero", torch.tensor([unit.zero for unit in units]))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.sampler(*inputs) * self.scale + self.zero


class Part(nn.Module):
    """One method of a module, as a module of its own."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.module, self.method)(*inputs)


@dataclass(frozen=True)
class Policy:
    """A checkpoint as the modules that become graphs, in the rig's units."""

    checkpoint: Checkpoint
    binding: Binding
    encoder: nn.Module
    sampler: nn.Module
    actions: Normaliser
    noise_rows: int
    method: str
    steps: int


def build_policy(folder: Path, rig: RigConfig, wishes: Wishes) -> Policy:
    """The networks of the checkpoint ``folder`` on a rig, in evaluation mode.

    Raises:
        VigilError: the checkpoint is broken or of a kind that is not supported, or it does not fit rig or wishes.
    """
    checkpoint = read_checkpoint(folder)
    binding = bind(checkpoint, rig, wishes)
    config = checkpoint.config
    if isinstance(config, DiffusionConfig):
        method = wishes.sampler or "ddim"
        if method not in ("ddim", "ddpm"):
            raise VigilError(
                f"sampler {method!r}: LeRobot's diffusion policies are exported with ddim or ddpm"
            )
        steps = wishes.steps or _steps(config, method)
        encoder, unet, actions = diffusion.build(checkpoint)
        sampler = diffusion.DiffusionSampler(config, unet, actions, method, steps).eval()
    else:
        if wishes.sampler or wishes.steps:
            raise VigilError("ACT answers in one call: it takes neither --sampler nor --steps")
        method, steps = "direct", 1
        encoder, sampler = act.build(checkpoint)
        actions = sampler.actions
    return Policy(
        checkpoint,
        binding,
        RigUnits(encoder, binding.state_units).eval(),
        RigTargets(sampler, binding.action_units).eval(),
        actions,
        sampler.noise_rows,
        method,
        steps,
    )


def _steps(config: DiffusionConfig, method: str) -> int:
    """As `select_action` takes them, where it does the same; DDIM in place of DDPM needs far fewer."""
    if method == config.noise_scheduler_type.lower():
        return config.inference_steps
    return min(DDIM_STEPS, config.inference_steps) if method == "ddim" else config.num_train_timesteps


def export_lerobot(folder: Path, out: Path, rig: RigConfig, wishes: Wishes) -> Bundle:
    """Write the bundle of a LeRobot checkpoint to ``out``; a calibration or model card already there is left alone.

    Raises:
        VigilError: as `build_policy`; or the graphs differ from torch by more than the tolerance: nothing is written then.
    """
    policy = build_policy(folder, rig, wishes)
    config, binding = policy.checkpoint.config, policy.binding
    encoder_inputs, noise = _examples(policy)
    with torch.inference_mode():
        encoded = policy.encoder(*encoder_inputs.values())
    embedding, *rest = encoded if isinstance(encoded, tuple) else (encoded,)
    read = rest[0] if rest else embedding
    reads = CONTEXT if rest else EMBEDDING
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        outputs = (EMBEDDING, CONTEXT) if rest else (EMBEDDING,)
        sampler_inputs = {NOISE_INPUT: noise, reads: read.clone()}
        _trace(policy.encoder, encoder_inputs, outputs, work / ENCODER_FILE)
        _write_sampler(policy, sampler_inputs, work / LOOP_FILE)
        parity = Parity(
            encoder=_parity(work / ENCODER_FILE, policy.encoder, encoder_inputs, outputs),
            chunks=_parity(work / LOOP_FILE, policy.sampler, sampler_inputs, (CHUNKS_OUTPUT,), _unit(policy)),
            tolerance=TOLERANCE,
        )
        spec = BundleSpec(
            name=wishes.name or f"lerobot_{config.type}",
            task=rig.task,
            kinematics=rig.arms[0].kinematics,
            cameras=binding.cameras,
            image_size=config.picture_shape,
            state=binding.state,
            action=binding.action,
            action_std=_action_std(policy),
            horizon=config.chunk_steps,
            executed=config.n_action_steps,
            step_dt=binding.step_dt,
            embedding_dim=embedding.shape[1],
            observation_steps=config.n_obs_steps,
            context=tuple(read.shape[1:]) if rest else (),
            samplers={
                policy.method: Sampler(
                    file=LOOP_FILE,
                    steps=policy.steps,
                    method=policy.method,
                    mode_first=policy.method == "direct",
                    noise_rows=policy.noise_rows if policy.noise_rows != config.chunk_steps else None,
                )
            },
            hashes={name: file_hash(work / name) for name in (ENCODER_FILE, LOOP_FILE)},
            parity=parity,
            training={
                "source": f"LeRobot {config.type} checkpoint",
                "checkpoint": folder.resolve().name,
                **(
                    {"temporal_ensemble": True}
                    if getattr(config, "temporal_ensemble_coeff", None) is not None
                    else {}
                ),
            },
        )
        out.mkdir(parents=True, exist_ok=True)
        for name in spec.files:
            shutil.move(work / name, out / name)
    write_bundle_yaml(spec, out)
    return load_bundle(out)


def _examples(policy: Policy) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the encoder, and noise, to trace and compare with; states about where the data set has them."""
    config, rng = policy.checkpoint.config, np.random.default_rng(0)
    history = () if config.n_obs_steps == 1 else (config.n_obs_steps,)
    inputs = {
        image_input(camera): torch.from_numpy(
            rng.integers(0, 256, (1, *history, *config.picture_shape, 3), dtype=np.uint8)
        )
        for camera in policy.binding.cameras
    }
    normal = rng.standard_normal((1, *history, config.state_dim)).astype(np.float32)
    inner = policy.encoder.encoder.state.inverse(0.5 * torch.from_numpy(normal))
    inputs[STATE_INPUT] = inner * policy.encoder.scale + policy.encoder.zero
    rows = (PARITY_SAMPLES, policy.noise_rows, config.action_dim)
    return inputs, torch.from_numpy(rng.standard_normal(rows, np.float32))


def _unit(policy: Policy) -> np.ndarray:
    """What one normalised unit of each action column is on the rig; 1 where a column never moved."""
    unit = (
        (policy.actions.unit.expand(policy.checkpoint.config.action_dim) * policy.sampler.scale).abs().numpy()
    )
    return np.where(unit > 1e-6, unit, 1.0)


def _write_sampler(policy: Policy, inputs: dict[str, Tensor], path: Path) -> None:
    """Export the sampler: ACT's as it is, diffusion's as a loop."""
    sampler = policy.sampler.sampler
    if not isinstance(sampler, diffusion.DiffusionSampler):
        _trace(policy.sampler, inputs, (CHUNKS_OUTPUT,), path)
        return
    noise, embedding = inputs[NOISE_INPUT], inputs[EMBEDDING]
    x = noise[:, : sampler.config.horizon].clone()
    with torch.inference_mode():
        observed = sampler.start(embedding).clone()
    step = {
        X: x,
        FILM: observed,
        COEFFICIENTS: sampler.coefficients[0],
        # Not x again: the exporter would take the two for one.
        **({ADDED: torch.zeros_like(x)} if sampler.ancestral else {}),
    }
    finish = RigTargets(Part(sampler, "finish"), policy.binding.action_units)
    parts = []
    for module, given, made in (
        (Part(sampler, "start"), {EMBEDDING: embedding}, OBSERVED),
        (sampler.step, step, NEXT),
        (finish, {X: x}, CHUNKS_OUTPUT),
    ):
        part = path.with_suffix(f".{made}.onnx")
        _trace(module.eval(), given, (made,), part)
        parts.append(onnx.load(part))
        part.unlink()
    rows = (NOISE_INPUT, policy.noise_rows, noise.shape[2])
    model = looped(*parts, sampler.films.numpy(), sampler.coefficients.numpy(), rows, CHUNKS_OUTPUT)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _trace(module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], path: Path) -> None:
    samples = torch.export.Dim("K", min=1, max=MOST_SAMPLES)
    dynamic = tuple({0: samples} if name in (NOISE_INPUT, X, ADDED) else None for name in inputs)
    if not isinstance(module, diffusion.ReverseStep):
        dynamic = (dynamic,)  # inputs taken as *inputs are one argument
    with quiet(EXPORTER):
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    strip_origin(path)


def _parity(
    path: Path,
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: tuple[str, ...],
    unit: np.ndarray | float = 1.0,
) -> float:
    """Largest difference of a graph to its module, in units of ``unit``.

    Raises:
        VigilError: it is more than the tolerance.
    """
    made = run_graph(path, outputs, inputs)
    with torch.inference_mode():
        wanted = module(*inputs.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    difference = max(float(np.abs((a - b.numpy()) / unit).max()) for a, b in zip(made, wanted, strict=True))
    if not difference <= TOLERANCE:  # nan is none
        raise VigilError(
            f"{path.name}: the exported graph differs from the checkpoint's network by {difference:.1e} in normalised units, more "
            f"than {TOLERANCE:.0e}: nothing was written"
        )
    return difference


def _action_std(policy: Policy) -> tuple[float, ...]:
    """Scale of each action column in the data set, from the checkpoint's statistics.

    Where there is no standard deviation it is taken from the range, as of an even distribution.

    Raises:
        VigilError: the checkpoint has no statistics of actions.
    """
    found = policy.checkpoint.action_rules.statistics.get(ACTION, {})
    if "std" in found:
        std = found["std"]
    elif "min" in found and "max" in found:
        std = (found["max"] - found["min"]) / math.sqrt(12)
    else:
        raise VigilError(
            "the checkpoint has no statistics of actions (neither std nor min and max), from which distances between chunks get "
            "their unit: save it with those of its data set"
        )
    scale = policy.sampler.scale.abs()
    return tuple(float(value) + 1e-4 for value in std * scale)
