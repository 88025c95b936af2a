"""Settings of one training run, read from a YAML file or left at their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigil.rig import Positive, Strict, read_yaml, validate

Count = Annotated[int, Field(ge=1)]
Objective = Literal["diffusion", "flow", "mean_flow", "streaming"]
BackboneName = Literal["mlp", "unet", "transformer"]


class TrainConfig(Strict):
    """Architecture, objective and optimiser; the defaults are those of the shipped bundle's `ddim`."""

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
    backbone: BackboneName = Field("mlp", description="network of the denoiser")
    denoiser_width: Count = Field(
        512,
        description="of the MLP and the transformer; of the U-Net: channels at full length, doubled below",
    )
    head_width: Count = Field(
        64,
        description="of the transformer: columns of an attention head, all in one head if denoiser_width is less; products "
        "with fewer columns are slow",
    )
    denoiser_blocks: Count = Field(4, description="of the U-Net: lengths of the chunk, each half of the last")

    objective: Objective = Field(
        "diffusion", description="what the denoiser learns, see vigil.train.objectives"
    )
    diffusion_steps: Count = Field(100, description="of diffusion: steps of the DDPM that is trained")
    sampler_steps: Count | None = Field(
        None,
        description="evaluations of the denoiser per call in the exported graph; None: as the sampler has it",
    )
    mean_flow_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="of MeanFlow: share of the samples that learn the average over an interval"
    )
    dispersive_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="of MeanFlow: weight of the dispersive loss on the denoiser's features"
    )

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
    freeze_encoder: bool = Field(
        False, description="with --from: keep its encoder, and train a new denoiser on the embeddings"
    )
    augmentations: Count = Field(4, description="with a frozen encoder: embeddings kept of each observation")
    validation_episodes: Count = 10
    checkpoint_every: Count = 1_000
    keep: Count = Field(4, description="checkpoints kept beside the last, for a choice by roll-outs")
    threads: Count = 1

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.backbone == "unet" and self.horizon % 2 ** (self.denoiser_blocks - 1):
            raise ValueError(
                f"the U-Net halves a chunk {self.denoiser_blocks - 1} times, and {self.horizon} steps do not allow that: "
                "lower denoiser_blocks, or change horizon"
            )
        width, head = self.denoiser_width, self.head_width
        if self.backbone == "transformer" and (width % 2 or (width > head and width % head)):
            raise ValueError(
                f"a head of the transformer is {head} wide (head_width): denoiser_width ({width}) has to be even and a multiple of that, or a "
                "smaller even number for a single head"
            )
        if self.objective == "streaming" and self.horizon % self.executed_steps:
            raise ValueError(
                f"streaming moves on by executed_steps ({self.executed_steps}), which has to divide horizon ({self.horizon})"
            )
        return self

    def data_settings(self) -> dict[str, object]:
        """Those settings that the training rows depend on."""
        names = ("seed", "image_size", "horizon", "step_dt", "randomised_fraction")
        names += ("intervention_weight", "pre_intervention")
        return {name: getattr(self, name) for name in names}


def load_config(path: Path | None) -> TrainConfig:
    """The configuration in ``path``, or the defaults; VigilError names file, line and fix."""
    if path is None:
        return TrainConfig()
    data, lines = read_yaml(path)
    return validate(TrainConfig, data, path, lines)
