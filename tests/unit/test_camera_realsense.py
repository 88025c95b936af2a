"""The RealSense driver. Its real pipeline runs on a recording of librealsense's software device; no camera is needed."""

import sys
import time

import numpy as np
import pytest

from vigil.camera.driver import DeviceLost
from vigil.camera.realsense import RealSenseDriver
from vigil.errors import VigilError

WIDTH, HEIGHT, RATE, FRAMES = 640, 480, 30, 30


def test_names_the_packages_when_pyrealsense2_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(VigilError, match=r"pip install 'vigil\[realsense\]' and apt install libusb-1.0-0"):
        RealSenseDriver(serial="123")


@pytest.fixture(scope="module")
def rs():
    return pytest.importorskip(
        "pyrealsense2", reason="pyrealsense2 is not installed (pip install 'vigil[realsense]')"
    )


@pytest.fixture(scope="module")
def recording(rs, tmp_path_factory):
    """FRAMES colour and depth frames: the red channel and the depth carry the frame's number."""
    path = tmp_path_factory.mktemp("realsense") / "software.db3"
    device = rs.software_device()
    device.create_matcher(rs.matchers.default)
    sensor = device.add_sensor("Camera")
    profiles = {}
    for uid, (name, stream, fmt, bpp) in enumerate(
        [("colour", rs.stream.color, rs.format.rgb8, 3), ("depth", rs.stream.depth, rs.format.z16, 2)]
    ):
        video = rs.video_stream()
        video.type, video.index, video.uid = stream, 0, uid
        video.width, video.height, video.fps, video.bpp, video.fmt = WIDTH, HEIGHT, RATE, bpp, fmt
        intrinsics = rs.intrinsics()
        intrinsics.width, intrinsics.height = WIDTH, HEIGHT
        intrinsics.fx = intrinsics.fy = 600.0
        intrinsics.ppx, intrinsics.ppy = 319.5, 239.5
        intrinsics.model, intrinsics.coeffs = rs.distortion.brown_conrady, [0.0] * 5
        video.intrinsics = intrinsics
        profiles[name] = sensor.add_video_stream(video).as_video_stream_profile()
    sensor.add_read_only_option(rs.option.depth_units, 0.001)
    extrinsics = rs.extrinsics()
    extrinsics.rotation, extrinsics.translation = np.eye(3).ravel().tolist(), [0.0] * 3
    profiles["depth"].register_extrinsics_to(profiles["colour"], extrinsics)
    recorder = rs.recorder(str(path), device)
    recorded = recorder.query_sensors()[0]
    queue = rs.frame_queue(2 * FRAMES)
    recorded.open(list(recorded.get_stream_profiles()))
    recorded.start(queue)
    for number in range(FRAMES):
        colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colour[..., 0] = number
        depth = np.full((HEIGHT, WIDTH), 500 + number, np.uint16)
        for pixels, name, bpp in ((colour, "colour", 3), (depth, "depth", 2)):
            frame = rs.software_video_frame()
            frame.pixels, frame.bpp, frame.stride = pixels, bpp, WIDTH * bpp
            frame.timestamp, frame.frame_number = 1000.0 * number / RATE, number
            frame.domain, frame.profile = rs.timestamp_domain.hardware_clock, profiles[name]
            sensor.on_video_frame(frame)
        time.sleep(0.005)
    recorded.stop()
    recorded.close()
    del recorder
    return path


def test_plays_a_recording_through_the_real_pipeline(recording):
    driver = RealSenseDriver(recording=recording, depth=True)
    driver.open()
    try:
        assert driver.intrinsics.fx == 600.0
        frames = []
        with pytest.raises(DeviceLost, match="at its end"):
            while True:
                frame = driver.read(0.2)
                if frame is not None:
                    frames.append(frame)
        assert len(frames) >= FRAMES * 0.8
        for frame in frames:
            assert frame.rgb.shape == (HEIGHT, WIDTH, 3) and frame.rgb.dtype == np.uint8
            assert frame.depth.shape == (HEIGHT, WIDTH) and frame.depth.dtype == np.uint16
            assert frame.depth[240, 320] - 500 == frame.rgb[240, 320, 0], (
                "colour and depth belong to one exposure"
            )
        stamps = np.array([frame.stamp for frame in frames])
        assert (np.diff(stamps) > 0).all()
        assert abs(stamps[-1] - time.time_ns()) < 10e9, "stamps are in the node's clock"
    finally:
        driver.close()
        driver.close()


def test_lists_what_is_connected_when_the_serial_is_unknown(rs):
    with pytest.raises(VigilError, match=r"no RealSense with serial '000'.*connected: "):
        RealSenseDriver(serial="000").open()


def test_a_missing_recording_is_named(rs, tmp_path):
    with pytest.raises(VigilError, match=r"gone\.db3 does not exist"):
        RealSenseDriver(recording=tmp_path / "gone.db3").open()
