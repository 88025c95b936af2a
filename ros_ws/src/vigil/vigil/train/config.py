"""Settings of one training run, read from a YAML file or left at their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vigil.rig import Positive, Strict, read_yaml, validate

Count = Annotated[int, Field(ge=1)]


class TrainConfig(Strict):
    """Architecture, objective and optimiser; the defaults are those of the shipped bundle."""

    name: str = "franka_pick_place"
    seed: int = 0

    image_size: Count = 96
    crop: Count = Field(
        88, description="side of the random crop in training; the centre crop in serving [px]"
    )
    horizon: Count = 16
    executed_steps: Count = 4
    step_dt: Positive = 0.05

    width: Count = Field(16, description="channels of the first convolution")
    keypoints: Count = Field(32, description="spatial softmax points per camera")
    embedding: Count = 128
    denoiser_width: Count = 512
    denoiser_blocks: Count = 4

    diffusion_steps: Count = Field(100, description="steps of the DDPM that is trained")
    sampler_steps: Count = Field(10, description="DDIM steps in the exported graph")

    batch: Count = 64
    noise_samples: Count = Field(4, description="noised chunks per encoded observation")
    steps: Count = 5_000
    learning_rate: Positive = 5e-4
    weight_decay: Positive = 1e-4
    warmup: Count = 300
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999
    auxiliary_weight: Annotated[float, Field(ge=0)] = 1.0
    state_noise: Annotated[float, Field(ge=0)] = Field(
        0.01, description="sigma of the noise on normalised states, so that the encoder reads the pictures"
    )
    randomised_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of the demonstrations rendered with a changed appearance"
    )
    intervention_weight: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="of data sets: how often a row of an operator's correction is drawn, against 1 for others",
    )
    pre_intervention: Annotated[float, Field(ge=0)] = Field(
        0.0, description="of data sets: what the policy did so long before a correction is not drawn [s]"
    )
    validation_episodes: Count = 10
    checkpoint_every: Count = 1_000
    threads: Count = 1


def load_config(path: Path | None) -> TrainConfig:
    """The configuration in ``path``, or the defaults; VigilError names file, line and fix."""
    if path is None:
        return TrainConfig()
    data, lines = read_yaml(path)
    return validate(TrainConfig, data, path, lines)
