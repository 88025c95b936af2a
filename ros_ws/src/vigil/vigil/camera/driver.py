"""What every camera driver offers, whatever delivers the frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from vigil.camera.calibration import Intrinsics
from vigil.errors import VigilError


class DeviceLost(VigilError):
    """The device went away while it streamed; `CameraDriver.open` may succeed later."""


@dataclass(frozen=True)
class Frame:
    """One exposure."""

    stamp: int  # [ns] acquisition, in the node's clock
    rgb: np.ndarray  # uint8 [H, W, 3], red first, C-contiguous, never written to again
    depth: np.ndarray | None = field(default=None)  # uint16 [H, W] mm, aligned to rgb, 0 = no value


class CameraDriver(ABC):
    """A source of frames. `open`, `read` and `close` are called from one and the same thread."""

    @abstractmethod
    def open(self) -> None:
        """Acquire the device.

        Raises:
            VigilError: it is missing or refuses; names what is there and what to do.
        """

    @abstractmethod
    def read(self, timeout: float) -> Frame | None:
        """The newest frame not yet read, or None if none came within ``timeout`` [s].

        Raises:
            DeviceLost: the device is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device. May be called more than once."""

    @property
    def intrinsics(self) -> Intrinsics | None:
        """What the open device itself says; None: the calibration file is all there is."""
        return None

    @property
    def skipped(self) -> int:
        """Frames that were due but not delivered since `open`."""
        return 0
