"""Intel RealSense cameras through pyrealsense2, and recordings of them (.bag, .db3)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vigil.camera.calibration import Intrinsics
from vigil.camera.driver import CameraDriver, DeviceLost, Frame
from vigil.errors import VigilError

SILENCE = 2.0  # [s] without a frame after which a streaming device counts as lost
RECORDINGS = (".bag", ".db3")


def import_pyrealsense2() -> ModuleType:
    """The pyrealsense2 module; VigilError naming the packages if it cannot be imported."""
    try:
        import pyrealsense2
    except ImportError as error:
        raise VigilError(
            f"pyrealsense2 cannot be imported ({error}): pip install 'vigil[realsense]' and apt install libusb-1.0-0, "
            "or choose another driver for this camera in the rig file"
        ) from None
    return pyrealsense2


class RealSenseDriver(CameraDriver):
    """Colour and, if asked, depth aligned to it. Stamps are the device's global time, which is the host's clock."""

    def __init__(
        self,
        *,
        serial: str = "",
        recording: Path | None = None,
        width: int = 640,
        height: int = 480,
        rate: float = 30,
        depth: bool = False,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Name a device by ``serial``, or a ``recording`` to be played once. ``now`` [ns] is the node's clock."""
        self._rs = import_pyrealsense2()
        self._serial, self._recording = serial, recording
        self._size, self._rate, self._depth = (width, height), rate, depth
        self._now = now
        self._pipeline: Any = None
        self._align: Any = None
        self._intrinsics: Intrinsics | None = None
        self._offset = 0  # [ns] from the device's time to the node's, for devices without global time
        self._counter: int | None = None
        self._skipped = 0
        self._heard = 0.0  # [s] monotonic

    @property
    def intrinsics(self) -> Intrinsics | None:
        return self._intrinsics

    @property
    def skipped(self) -> int:
        return self._skipped

    def open(self) -> None:
        rs, (width, height) = self._rs, self._size
        config = rs.config()
        if self._recording:
            if not self._recording.is_file():
                raise VigilError(
                    f"RealSense recording {self._recording} does not exist: correct `replay_path`"
                )
            config.enable_device_from_file(str(self._recording), repeat_playback=False)
        else:
            self._check_connected()
            config.enable_device(self._serial)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, round(self._rate))
        if self._depth:
            config.enable_stream(rs.stream.depth, width, height, rs.format.z16, round(self._rate))
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise VigilError(
                f"{self._name} does not stream {width}x{height} rgb8 at {self._rate:g} Hz: {error}. Choose a mode that "
                "it has (rs-enumerate-devices lists them), and plug it into a USB 3 port"
            ) from None
        self._pipeline = pipeline
        self._align = rs.align(rs.stream.color) if self._depth else None
        for sensor in profile.get_device().query_sensors():
            if sensor.supports(rs.option.global_time_enabled):
                sensor.set_option(rs.option.global_time_enabled, 1)
        stream = profile.get_stream(rs.stream.color).as_video_stream_profile()
        self._intrinsics = _intrinsics(stream.get_intrinsics())
        self._counter, self._offset, self._skipped = None, 0, 0
        self._heard = time.monotonic()

    def read(self, timeout: float) -> Frame | None:
        arrived, frames = self._wait(timeout)
        if not arrived:
            if time.monotonic() - self._heard > SILENCE:
                what = "is at its end" if self._recording else "was unplugged or lost its USB bandwidth"
                raise DeviceLost(f"{self._name} sent no frame for {SILENCE:g} s: it {what}")
            return None
        self._heard = time.monotonic()
        if self._align is not None:
            frames = self._align.process(frames)
        colour = frames.get_color_frame()
        depth = frames.get_depth_frame() if self._depth else None
        if not colour or (self._depth and not depth):
            self._skipped += 1  # a set without one of its streams
            return None
        self._count(colour.get_frame_number())
        # Copied: librealsense takes a frame's memory back as soon as its handle is gone.
        return Frame(
            stamp=self._stamp(colour),
            rgb=np.array(colour.get_data(), dtype=np.uint8),
            depth=np.array(depth.get_data(), dtype=np.uint16) if depth else None,
        )

    def close(self) -> None:
        if self._pipeline is not None:
            pipeline, self._pipeline = self._pipeline, None
            with contextlib.suppress(RuntimeError):  # of a device that is gone: it has stopped by itself
                pipeline.stop()

    @property
    def _name(self) -> str:
        return f"RealSense recording {self._recording}" if self._recording else f"RealSense {self._serial}"

    def _check_connected(self) -> None:
        rs = self._rs
        connected = {
            device.get_info(rs.camera_info.serial_number): device.get_info(rs.camera_info.name)
            for device in rs.context().query_devices()
        }
        if self._serial not in connected:
            found = ", ".join(f"{serial} ({name})" for serial, name in connected.items()) or "none"
            raise VigilError(
                f"no RealSense with serial {self._serial!r} is connected; connected: {found}. Plug it in, or correct "
                "`serial` in the rig file"
            )

    def _wait(self, timeout: float) -> tuple[bool, Any]:
        try:
            return self._pipeline.try_wait_for_frames(round(timeout * 1000))
        except RuntimeError as error:
            raise DeviceLost(f"{self._name}: {error}") from None

    def _count(self, number: int) -> None:
        if self._counter is not None and number > self._counter + 1:
            self._skipped += number - self._counter - 1
        self._counter = number

    def _stamp(self, frame: Any) -> int:
        """Acquisition in the node's clock [ns]."""
        device = round(frame.get_timestamp() * 1e6)  # ms -> ns
        domain = self._rs.timestamp_domain
        if not self._recording and frame.get_frame_timestamp_domain() in (
            domain.global_time,
            domain.system_time,
        ):
            return device
        # The device's own clock, or a recording: the smallest delay seen so far is taken as none.
        offset = self._now() - device
        if self._offset == 0 or offset < self._offset:
            self._offset = offset
        return device + self._offset


def _intrinsics(intrinsics: Any) -> Intrinsics:
    return Intrinsics(
        width=intrinsics.width,
        height=intrinsics.height,
        fx=intrinsics.fx,
        fy=intrinsics.fy,
        cx=intrinsics.ppx,
        cy=intrinsics.ppy,
        distortion=tuple(intrinsics.coeffs),
    )
