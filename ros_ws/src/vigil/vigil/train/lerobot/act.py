"""LeRobot's ACTPolicy (Zhao et al. 2023) as an encoder and a one-call sampler, in the shape of a bundle's graphs.

The VAE's encoder is of training only. In use the latent is zero, the prior's mode; other samples draw it from the prior. As the
latent is a token among those of the pictures, the transformer runs once per sample; the pictures' features are computed once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigil.train.lerobot.checkpoint import Checkpoint, load_weights
from vigil.train.lerobot.config import ACTION, STATE, ActConfig
from vigil.train.lerobot.normalise import Normaliser
from vigil.train.lerobot.vision import FrozenBatchNorm2d, ResNet, pictures

OF_TRAINING = ("vae_encoder",)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with the parameters of torch's; [B, T, d] each, batches broadcast."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dim = query.shape[-1]
        q, k, v = (
            F.linear(
                x, self.in_proj_weight[i * dim : (i + 1) * dim], self.in_proj_bias[i * dim : (i + 1) * dim]
            )
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
            for i, x in enumerate((query, key, value))
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """What layers of encoder and decoder share; norms after the sum, or before each part (``pre_norm``)."""

    def __init__(self, config: ActConfig, attentions: int) -> None:
        super().__init__()
        self.self_attn = Attention(config.dim_model, config.n_heads)
        if attentions == 2:
            self.multihead_attn = Attention(config.dim_model, config.n_heads)
        self.linear1 = nn.Linear(config.dim_model, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, config.dim_model)
        for i in range(attentions + 1):
            self.add_module(f"norm{i + 1}", nn.LayerNorm(config.dim_model))
        self.activation = F.relu if config.feedforward_activation == "relu" else F.gelu
        self.pre_norm = config.pre_norm

    def before(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.pre_norm else x

    def after(self, x: Tensor, norm: nn.Module) -> Tensor:
        return x if self.pre_norm else norm(x)

    def feed_forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        y = self.linear2(self.activation(self.linear1(self.before(x, norm))))
        return self.after(x + y, norm)


class EncoderLayer(_Layer):
    def __init__(self, config: ActConfig) -> None:
        super().__init__(config, 1)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        y = self.before(x, self.norm1)
        y = self.self_attn(y + position, y + position, y)
        return self.feed_forward(self.after(x + y, self.norm1), self.norm2)


class DecoderLayer(_Layer):
    def __init__(self, config: ActConfig) -> None:
        super().__init__(config, 2)

    def forward(self, x: Tensor, memory: Tensor, position: Tensor, memory_position: Tensor) -> Tensor:
        y = self.before(x, self.norm1)
        y = self.self_attn(y + position, y + position, y)
        x = self.after(x + y, self.norm1)
        y = self.before(x, self.norm2)
        y = self.multihead_attn(y + position, memory + memory_position, memory)
        return self.feed_forward(self.after(x + y, self.norm2), self.norm3)


class _Stack(nn.Module):
    def __init__(self, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm


class _Networks(nn.Module):
    """Everything that has weights in use, under the checkpoint's names."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        dim = config.dim_model
        self.backbone = ResNet(
            config.vision_backbone,
            FrozenBatchNorm2d,
            names=True,
            dilate_last=config.replace_final_stride_with_dilation,
        )
        self.encoder = _Stack(
            [EncoderLayer(config) for _ in range(config.n_encoder_layers)],
            nn.LayerNorm(dim) if config.pre_norm else nn.Identity(),
        )
        self.decoder = _Stack(
            [DecoderLayer(config) for _ in range(config.n_decoder_layers)], nn.LayerNorm(dim)
        )
        self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, dim)
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, dim)
        self.encoder_img_feat_input_proj = nn.Conv2d(self.backbone.channels, dim, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, dim)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, dim)
        self.action_head = nn.Linear(dim, config.action_dim)


