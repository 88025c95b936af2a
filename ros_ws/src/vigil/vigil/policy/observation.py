"""From camera frames and joint states to one observation: same preparation in training, serving and export.

`prepare_image` is the only way an image reaches the policy. `ObservationBuffer` joins the newest frames of all
cameras with the joint state nearest to them, by acquisition stamps.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vigil.errors import VigilError
from vigil.joints import BadJointState, JointSource
from vigil.policy.shrink import shrink

Stamped = tuple[int, Any]  # acquisition time [ns], a Frame or Joints

LEAST_KEPT = 4  # inputs kept per source: enough to pair cameras that run out of phase or one frame late
FRAMES_KEPT, JOINTS_KEPT = (
    100_000_000,
    500_000_000,
)  # [ns] for which more are kept, beyond the policy's history


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
    return shrink(rgb, height, width)


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


class Frame:
    """A camera frame and the policy's view of it, which is made once, by the thread that needs it first.

    Attributes:
        rgb: uint8 [H, W, 3].
        received: when it was received [ns, system clock].
    """

    def __init__(self, rgb: np.ndarray, received: int = 0) -> None:
        self.rgb, self.received = rgb, received
        self._lock = threading.Lock()
        self._size: tuple[int, int] | None = None
        self._view: np.ndarray | None = None

    def prepared(self, size: tuple[int, int]) -> np.ndarray:
        """See `prepare_image`. May be called from several threads."""
        with self._lock:
            if self._view is None or self._size != size:
                self._size, self._view = size, prepare_image(self.rgb, size)
            return self._view


class Joints(NamedTuple):
    """What one source of joint states said at one instant."""

    values: np.ndarray  # [C] of its columns; rad, m
    received: int  # [ns, system clock]


@dataclass(frozen=True)
class Observation:
    """One synchronised set, or n of them for a policy that reads a history, the newest last.

    ``images`` are n whole frames of each camera.
    """

    stamp: int  # [ns] newest input of the set: what a chunk made of it is stamped with
    skew: int  # [ns] newest minus oldest input of the newest set
    images: Mapping[str, tuple[Frame, ...]]
    state: np.ndarray  # [N] float32, of a history [n, N]; columns as the buffer was told: rad, m
    complete: int = 0  # [ns, system clock] when the last input of the newest set was received

    def prepared(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Each camera's picture as the encoder takes it: uint8 [h, w, 3], of a history [n, h, w, 3] (see `prepare_image`)."""
        pictures = {name: [frame.prepared(size) for frame in frames] for name, frames in self.images.items()}
        plain = self.state.ndim == 1
        return {name: found[0] if plain else np.stack(found) for name, found in pictures.items()}


