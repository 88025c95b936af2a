"""LeRobot policies made by `lerobot` itself, with what its own `select_action` says: material for tests of their export.

As a script, where `lerobot` is installed, it makes the frozen ones of tests/support/lerobot_policies/ anew:

    PYTHONPATH=tests python -m support.lerobot_policies

No backbone of LeRobot is small: its 11 million weights would not fit here. They are one short pattern of random numbers, repeated, and
stay as they are in training, so that the checkpoint shrinks to some 100 kB when it is compressed. All else is trained for some steps.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).with_suffix("")
REFERENCE = "reference.npz"
PACKED = ".xz"

CAMERAS = ("wrist", "scene")
HEIGHT, WIDTH = 64, 80
COLUMNS, SAMPLES, TRAINED = 8, 3, 20
HOME = np.array([0.0, -0.4, 0.0, -2.2, 0.0, 1.8, 0.7854, 0.04], np.float32)
REACH = np.array([*[0.15] * 7, 0.02], np.float32)  # how far the invented demonstrations go from there

FROZEN: dict[str, dict[str, Any]] = {
    "diffusion": {
        "type": "diffusion", "n_obs_steps": 2, "horizon": 8, "n_action_steps": 7, "crop_shape": (56, 72),
        "spatial_softmax_num_keypoints": 8, "down_dims": (16, 32), "kernel_size": 3, "n_groups": 4,
        "diffusion_step_embed_dim": 16, "noise_scheduler_type": "DDIM", "num_inference_steps": 10,
    },
    "act": {
        "type": "act", "chunk_size": 10, "n_action_steps": 10, "pretrained_backbone_weights": None, "dim_model": 32,
        "n_heads": 4, "dim_feedforward": 48, "n_encoder_layers": 2, "n_vae_encoder_layers": 1, "latent_dim": 12,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What went into `select_action` over some ticks, and what came out.

    Attributes:
        images: by camera, uint8 [T, h, w, 3].
        states: [T, S].
        noise: [C, K, R, D] of each of C chunks; of ACT nothing: its latent is always zero.
        ticks: [C], the tick at which each chunk was made.
        actions: [C, K, n_action_steps, D] as the postprocessor gave them.
    """

    images: Mapping[str, np.ndarray]
    states: np.ndarray
    noise: np.ndarray | None
    ticks: np.ndarray
    actions: np.ndarray

    def history(self, chunk: int, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The observations that LeRobot had at a chunk's tick: before the first it repeats that one."""
        ticks = np.maximum(np.arange(self.ticks[chunk] - steps + 1, self.ticks[chunk] + 1), 0)
        chosen = ticks if steps > 1 else ticks[0]
        return {name: images[chosen] for name, images in self.images.items()}, self.states[chosen]

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path,
            states=self.states,
            ticks=self.ticks,
            actions=self.actions,
            **({} if self.noise is None else {"noise": self.noise}),
            **{f"image_{name}": images for name, images in self.images.items()},
        )

    @staticmethod
    def load(path: Path) -> Reference:
        with np.load(path) as stored:
            images = {n.removeprefix("image_"): stored[n] for n in stored.files if n.startswith("image_")}
            noise = stored["noise"] if "noise" in stored.files else None
            return Reference(images, stored["states"], noise, stored["ticks"], stored["actions"])


