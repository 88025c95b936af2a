"""What LeRobot's policies see with: ResNets (He et al. 2016) and spatial softmax, under the names of torchvision's parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigil.train.lerobot.config import DiffusionConfig

Norm = Callable[[int], nn.Module]

# Blocks of each of the four layers, and whether they are bottlenecks.
RESNETS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose four vectors never change."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + bias[:, None, None]


def group_norm(channels: int) -> nn.Module:
    """What LeRobot replaces batch norms by: groups of 16 channels."""
    return nn.GroupNorm(channels // 16, channels)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inward: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        if dilation != 1:
            raise ValueError("a basic block knows no dilation")
        self.conv1 = nn.Conv2d(inward, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(inward, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """With the stride in the 3x3 convolution, as torchvision has it (ResNet 1.5)."""

    expansion = 4

    def __init__(self, inward: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        outward = width * self.expansion
        self.conv1 = nn.Conv2d(inward, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outward, 1, bias=False)
        self.bn3 = norm(outward)
        self.downsample = _shortcut(inward, outward, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inward: int, outward: int, stride: int, norm: Norm) -> nn.Module | None:
    if stride == 1 and inward == outward:
        return None
    return nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), norm(outward))


class ResNet(nn.Sequential):
    """A ResNet up to its last feature map; [B, 3, h, w] -> [B, channels, h / 32, w / 32], rounded up.

    Children are called as in torchvision's model (``names=True``: conv1, bn1, layer1...) or by their position in it.
    """

    def __init__(self, name: str, norm: Norm, *, names: bool, dilate_last: bool = False) -> None:
        super().__init__()
        counts, bottleneck = RESNETS[name]
        block = Bottleneck if bottleneck else BasicBlock
        children: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False)),
            ("bn1", norm(64)),
            ("relu", nn.ReLU()),
            ("maxpool", nn.MaxPool2d(3, 2, 1)),
        ]
        inward = 64
        for index, count in enumerate(counts):
            width, stride = 64 * 2**index, 1 if index == 0 else 2
            dilated = dilate_last and index == len(counts) - 1
            layer = []
            for number in range(count):
                first = number == 0
                # With dilation instead of a stride, torchvision dilates from the second block on.
                dilation = 2 if dilated and not first else 1
                layer.append(block(inward, width, stride if first and not dilated else 1, dilation, norm))
                inward = width * block.expansion
            children.append((f"layer{index + 1}", nn.Sequential(*layer)))
        for index, (child, module) in enumerate(children):
            self.add_module(child if names else str(index), module)
        self.channels = inward


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of learnt keypoints (Finn et al. 2016); [B, C, h, w] -> [B, K, 2] in -1..1."""

    def __init__(self, channels: int, height: int, width: int, keypoints: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        x, y = np.meshgrid(np.linspace(-1.0, 1.0, width), np.linspace(-1.0, 1.0, height))
        grid = np.stack([x.ravel(), y.ravel()], 1)
        self.register_buffer("pos_grid", torch.from_numpy(grid).float())
        self.keypoints = keypoints

    def forward(self, features: Tensor) -> Tensor:
        maps = self.nets(features).flatten(2)
        return maps.softmax(-1) @ self.pos_grid


class Resize(nn.Module):
    """Bilinear resizing with antialiasing (torchvision's Resize of tensors), as two products with fixed matrices.

    Resizing is linear and separable, and no operator of ONNX is needed that rounds in its own way.
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", _interpolation(before[0], after[0]), persistent=False)
        self.register_buffer("columns", _interpolation(before[1], after[1]).T, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns


def _interpolation(before: int, after: int) -> Tensor:
    """[after, before]: the weights by which each row of the result is made of the rows before."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, size=(after, before), mode="bilinear", antialias=True)[0, 0].contiguous()


class RgbEncoder(nn.Module):
    """Diffusion Policy's image encoder; [B, 3, h, w] normalised -> [B, 2 * keypoints]."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        shape = config.picture_shape
        self.resize: nn.Module = nn.Identity()
        if config.resize_shape is not None and config.resize_shape != shape:
            self.resize = Resize(shape, config.resize_shape)
        shape = config.resize_shape or shape
        self.crop = config.crop or shape
        # torchvision's CenterCrop rounds half to even.
        self.margin = tuple(round((side - crop) / 2.0) for side, crop in zip(shape, self.crop, strict=True))
        norm = group_norm if config.use_group_norm else nn.BatchNorm2d
        self.backbone = ResNet(config.vision_backbone, norm, names=False)
        height, width = (-(-side // 32) for side in self.crop)
        keypoints = config.spatial_softmax_num_keypoints
        self.pool = SpatialSoftmax(self.backbone.channels, height, width, keypoints)
        self.feature_dim = 2 * keypoints
        self.out = nn.Linear(self.feature_dim, self.feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        (top, left), (height, width) = self.margin, self.crop
        x = self.resize(x)[..., top : top + height, left : left + width]
        return F.relu(self.out(self.pool(self.backbone(x)).flatten(1)))


def pictures(images: Tensor) -> Tensor:
    """uint8 [..., h, w, 3] as nodes and data sets hold them -> float [n, 3, h, w] in 0..1."""
    return images.flatten(0, -4).permute(0, 3, 1, 2).float() / 255
