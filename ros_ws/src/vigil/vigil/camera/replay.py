"""A camera played back from a recorded episode (.mcap)."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vigil.camera.driver import CameraDriver, Frame
from vigil.errors import VigilError
from vigil.record.pictures import picture_of
from vigil.record.reader import EpisodeReader, stamp_ns

MAX_FRAMES_BYTES = 512 * 1024 * 1024  # of one camera's images held in memory


class ReplayDriver(CameraDriver):
    """Plays one camera of a recording in a loop, at the recorded pace, stamped with the present.

    The place in the loop follows from the clock alone, so several cameras that play the same file in processes of
    their own stay together, as they were recorded.
    """

    def __init__(self, path: Path, camera: str, *, width: int, height: int, now: Callable[[], int]) -> None:
        """``now`` [ns] is the node's clock."""
        self._path, self._camera = path, camera
        self._shape = (height, width, 3)
        self._now = now
        self._offsets: list[int] = []  # [ns] since the recording's start
        self._images: list[Any] = []  # recorded messages
        self._length = 1  # [ns] of the whole recording
        self._shown: int | None = None  # number of the frame last delivered
        self._skipped = 0

    @property
    def skipped(self) -> int:
        return self._skipped

    def open(self) -> None:
        reader = EpisodeReader(self._path)
        raw, jpeg = f"{self._camera}/color/image_raw", f"{self._camera}/color/image_raw/compressed"
        topic = next((topic for topic in (raw, jpeg) if reader.has(topic)), None)
        if topic is None:
            seen = sorted(t for t in reader.counts if t.endswith(("image_raw", "compressed")))
            raise VigilError(
                f"{self._path} has no images of camera {self._camera}; it has {', '.join(seen) or 'none at all'}: "
                "record with `images: jpeg` or name another file in `replay_path`"
            )
        self.close()
        size = 0
        for _, message in reader.messages(topic):
            stamp = stamp_ns(message.header.stamp)
            size += len(message.data)
            if size > MAX_FRAMES_BYTES:
                raise VigilError(
                    f"{self._path}: more than {MAX_FRAMES_BYTES >> 20} MB of images of camera {self._camera}: "
                    "record JPEG images or name a shorter file"
                )
            self._offsets.append(stamp - reader.start)
            self._images.append(message)
        order = np.argsort(self._offsets, kind="stable")
        self._offsets = [max(0, self._offsets[i]) for i in order]
        self._images = [self._images[i] for i in order]
        self._length = max(reader.end - reader.start, self._offsets[-1] + 1)
        self._skipped, self._shown = 0, None

    def read(self, timeout: float) -> Frame | None:
        newest = self._newest(self._now())
        if self._shown is None:
            self._shown = newest
        if newest <= self._shown:
            newest = self._shown + 1
            wait = (self._due(newest) - self._now()) / 1e9
            time.sleep(min(max(wait, 0.0), timeout))
            if wait > timeout:
                return None
        self._skipped += newest - self._shown - 1
        self._shown = newest
        return Frame(stamp=self._due(newest), rgb=self._decode(self._images[newest % len(self._images)]))

    def close(self) -> None:
        self._offsets, self._images = [], []

    def _due(self, frame: int) -> int:
        """When a frame is shown [ns]; frames are counted through all rounds since the clock's zero."""
        round_, index = divmod(frame, len(self._offsets))
        return round_ * self._length + self._offsets[index]

    def _newest(self, now: int) -> int:
        round_, place = divmod(now, self._length)
        return round_ * len(self._offsets) + bisect_right(self._offsets, place) - 1

    def _decode(self, message: Any) -> np.ndarray:
        try:
            rgb = picture_of(message, self._camera)
        except VigilError as error:
            raise VigilError(f"{self._path}: {error}") from None
        if rgb.shape != self._shape:
            raise VigilError(
                f"{self._path}: camera {self._camera} was recorded at {rgb.shape[1]}x{rgb.shape[0]}, the rig says "
                f"{self._shape[1]}x{self._shape[0]}: correct its width and height in the rig file"
            )
        return rgb