def unpack(name: str, folder: Path) -> tuple[Path, Reference]:
    """A frozen checkpoint, unpacked into ``folder``, and its reference."""
    target = folder / name
    target.mkdir(parents=True)
    for path in (FOLDER / name).iterdir():
        if path.suffix == PACKED:
            (target / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        elif path.name != REFERENCE:
            shutil.copy(path, target / path.name)
    return target, Reference.load(FOLDER / name / REFERENCE)


def make(folder: Path, options: Mapping[str, Any], seed: int = 0) -> Reference:
    """Make a policy with `lerobot`, train it a little, save it, load it, and ask it. Needs `lerobot`."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    policy = _policy(options)
    _pattern(policy, rng)
    policy.train()
    optimiser = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-3)
    statistics = _statistics(rng)
    before, after = _processors(policy.config, statistics)
    for _ in range(TRAINED):
        loss, _ = policy.forward(_batch(policy.config, before, rng))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    policy.eval()
    policy.save_pretrained(folder)
    before.save_pretrained(folder, config_filename="policy_preprocessor.json")
    after.save_pretrained(folder, config_filename="policy_postprocessor.json")
    return _ask(folder, options["type"], rng, seed)


def _policy(options: Mapping[str, Any]) -> Any:
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config

    options = dict(options)
    if "normalization_mapping" in options:
        options["normalization_mapping"] = {
            kind: NormalizationMode(mode) for kind, mode in options["normalization_mapping"].items()
        }
    kind = options.pop("type")
    pictures = {
        f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
        for camera in CAMERAS
    }
    config = make_policy_config(
        kind,
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (COLUMNS,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (COLUMNS,))},
        device="cpu",
        push_to_hub=False,
        **options,
    )
    return get_policy_class(kind)(config)


def _pattern(policy: Any, rng: np.random.Generator) -> None:
    """Fill the backbones' convolutions with a pattern that compresses, and freeze them."""
    import torch

    pattern = rng.standard_normal(997).astype(np.float32)
    for name, parameter in policy.named_parameters():
        if "backbone" in name and parameter.dim() == 4:
            scale = (2 / parameter[0].numel()) ** 0.5
            values = np.resize(pattern, tuple(parameter.shape)) * np.float32(scale)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values))
            parameter.requires_grad_(False)
    for name, buffer in policy.named_buffers():  # a batch norm that does nothing would hide a fault
        if name.endswith("running_mean"):
            buffer.copy_(torch.from_numpy(np.resize(pattern, tuple(buffer.shape)) * np.float32(0.1)))
        elif name.endswith("running_var"):
            buffer.copy_(torch.from_numpy(1 + 0.2 * np.abs(np.resize(pattern, tuple(buffer.shape)))))


