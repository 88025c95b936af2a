"""Changed pictures for training, and what a frozen encoder makes of them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from vigil.train.config import TrainConfig
from vigil.train.demonstrations import DemonstrationSet
from vigil.train.model import Encoder

BATCH = 256


def augment(images: np.ndarray, crop: int, rng: np.random.Generator, device: torch.device) -> Tensor:
    """uint8 [B, s, s, 3] -> float [B, 3, crop, crop]: a random crop, brightness, contrast and tint each.

    Crops are drawn from ``rng``, colours from torch's own stream.
    """
    size = images.shape[1]
    corner = rng.integers(0, size - crop + 1, (len(images), 2))
    cropped = np.stack(
        [image[y : y + crop, x : x + crop] for image, (y, x) in zip(images, corner, strict=True)]
    )
    pictures = torch.from_numpy(cropped).to(device).permute(0, 3, 1, 2).float() / 255
    gain = 1 + 0.15 * torch.randn(len(images), 1, 1, 1, device=device)
    tint = 1 + 0.04 * torch.randn(len(images), 3, 1, 1, device=device)
    offset = 0.04 * torch.randn(len(images), 1, 1, 1, device=device)
    return (pictures * gain * tint + offset).clamp(0, 1)


def cached_embeddings(
    encoder: Encoder, data: DemonstrationSet, config: TrainConfig, cache: Path
) -> np.ndarray:
    """float32 [A, N, E]: every row's embedding as serving has it, and ``augmentations`` - 1 of changed pictures.

    Reproducible by seed, and kept in ``cache`` for a resumed run.
    """
    digest = hashlib.sha256(
        json.dumps([data.facts(), config.seed, config.augmentations], sort_keys=True).encode()
    )
    digest.update(repr(config.state_noise).encode())
    for name, values in encoder.state_dict().items():
        digest.update(name.encode() + values.cpu().numpy().tobytes())
    key = digest.hexdigest()
    if cache.exists():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                return stored["embeddings"]
    embeddings = _embed(encoder, data, config)
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(".tmp.npz")
    np.savez(temporary, key=key, embeddings=embeddings)
    temporary.replace(cache)
    return embeddings


@torch.no_grad()
def _embed(encoder: Encoder, data: DemonstrationSet, config: TrainConfig) -> np.ndarray:
    device = encoder.state_low.device
    rng = np.random.default_rng(config.seed)
    rows = np.array_split(np.arange(len(data.states)), max(1, len(data.states) // BATCH))
    work = [(a, part) for a in range(config.augmentations) for part in rows]
    embeddings = np.empty((config.augmentations, len(data.states), config.embedding), np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for a, part in track(work, "embedding", transient=True, disable=not sys.stderr.isatty()):
            images = [data.images[name][part] for name in data.cameras]
            state = encoder.normalise_state(torch.from_numpy(data.states[part]).to(device))
            if a:
                pictures = [augment(image, config.crop, rng, device) for image in images]
                state = state + config.state_noise * torch.randn_like(state)
            else:
                pictures = [encoder.pictures(torch.from_numpy(image).to(device)) for image in images]
            embeddings[a, part] = encoder.embed(pictures, state).cpu().numpy()
    return embeddings
