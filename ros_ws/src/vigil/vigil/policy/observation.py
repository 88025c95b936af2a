"""From camera frames and joint states to one observation: same preparation in training, serving and export.

`prepare_image` is the only way an image reaches the policy. `ObservationBuffer` joins the newest frames of all
cameras with the joint state nearest to them, by acquisition stamps.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vigil.errors import VigilError
from vigil.joints import BadJointState, JointSource

Stamped = tuple[int, np.ndarray]  # acquisition time [ns], data

FRAME_HISTORY = 4  # frames kept per camera: enough to pair cameras that run out of phase or one frame late
JOINT_HISTORY = 256  # joint states kept: a quarter of a second at 1 kHz


class Rejected(VigilError):
    """An input that must not reach the policy; the message says what was passed and what is allowed."""


def prepare_image(rgb: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The policy's view of a camera frame: the whole frame, area-averaged to ``size``.

    Args:
        rgb: uint8 [H, W, 3], red first.
        size: (h, w) of the result, or the side of a square [px].

    Returns:
        uint8 [h, w, 3], C-contiguous.

    Raises:
        Rejected: not a uint8 [H, W, 3] array.
    """
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        found = f"{rgb.dtype} {list(rgb.shape)}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise Rejected(f"an image must be a uint8 [height, width, 3] array, got {found}")
    if 0 in rgb.shape:
        raise Rejected(f"the image is empty: its shape is {list(rgb.shape)}")
    height, width = (size, size) if isinstance(size, int) else size
    if rgb.shape[:2] == (height, width):
        return np.ascontiguousarray(rgb)
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def frame_view(encoding: str, height: int, width: int, step: int, data: array | bytes) -> np.ndarray:
    """An image message's bytes as uint8 [height, width, 3], red first; a view, nothing is copied.

    Raises:
        Rejected: not rgb8, or the bytes do not match the size.
    """
    if encoding != "rgb8":
        raise Rejected(f"encoding {encoding!r}: only rgb8 is read, set the camera driver to it")
    if step != 3 * width or len(data) != step * height:
        raise Rejected(
            f"{len(data)} bytes with a row step of {step}: an rgb8 image of {width}x{height} has "
            f"{3 * width * height} bytes and a step of {3 * width}"
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@dataclass(frozen=True)
class Observation:
    """One synchronised set. ``images`` are the full camera frames (uint8 [H, W, 3]), not yet prepared."""

    stamp: int  # [ns] newest input of the set: what a chunk made of it is stamped with
    skew: int  # [ns] newest minus oldest input
    images: Mapping[str, np.ndarray]
    state: np.ndarray  # [N] float32, columns as the buffer was told: rad, m


class ObservationBuffer:
    """Joins frames and joint states by their stamps. Not thread-safe: the caller holds a lock.

    The set's reference is the newest time at which every camera has delivered; of each camera the frame nearest to
    it is taken, and the joint state nearest to it. So cameras that expose together are always paired frame by
    frame, whatever the order of arrival, and a joint state that is still on its way is waited for.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, int]],
        columns: Sequence[str],
        sources: Sequence[JointSource],
        max_skew: float,
    ) -> None:
        """
        Args:
            cameras: (height, width) by name.
            columns: N of the rig's columns in the policy's order.
            sources: where they are told.
            max_skew: largest difference of stamps within one set [s].
        """
        self._shapes = {name: (height, width, 3) for name, (height, width) in cameras.items()}
        self._sources = tuple(sources)
        told = [name for source in sources for name in source.columns]
        self._index = [told.index(name) for name in columns]
        self._max_skew = round(max_skew * 1e9)
        self._frames: dict[str, deque[Stamped]] = {}
        self._joints: list[deque[Stamped]] = [deque(maxlen=JOINT_HISTORY) for _ in self._sources]
        self.clear()

    def clear(self) -> None:
        """Forget every input."""
        self._frames = {name: deque(maxlen=FRAME_HISTORY) for name in self._shapes}
        for history in self._joints:
            history.clear()

    def add_frame(self, camera: str, stamp: int, rgb: np.ndarray) -> None:
        """Store a frame: uint8 [H, W, 3], ``stamp`` in ns. The array is kept, not copied.

        Raises:
            Rejected: unknown camera or wrong shape.
        """
        if camera not in self._shapes:
            raise Rejected(f"a frame of camera {camera!r}: the policy has {sorted(self._shapes)}")
        if rgb.dtype != np.uint8 or rgb.shape != self._shapes[camera]:
            raise Rejected(
                f"camera {camera}: a frame of {rgb.dtype} {list(rgb.shape)}, the rig says uint8 "
                f"{list(self._shapes[camera])}: correct the camera's width and height in the rig file"
            )
        frames = self._frames[camera]
        if frames and stamp < frames[-1][0]:
            frames.clear()  # the source began anew (a simulation reset, a replayed file): old frames are not its past
        frames.append((stamp, rgb))

    def add_joints(
        self, stamp: int, names: Sequence[str], positions: Sequence[float], source: int = 0
    ) -> None:
        """Store a joint state of one of the sources (as its driver says it), ``stamp`` in ns; joints are picked by name.

        Raises:
            Rejected: a joint is missing, lengths differ, or a value is not finite.
        """
        try:
            state = self._sources[source].read(names, positions)
        except BadJointState as error:
            raise Rejected(str(error)) from None
        history = self._joints[source]
        if history and stamp < history[-1][0]:
            history.clear()
        history.append((stamp, state))

    def newest(self) -> Observation | None:
        """The newest complete set, or None while one is not complete (`missing` says why)."""
        chosen = self._choose()
        if isinstance(chosen, str):
            return None
        frames, joints, skew = chosen
        state = np.concatenate([values for _, values in joints])
        return Observation(
            stamp=max(stamp for stamp, _ in (*frames.values(), *joints)),
            skew=skew,
            images={name: rgb for name, (_, rgb) in frames.items()},
            state=state[self._index].astype(np.float32),
        )

    @property
    def awaits_joints(self) -> bool:
        """Every camera has delivered, and the joint state of that instant is still on its way."""
        if not all(self._frames.values()):
            return False
        reference = self._reference()
        return any(not history or history[-1][0] < reference for history in self._joints)

    def missing(self) -> str:
        """What keeps the set from being complete, in words; empty if it is."""
        chosen = self._choose()
        return chosen if isinstance(chosen, str) else ""

    def _choose(self) -> str | tuple[dict[str, Stamped], list[Stamped], int]:
        """Frames by camera, joint state of each source and skew [ns]; or why there is no set."""
        silent = [name for name, frames in self._frames.items() if not frames]
        if silent:
            return f"no frame of camera {', '.join(silent)}"
        if not all(self._joints):
            return "no joint state"
        reference = self._reference()
        behind = reference - min(history[-1][0] for history in self._joints)
        if behind > 0:
            return f"the newest joint state is {behind / 1e6:.0f} ms older than the frames"
        frames = {name: _nearest(frames, reference) for name, frames in self._frames.items()}
        joints = [_nearest(history, reference) for history in self._joints]
        stamps = {
            **{f"camera {name}": stamp for name, (stamp, _) in frames.items()},
            **{source.topic: stamp for source, (stamp, _) in zip(self._sources, joints, strict=True)},
        }
        oldest, newest = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        skew = stamps[newest] - stamps[oldest]
        if skew > self._max_skew:
            return (
                f"{oldest} is {skew / 1e6:.0f} ms older than {newest}, more than max_skew of "
                f"{self._max_skew / 1e6:.0f} ms"
            )
        return frames, joints, skew

    def _reference(self) -> int:
        return min(frames[-1][0] for frames in self._frames.values())


def _nearest(history: deque[Stamped], stamp: int) -> Stamped:
    return min(history, key=lambda item: abs(item[0] - stamp))
