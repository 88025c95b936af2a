"""Reads the folder that LeRobot's `save_pretrained` writes: configuration, weights, normalisation. No network, no `lerobot`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vigil.errors import VigilError
from vigil.train.lerobot.config import ActConfig, DiffusionConfig, PolicyConfig
from vigil.train.lerobot.normalise import Rules

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
KINDS: dict[str, type[PolicyConfig]] = {"diffusion": DiffusionConfig, "act": ActConfig}

# Steps of a processor that do not change values: batching and devices are the runtime's own matter.
NEUTRAL = ("to_batch_processor", "device_processor")
RENAME, NORMALISE, UNNORMALISE = (
    "rename_observations_processor",
    "normalizer_processor",
    "unnormalizer_processor",
)
# Buffers that older checkpoints hold their statistics in; dots of a feature's name are underscores there.
BUFFERS = ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_")
TARGETS = "normalize_targets.buffer_"  # of the loss only


@dataclass(frozen=True)
class Checkpoint:
    """A LeRobot policy as it was saved."""

    path: Path
    config: DiffusionConfig | ActConfig
    weights: Mapping[str, Tensor]  # of the network alone
    rules: Rules
    action_rules: Rules
    renamed: Mapping[str, str]  # the policy's name of an observation by the data set's


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` looks like a folder of a LeRobot policy."""
    return path.is_dir() and (path / CONFIG_FILE).is_file()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        VigilError: a file is missing or broken, or the policy is of a kind or setting that cannot be rebuilt.
    """
    config = _read_config(folder / CONFIG_FILE)
    weights = _read_weights(folder / WEIGHTS_FILE)
    network = {
        name.replace("_orig_mod.", ""): value  # what torch.compile puts between
        for name, value in weights.items()
        if not name.startswith((*BUFFERS, TARGETS))
    }
    modes = config.normalization_mapping
    if (folder / PREPROCESSOR).is_file():
        rules, renamed = _read_processor(folder, PREPROCESSOR, NORMALISE)
        action_rules, _ = _read_processor(folder, POSTPROCESSOR, UNNORMALISE)
    else:
        rules, renamed = Rules(modes, _buffers(weights, config)), {}
        action_rules = rules
        needs = [kind for kind in ("STATE", "VISUAL", "ACTION") if config.mode(kind) != "IDENTITY"]
        if needs and not rules.statistics:
            raise VigilError(
                f"{folder} has neither {PREPROCESSOR} (lerobot 0.4 and later) nor statistics in {WEIGHTS_FILE} (before), "
                f"and its policy normalises {', '.join(needs)}: copy the whole checkpoint folder"
            )
    return Checkpoint(folder, config, network, rules, action_rules, renamed)


def load_weights(
    module: torch.nn.Module, weights: Mapping[str, Tensor], unused: tuple[str, ...] = ()
) -> None:
    """Put a checkpoint's weights into the rebuilt network; every one has to have its place.

    Args:
        unused: beginnings of names of what only training uses.

    Raises:
        VigilError: names or shapes differ.
    """
    wanted = (
        {name: value for name, value in weights.items() if not name.startswith(unused)} if unused else weights
    )
    try:
        missing, unexpected = module.load_state_dict(dict(wanted), strict=False)
    except RuntimeError as error:
        raise VigilError(f"the weights do not fit {CONFIG_FILE}: {error}") from None
    if missing or unexpected:
        raise VigilError(
            f"the weights do not fit {CONFIG_FILE}: missing {_some(missing)}, without a place {_some(unexpected)}"
        )


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "none"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise VigilError(
            f"{path.parent} lacks {path.name}: give the folder that LeRobot's save_pretrained wrote"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VigilError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise VigilError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def _read_config(path: Path) -> DiffusionConfig | ActConfig:
    data = _read_json(path)
    kind = data.get("type")
    if kind not in KINDS:
        raise VigilError(f"{path}: policies of type {kind!r} are not supported, only {', '.join(KINDS)} are")
    try:
        return KINDS[kind].model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            lines.append(
                f"{path}: {where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"
            )
        raise VigilError("\n".join(lines)) from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise VigilError(f"{path.parent} lacks {path.name}: copy the whole checkpoint folder")
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise VigilError(f"{path} is no whole safetensors file: {error}") from None


def _read_processor(folder: Path, name: str, wanted: str) -> tuple[Rules, dict[str, str]]:
    """Rules of normalisation and new names of observations from a processor's file."""
    path = folder / name
    rules, renamed = None, {}
    for step in _read_json(path).get("steps", []):
        kind, config = step.get("registry_name", step.get("class")), step.get("config") or {}
        if kind == wanted:
            statistics = (
                _statistics(_read_weights(folder / step["state_file"])) if step.get("state_file") else {}
            )
            keys = config.get("normalize_observation_keys")
            rules = Rules(
                config.get("norm_map", {}),
                statistics,
                config.get("eps", 1e-8),
                None if keys is None else frozenset(keys),
            )
        elif kind == RENAME:
            renamed = dict(config.get("rename_map") or {})
        elif kind not in NEUTRAL:
            raise VigilError(
                f"{path}: the step {kind!r} is not supported: it would change what the policy sees or does"
            )
    if rules is None:
        raise VigilError(f"{path} has no {wanted}: without it the policy's units are not known")
    return rules, renamed


def _statistics(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        key, _, statistic = name.rpartition(".")
        found.setdefault(key, {})[statistic] = value
    return found


def _buffers(weights: Mapping[str, Tensor], config: PolicyConfig) -> dict[str, dict[str, Tensor]]:
    """Statistics by feature, of checkpoints that hold them among the weights."""
    keys = {key.replace(".", "_"): key for key in (*config.input_features, *config.output_features)}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        for prefix in BUFFERS:
            if name.startswith(prefix):
                mangled, _, statistic = name.removeprefix(prefix).rpartition(".")
                found.setdefault(keys.get(mangled, mangled), {})[statistic] = value
    return found