class ActEncoder(nn.Module):
    """Pictures and state -> (embedding [1, S + cameras d], context [1, 1 + tokens, d]).

    The context is what the transformer reads: the state's token, and those of every place in every picture. The embedding, for
    monitor and recordings, is the normalised state and each picture's mean token.
    """

    def __init__(self, config: ActConfig, nets: _Networks, normalisers: dict[str, Normaliser]) -> None:
        super().__init__()
        self.backbone = nets.backbone
        self.image_proj = nets.encoder_img_feat_input_proj
        self.state_proj = nets.encoder_robot_state_input_proj
        self.state = normalisers[STATE]
        self.cameras = nn.ModuleList(normalisers[key] for key in config.pictures)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """``image_<camera>`` uint8 [1, h, w, 3] for each camera, then ``state`` [1, S] in the checkpoint's units."""
        *images, state = inputs
        state = self.state(state)
        views = [norm(pictures(image)) for norm, image in zip(self.cameras, images, strict=True)]
        tokens = (
            self.image_proj(self.backbone(torch.cat(views))).flatten(2).transpose(1, 2)
        )  # [cameras, hw, d]
        embedding = torch.cat([state, tokens.mean(1).flatten()[None]], -1)
        context = torch.cat([self.state_proj(state), tokens.flatten(0, 1)])
        return embedding, context[None]


class ActSampler(nn.Module):
    """Noise [K, R, D], of which the first values are the latent, and context [1, T, d] -> chunks [K, H, D]."""

    def __init__(
        self, config: ActConfig, nets: _Networks, actions: Normaliser, shape: tuple[int, int]
    ) -> None:
        """``shape``: height and width of the pictures' feature maps."""
        super().__init__()
        self.config, self.actions, self.nets = config, actions, nets
        fixed = nets.encoder_1d_feature_pos_embed.weight.detach()  # of latent and state
        picture = positions(config.dim_model, *shape)
        position = torch.cat([fixed, picture.repeat(len(config.pictures), 1)])
        self.register_buffer("position", position[None], persistent=False)

    @property
    def noise_rows(self) -> int:
        """As many rows of D as hold a latent."""
        return -(-self.config.latent_dim // self.config.action_dim)

    def forward(self, noise: Tensor, context: Tensor) -> Tensor:
        config, nets = self.config, self.nets
        latent = noise.flatten(1)[:, : config.latent_dim]
        if not config.use_vae:
            latent = torch.zeros_like(latent)  # the policy was trained with nothing else
        first = nets.encoder_latent_input_proj(latent)[:, None]
        memory = torch.cat([first, context.expand(first.shape[0], -1, -1)], 1)
        for layer in nets.encoder.layers:
            memory = layer(memory, self.position)
        memory = nets.encoder.norm(memory)
        queries = nets.decoder_pos_embed.weight[None]
        x = torch.zeros_like(queries)
        for layer in nets.decoder.layers:
            x = layer(x, memory, queries, self.position)
        return self.actions.inverse(nets.action_head(nets.decoder.norm(x)))


def positions(dim: int, height: int, width: int) -> Tensor:
    """Sinusoids of a place in a feature map, of its row and then of its column; [height * width, dim].

    As in DETR (Carion et al. 2020, app. A): places count from 1 and are scaled to 2 pi.
    """
    half, epsilon = dim // 2, 1e-6
    frequency = 10000 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)

    def of(count: int) -> Tensor:
        place = torch.arange(1, count + 1, dtype=torch.float32)
        angle = (place / (place[-1] + epsilon) * (2 * math.pi))[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    rows, columns = of(height), of(width)
    grid = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat(grid, -1).flatten(0, 1)


def build(checkpoint: Checkpoint) -> tuple[ActEncoder, ActSampler]:
    """Encoder and sampler of a checkpoint, in evaluation mode.

    Raises:
        VigilError: weights or statistics do not fit.
    """
    config = checkpoint.config
    nets = _Networks(config)
    weights = {name.removeprefix("model."): value for name, value in checkpoint.weights.items()}
    load_weights(nets, weights, OF_TRAINING)
    nets.eval()
    kinds = {STATE: "STATE", **dict.fromkeys(config.pictures, "VISUAL")}
    normalisers = {key: checkpoint.rules.of(key, kind) for key, kind in kinds.items()}
    encoder = ActEncoder(config, nets, normalisers).eval()
    height, width = config.picture_shape
    with torch.inference_mode():
        shape = nets.backbone(torch.zeros(1, 3, height, width)).shape[-2:]
    actions = checkpoint.action_rules.of(ACTION, "ACTION")
    return encoder, ActSampler(config, nets, actions, (shape[0], shape[1])).eval()
