"""``config.json`` of a LeRobot checkpoint: what of it this version can rebuild.

Names and meanings are those of `lerobot`'s DiffusionConfig and ACTConfig. A field that would change what the policy computes and
is not known here is an error, not a guess.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Mode = Literal["MIN_MAX", "MEAN_STD", "IDENTITY", "QUANTILES", "QUANTILE10"]
Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Shape = tuple[Count, Count]

STATE, ACTION = "observation.state", "action"

# Of training, hardware and publishing: they change nothing of a trained policy's answer.
WITHOUT_EFFECT = frozenset(
    [
        "device",
        "use_amp",
        "push_to_hub",
        "repo_id",
        "private",
        "tags",
        "license",
        "pretrained_path",
        "pretrained_backbone_weights",
        "compile_model",
        "compile_mode",
        "crop_is_random",
        "drop_n_last_frames",
        "do_mask_loss_for_padding",
        "dropout",
        "kl_weight",
        "n_vae_encoder_layers",
        "optimizer_lr",
        "optimizer_betas",
        "optimizer_eps",
        "optimizer_weight_decay",
        "optimizer_lr_backbone",
        "scheduler_name",
        "scheduler_warmup_steps",
    ]
)


class Feature(BaseModel):
    """One input or output: its kind and its shape, of pictures [3, h, w]."""

    type: Literal["STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE"]
    shape: tuple[Count, ...]


class PolicyConfig(BaseModel):
    """What both kinds share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    n_obs_steps: Count = 1
    n_action_steps: Count
    input_features: dict[str, Feature] = Field(min_length=1)
    output_features: dict[str, Feature] = Field(min_length=1)
    normalization_mapping: dict[str, Mode]
    vision_backbone: Backbone = "resnet18"

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_age(cls, data: Any) -> Any:
        if isinstance(data, dict) and "input_shapes" in data:
            raise ValueError(
                "the checkpoint is of lerobot before 0.1 (2025), whose config.json has `input_shapes`: load and save it "
                "with a newer lerobot"
            )
        return data

    @model_validator(mode="after")
    def _nothing_unknown(self) -> PolicyConfig:
        extra = self.__pydantic_extra__ or {}
        # What is null or false is switched off.
        unknown = {
            k: v for k, v in extra.items() if k not in WITHOUT_EFFECT and v is not None and v is not False
        }
        if unknown:
            raise ValueError(
                f"fields that are not known here, and may change what the policy does: {unknown}"
            )
        return self

    @model_validator(mode="after")
    def _features_are_supported(self) -> PolicyConfig:
        if list(self.output_features) != [ACTION]:
            raise ValueError(
                f"output_features are {list(self.output_features)}: only `{ACTION}` is supported"
            )
        if STATE not in self.input_features:
            raise ValueError(
                f"input_features lack `{STATE}`: a policy that does not read joints is not supported"
            )
        others = [k for k, v in self.input_features.items() if k != STATE and v.type != "VISUAL"]
        if others:
            raise ValueError(
                f"input_features {others} are neither pictures nor `{STATE}`: nothing on a rig tells them"
            )
        pictures = self.pictures
        if not pictures:
            raise ValueError("input_features have no picture: policies without a camera are not supported")
        shapes = {key: feature.shape for key, feature in pictures.items()}
        if any(len(shape) != 3 or shape[0] != 3 for shape in shapes.values()):
            raise ValueError(f"pictures have to be colour, [3, height, width], got {shapes}")
        if len(set(shapes.values())) > 1:
            raise ValueError(f"pictures of different sizes are not supported: {shapes}")
        return self

    @property
    def pictures(self) -> dict[str, Feature]:
        """The pictures by their key, in the order in which the policy reads them."""
        return {key: feature for key, feature in self.input_features.items() if feature.type == "VISUAL"}

    @property
    def picture_shape(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return next(iter(self.pictures.values())).shape[1:]

    @property
    def state_dim(self) -> int:
        return self.input_features[STATE].shape[0]

    @property
    def action_dim(self) -> int:
        return self.output_features[ACTION].shape[0]

    def mode(self, kind: str) -> Mode:
        """How features of a kind are normalised; one that is not listed is not."""
        return self.normalization_mapping.get(kind, "IDENTITY")


class DiffusionConfig(PolicyConfig):
    """Diffusion Policy (Chi et al. 2023) with a convolutional denoiser."""

    type: Literal["diffusion"]
    n_obs_steps: Annotated[int, Field(ge=1, le=16)] = 2
    horizon: Count = 16
    n_action_steps: Count = 8
    resize_shape: Shape | None = None
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    crop_shape: Shape | None = None
    use_group_norm: bool = True
    spatial_softmax_num_keypoints: Count = 32
    use_separate_rgb_encoder_per_camera: bool = False
    down_dims: tuple[Count, ...] = (512, 1024, 2048)
    kernel_size: Count = 5
    n_groups: Count = 8
    diffusion_step_embed_dim: Count = 128
    use_film_scale_modulation: bool = True
    noise_scheduler_type: Literal["DDPM", "DDIM"] = "DDPM"
    num_train_timesteps: Count = 100
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    prediction_type: Literal["epsilon", "sample"] = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    num_inference_steps: Count | None = None

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(f"kernel_size {size} is even: it would change the chunk's length")
        return size

    @model_validator(mode="after")
    def _fits_together(self) -> DiffusionConfig:
        if self.horizon % 2 ** (len(self.down_dims) - 1):
            raise ValueError(
                f"a horizon of {self.horizon} cannot be halved {len(self.down_dims) - 1} times, as down_dims ask for"
            )
        if self.n_action_steps > self.chunk_steps:
            raise ValueError(
                f"n_action_steps ({self.n_action_steps}) is more than horizon - n_obs_steps + 1 ({self.chunk_steps})"
            )
        crop, shape = self.crop, self.resize_shape or self.picture_shape
        if crop is not None and (crop[0] > shape[0] or crop[1] > shape[1]):
            raise ValueError(f"crop_shape {crop} is larger than the pictures of {shape}")
        return self

    @property
    def crop(self) -> tuple[int, int] | None:
        """(height, width) that is cut out of the (resized) picture; with ``resize_shape`` it follows from ``crop_ratio``."""
        if self.resize_shape is None:
            return self.crop_shape
        if self.crop_ratio == 1.0:
            return None
        return tuple(int(side * self.crop_ratio) for side in self.resize_shape)

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk from the newest observation on: those before it are in the past."""
        return self.horizon - self.n_obs_steps + 1

    @property
    def inference_steps(self) -> int:
        """Steps that `select_action` takes."""
        return self.num_inference_steps or self.num_train_timesteps


class ActConfig(PolicyConfig):
    """Action Chunking with Transformers (Zhao et al. 2023)."""

    type: Literal["act"]
    n_obs_steps: Literal[1] = 1
    chunk_size: Annotated[int, Field(ge=2)] = 100
    n_action_steps: Count = 100
    replace_final_stride_with_dilation: bool = False
    pre_norm: bool = False
    dim_model: Count = 512
    n_heads: Count = 8
    dim_feedforward: Count = 3200
    feedforward_activation: Literal["relu", "gelu"] = "relu"
    n_encoder_layers: Count = 4
    n_decoder_layers: Count = 1
    use_vae: bool = True
    latent_dim: Count = 32
    temporal_ensemble_coeff: float | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ActConfig:
        if self.n_action_steps > self.chunk_size:
            raise ValueError(
                f"n_action_steps ({self.n_action_steps}) is more than chunk_size ({self.chunk_size})"
            )
        if self.dim_model % self.n_heads or self.dim_model % 4:
            raise ValueError(
                f"dim_model {self.dim_model} has to be a multiple of n_heads ({self.n_heads}) and of 4"
            )
        if self.replace_final_stride_with_dilation and self.vision_backbone in ("resnet18", "resnet34"):
            raise ValueError(f"{self.vision_backbone} knows no dilation (replace_final_stride_with_dilation)")
        return self

    @property
    def chunk_steps(self) -> int:
        return self.chunk_size
