"""The `lerobot` package for tests that read our data sets with it, where it is installed.

It reads videos through torchvision's reader, which its own tests need and which has no build for every machine: where
torchvision or its reader is missing, a reader of the same interface on PyAV takes its place. All else is lerobot's own code.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

_declared: list[Any] = []  # a library's operators live as long as it does


class VideoReader:
    """As ``torchvision.io.VideoReader`` with the backend pyav: seek to a key frame, then iterate."""

    def __init__(self, path: str, stream: str) -> None:
        import av

        self.container = av.open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, time_s: float, keyframes_only: bool = False) -> VideoReader:
        self.container.seek(int(time_s / self._stream.time_base), stream=self._stream)
        return self

    def __iter__(self) -> Any:
        import torch

        for frame in self.container.decode(self._stream):
            data = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": data, "pts": float(frame.pts * self._stream.time_base)}


class _Anything(types.ModuleType):
    """A module that has every name: transforms of pictures are imported by lerobot, and not used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def dataset_class() -> Any:
    """``LeRobotDataset``; ImportError where it cannot be imported."""
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", *(f"torchvision.{n}" for n in ("transforms", "transforms.v2", "io"))):
            _stand_in(name)
        _stand_in("torchvision.transforms.v2.functional")
        sys.modules["torchvision"].set_video_backend = lambda backend: None
        sys.modules["torchvision.io"].VideoReader = VideoReader
    else:
        complete_torchvision()
        import torchvision

        if not hasattr(torchvision.io, "VideoReader"):  # newer ones have none
            torchvision.set_video_backend = lambda backend: None
            torchvision.io.VideoReader = VideoReader
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset


def complete_torchvision() -> None:
    """Let torchvision be imported whose compiled operators do not fit this build of torch (it has none for every CPU build).

    Two operators of detection are declared, without a body; nothing of LeRobot's policies calls them. Networks and transforms are
    torchvision's own.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _declared[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def _stand_in(name: str) -> None:
    module = _Anything(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__version__ = "0"
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