class ObservationBuffer:
    """Joins frames and joint states by their stamps. Not thread-safe: the caller holds a lock.

    The set's reference is the newest time at which every camera has delivered; of each camera the frame nearest to
    it is taken, and the joint state nearest to it. So cameras that expose together are always paired frame by
    frame, whatever the order of arrival, and a joint state that is still on its way is waited for.

    A policy that reads n observations gets the sets nearest to reference - i * dt, i < n. Before there were any, the first one
    is repeated, as in the first steps of an episode of LeRobot's data sets.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, int]],
        columns: Sequence[str],
        sources: Sequence[JointSource],
        max_skew: float,
        steps: int = 1,
        dt: float = 0.0,
    ) -> None:
        """
        Args:
            cameras: (height, width) by name.
            columns: N of the rig's columns in the policy's order.
            sources: where they are told.
            max_skew: largest difference of stamps within one set, and of a set of the past from its due time [s].
            steps, dt: n observations, ``dt`` [s] apart.
        """
        self._shapes = {name: (height, width, 3) for name, (height, width) in cameras.items()}
        self._sources = tuple(sources)
        told = [name for source in sources for name in source.columns]
        self._index = [told.index(name) for name in columns]
        self._max_skew = round(max_skew * 1e9)
        self._steps, self._dt = steps, round(dt * 1e9)
        self._frames: dict[str, deque[Stamped]] = {}
        self._joints: list[deque[Stamped]] = [deque() for _ in self._sources]
        self._since = 0
        self.clear()

    def clear(self) -> None:
        """Forget every input."""
        self._frames = {name: deque() for name in self._shapes}
        for history in self._joints:
            history.clear()

    def begin(self, instant: int) -> None:
        """An episode begins at ``instant`` [ns]: what is older is nobody's history."""
        self._since = instant

    def add_frame(self, camera: str, stamp: int, rgb: np.ndarray, received: int = 0) -> Frame:
        """Store a frame: uint8 [H, W, 3], ``stamp`` in ns, ``received`` as in `Frame`. The array is kept, not copied.

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
        frame = Frame(rgb, received)
        self._add(self._frames[camera], stamp, frame, FRAMES_KEPT)
        return frame

    def add_joints(
        self,
        stamp: int,
        names: Sequence[str],
        positions: Sequence[float],
        source: int = 0,
        received: int = 0,
    ) -> None:
        """Store a joint state of one of the sources (as its driver says it), ``stamp`` in ns; joints are picked by name.

        Raises:
            Rejected: a joint is missing, lengths differ, or a value is not finite.
        """
        try:
            state = self._sources[source].read(names, positions)
        except BadJointState as error:
            raise Rejected(str(error)) from None
        self._add(self._joints[source], stamp, Joints(state, received), JOINTS_KEPT)

    def _add(self, history: deque[Stamped], stamp: int, data: Frame | Joints, kept: int) -> None:
        if history and stamp < history[-1][0]:
            history.clear()  # the source began anew (a simulation reset, a replayed file): what it said is not its past
        history.append((stamp, data))
        oldest = stamp - (self._steps - 1) * self._dt - kept
        while len(history) > LEAST_KEPT and history[0][0] < oldest:
            history.popleft()

    def newest(self) -> Observation | None:
        """The newest complete set, or None while one is not complete (`missing` says why)."""
        chosen = self._choose()
        if isinstance(chosen, str):
            return None
        frames, joints, skew = chosen
        newest = (*(taken[-1] for taken in frames.values()), *(taken[-1] for taken in joints))
        states = np.concatenate([np.array([told.values for _, told in taken]) for taken in joints], axis=1)
        states = states[:, self._index].astype(np.float32)
        return Observation(
            stamp=max(stamp for stamp, _ in newest),
            complete=max(data.received for _, data in newest),
            skew=skew,
            images={name: tuple(frame for _, frame in taken) for name, taken in frames.items()},
            state=states[0] if self._steps == 1 else states,
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

    def _choose(self) -> str | tuple[dict[str, list[Stamped]], list[list[Stamped]], int]:
        """Of each camera and each source of joints the n taken, the newest last, and the skew [ns]; or why there is no set."""
        silent = [name for name, frames in self._frames.items() if not frames]
        if silent:
            return f"no frame of camera {', '.join(silent)}"
        if not all(self._joints):
            return "no joint state"
        reference = self._reference()
        behind = reference - min(history[-1][0] for history in self._joints)
        if behind > 0:
            return f"the newest joint state is {behind / 1e6:.0f} ms older than the frames"
        histories = {
            **{f"camera {name}": history for name, history in self._frames.items()},
            **{s.topic: history for s, history in zip(self._sources, self._joints, strict=True)},
        }
        taken = {source: [_nearest(history, reference)] for source, history in histories.items()}
        stamps = {source: found[0][0] for source, found in taken.items()}
        oldest, newest = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        skew = stamps[newest] - stamps[oldest]
        if skew > self._max_skew:
            return (
                f"{oldest} is {skew / 1e6:.0f} ms older than {newest}, more than max_skew of "
                f"{self._max_skew / 1e6:.0f} ms"
            )
        for source, history in histories.items():
            for i in range(1, self._steps):
                found = self._past(history, reference - i * self._dt)
                if isinstance(found, str):
                    return f"{source}: {found} observation {i} before the newest"
                taken[source].insert(0, found)
        frames = {name: taken[f"camera {name}"] for name in self._frames}
        return frames, [taken[source.topic] for source in self._sources], skew

    def _past(self, history: deque[Stamped], due: int) -> Stamped | str:
        """What lies nearest to ``due`` [ns], or the first there is since the episode began; or why there is none."""
        first = next((item for item in history if item[0] >= self._since), history[-1])
        if due <= first[0]:
            return first
        found = _nearest(history, due)
        off = abs(found[0] - due)
        if off > self._max_skew:
            return f"a hole in its history, {off / 1e6:.0f} ms (max_skew {self._max_skew / 1e6:.0f} ms) from the due time of"
        return found if found[0] >= self._since else first

    def _reference(self) -> int:
        return min(frames[-1][0] for frames in self._frames.values())


def _nearest(history: deque[Stamped], stamp: int) -> Stamped:
    return min(history, key=lambda item: abs(item[0] - stamp))