def _statistics(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of an invented data set, of all kinds that LeRobot keeps."""

    def of(low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        span = high - low
        found = {"min": low, "max": high, "mean": low + 0.45 * span, "std": 0.3 * span}
        found |= {
            "q01": low + 0.02 * span,
            "q99": low + 0.97 * span,
            "q10": low + 0.1 * span,
            "q90": low + 0.9 * span,
        }
        return {name: value.astype(np.float32) for name, value in found.items()}

    state = of(HOME - REACH * rng.uniform(0.8, 1, COLUMNS), HOME + REACH)
    pictures = {
        f"observation.images.{camera}": of(np.zeros((3, 1, 1)), rng.uniform(0.8, 1, (3, 1, 1)))
        for camera in CAMERAS
    }
    return {"observation.state": state, "action": of(HOME - REACH, HOME + REACH * 0.9), **pictures}


def _processors(config: Any, statistics: Any) -> Any:
    from lerobot.policies.factory import make_pre_post_processors

    return make_pre_post_processors(config, dataset_stats=statistics)


def _pictures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Coarse patches of colour: uint8 [count, h, w, 3]."""
    patches = rng.integers(0, 256, (count, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return patches.repeat(8, 1).repeat(8, 2)


def _observation(images: Mapping[str, np.ndarray], state: np.ndarray) -> dict[str, Any]:
    import torch
    from lerobot.policies.utils import prepare_observation_for_inference

    raw = {f"observation.images.{camera}": image for camera, image in images.items()}
    return prepare_observation_for_inference({**raw, "observation.state": state}, torch.device("cpu"))


def _batch(config: Any, before: Any, rng: np.random.Generator, size: int = 4) -> dict[str, Any]:
    """A normalised training batch: actions go on from the state."""
    import torch

    steps = config.n_obs_steps
    horizon = len(config.action_delta_indices)
    states = HOME + REACH * rng.uniform(-1, 1, (size, steps, COLUMNS)).astype(np.float32)
    drift = np.linspace(0, 0.3, horizon, dtype=np.float32)[None, :, None] * REACH
    batch = {
        "observation.state": torch.from_numpy(states),
        "action": torch.from_numpy(states[:, -1:] + drift),
        "action_is_pad": torch.zeros(size, horizon, dtype=torch.bool),
    }
    for camera in CAMERAS:
        images = torch.from_numpy(_pictures(rng, size * steps)).permute(0, 3, 1, 2).float() / 255
        batch[f"observation.images.{camera}"] = images.unflatten(0, (size, steps))
    if config.type == "act":
        batch = {key: value[:, 0] if key.startswith("observation") else value for key, value in batch.items()}
    padding = batch["action_is_pad"]
    return {**before(batch), "action_is_pad": padding}


def _ask(folder: Path, kind: str, rng: np.random.Generator, seed: int) -> Reference:
    """Load the checkpoint as a deployment would, and let `select_action` answer over two chunks."""
    import torch
    from lerobot.policies.factory import get_policy_class
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    policy = get_policy_class(kind).from_pretrained(folder)
    before = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_preprocessor.json")
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    config = policy.config
    length = config.n_action_steps
    ticks = length + 1
    images = {camera: _pictures(rng, ticks) for camera in CAMERAS}
    states = HOME + REACH * rng.uniform(-0.9, 0.9, (ticks, COLUMNS)).astype(np.float32)
    policy.reset()
    made: list[list[np.ndarray]] = []
    noises: list[np.ndarray] = []
    for tick in range(2 * length):
        now = min(tick, ticks - 1)
        frame = _observation({camera: images[camera][now].copy() for camera in CAMERAS}, states[now].copy())
        # The same observation for every sample: lerobot's batch is our K.
        frame = {
            k: v.repeat(SAMPLES, *[1] * (v.dim() - 1))
            for k, v in frame.items()
            if isinstance(v, torch.Tensor)
        }
        batch = before(frame)
        if tick % length == 0:
            made.append([])
        options: dict[str, Any] = {}
        if kind == "diffusion":
            first = torch.randn(SAMPLES, config.horizon, COLUMNS)
            options["noise"] = first
            torch.manual_seed(seed + 1000 + tick)
            if tick % length == 0:
                noises.append(_noise(config, first))
                torch.manual_seed(seed + 1000 + tick)
        with torch.inference_mode():
            made[-1].append(after(policy.select_action(batch, **options)).numpy())
    return Reference(
        images=images,
        states=states,
        noise=np.stack(noises) if noises else None,
        ticks=np.array([0, length]),
        actions=np.stack([np.stack(chunk, 1) for chunk in made]),
    )


def _noise(config: Any, first: Any) -> np.ndarray:
    """All noise of one chunk, [K, R, D]: what `diffusers` is about to draw from torch's generator comes after the first."""
    import torch

    rows = [first]
    if config.noise_scheduler_type == "DDPM":
        steps = config.num_inference_steps or config.num_train_timesteps
        rows += [torch.randn(first.shape) for _ in range(steps - 1)]
    return torch.cat(rows, 1).numpy()


def main() -> None:
    from support.lerobot import complete_torchvision

    complete_torchvision()
    for name, options in FROZEN.items():
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reference = make(folder, options)
        reference.save(folder / REFERENCE)
        weights = folder / "model.safetensors"
        packed = lzma.compress(weights.read_bytes(), preset=9)
        weights.with_suffix(weights.suffix + PACKED).write_bytes(packed)
        weights.unlink()
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 1e3:.0f} kB, {json.loads((folder / 'config.json').read_text())['type']}")


if __name__ == "__main__":
    sys.exit(main())
