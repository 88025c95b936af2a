"""The camera node over real DDS, drawing the simulated scene with the real renderer."""

from __future__ import annotations

import threading
import time
from array import array
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vigil_msgs.msg import SimState

from support.live_node import graph, process, wait_for
from vigil.camera.calibration import load_rig_calibrations
from vigil.camera.simulated import SimulatedCamera
from vigil.node import EVENTS, LATCHED, SENSOR, nanoseconds, to_stamp
from vigil.rig import load_rig
from vigil.sim import scene

NAMESPACE = "camera_test"


class Physics:
    """Publishes sim/frame at 100 Hz in real time."""

    def __init__(self, node) -> None:
        self.publisher = node.create_publisher(SimState, "sim/frame", SENSOR)
        self.qpos = scene.build_model().qpos0.copy()
        self.appearance: list[str] = []
        self.stamps: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def publish(self, stamp: int) -> None:
        message = SimState(qpos=array("d", self.qpos.tobytes()), appearance=self.appearance)
        message.header.stamp = to_stamp(stamp)
        self.stamps.append(stamp)
        self.publisher.publish(message)

    def _run(self) -> None:
        count, began = 0, time.monotonic()
        while not self._stop.wait(max(0.0, began + 0.01 * count - time.monotonic())):
            self.publish(time.time_ns())
            count += 1

    def __enter__(self) -> Physics:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def active_camera(tmp_path, name="wrist", **parameters):
    log = tmp_path / "camera.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.camera.node", "camera", NAMESPACE, log, rig="franka_sim", camera=name, **parameters),
    ):
        assert test.configure("camera"), log.read_text()
        assert test.activate("camera"), log.read_text()
        yield test


def pixels(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def test_frames_are_published_as_a_realsense_publishes_them(tmp_path):
    with active_camera(tmp_path) as test:
        images = test.collect(Image, "wrist/color/image_raw", SENSOR)
        infos = test.collect(CameraInfo, "wrist/color/camera_info", SENSOR)
        poses = test.collect(TransformStamped, "wrist/extrinsics", LATCHED)
        told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)
        with Physics(test.node) as physics:
            wait_for(lambda: len(images) > 60 and poses and len(told) > 1)
        calibration = load_rig_calibrations(load_rig("franka_sim"))["wrist"]

        image = images[-1]
        assert (image.encoding, image.width, image.height, image.step) == ("rgb8", 640, 480, 1920)
        assert image.header.frame_id == "wrist_color_optical_frame"
        with SimulatedCamera("wrist") as camera:
            assert np.array_equal(pixels(image), camera.render(physics.qpos))

        stamps = [nanoseconds(message.header.stamp) for message in images]
        assert set(stamps) <= set(physics.stamps), "a frame is stamped as the state that it shows"
        assert len(set(stamps)) == len(stamps) and stamps == sorted(stamps)
        assert np.median(np.diff(stamps)) / 1e6 == pytest.approx(33.3, abs=8)

        assert {nanoseconds(i.header.stamp) for i in infos[5:-1]} <= set(stamps), (
            "camera_info belongs to an image"
        )
        info = infos[-1]
        assert (info.width, info.height, info.distortion_model) == (640, 480, "plumb_bob")
        assert info.k.tolist() == calibration.intrinsics.k and info.p.tolist() == calibration.intrinsics.p
        assert info.header.frame_id == image.header.frame_id

        pose = poses[0]
        assert (pose.header.frame_id, pose.child_frame_id) == ("fr3_link8", "wrist_color_optical_frame")
        assert pose.transform.translation.x == calibration.extrinsics.translation[0]
        assert pose.transform.rotation.w == calibration.extrinsics.rotation[3]


def test_jpeg_is_made_only_while_somebody_looks(tmp_path):
    def load(message):
        values = {v.key: v.value for s in message.status for v in s.values}
        return int(values.get("jpeg_encoded", 0))

    with active_camera(tmp_path, "scene") as test:
        told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)
        images = test.collect(Image, "scene/color/image_raw", SENSOR)
        with Physics(test.node):
            wait_for(lambda: len(images) > 20 and len(told) > 2)
            assert load(told[-1]) == 0
            jpegs = test.collect(CompressedImage, "scene/color/image_raw/compressed", SENSOR)
            wait_for(lambda: len(jpegs) > 5)
        message = jpegs[-1]
        assert message.format == "rgb8; jpeg compressed bgr8"
        assert message.header.frame_id == "scene_color_optical_frame"
        raw = {nanoseconds(i.header.stamp): i for i in images}[nanoseconds(message.header.stamp)]
        decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(decoded.astype(int) - pixels(raw)).mean() < 4, "the same picture, red first"


def test_depth_is_published_aligned_when_asked(tmp_path):
    with active_camera(tmp_path, "scene", depth=True) as test:
        images = test.collect(Image, "scene/aligned_depth_to_color/image_raw", SENSOR)
        with Physics(test.node):
            wait_for(lambda: images)
        image = images[0]
        assert (image.encoding, image.step) == ("16UC1", 1280)
        depth = np.frombuffer(image.data, np.uint16).reshape(480, 640)
        assert 300 < np.median(depth[depth > 0]) < 3000, "millimetres"


def test_a_state_of_another_scene_is_named_and_the_next_good_one_is_drawn(tmp_path):
    with active_camera(tmp_path) as test:
        images = test.collect(Image, "wrist/color/image_raw", SENSOR)
        told = test.collect(DiagnosticArray, "/diagnostics", EVENTS)
        physics = Physics(test.node)
        good, physics.qpos = physics.qpos, np.full(3, np.nan)
        with physics:
            wait_for(lambda: any("finite positions" in s.message for m in list(told) for s in m.status))
            assert not images
            physics.qpos = good
            wait_for(lambda: images)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"camera": "front"}, "has no camera 'front'; it has ['wrist', 'scene']"),
        ({}, "parameter `camera` is empty: pass one of ['wrist', 'scene']"),
    ],
)
def test_a_camera_that_the_rig_does_not_have_is_one_error(tmp_path, parameters, reason):
    log = tmp_path / "camera.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.camera.node", "camera", NAMESPACE, log, rig="franka_sim", **parameters),
    ):
        assert not test.configure("camera")
    assert log.read_text().count(reason) == 1 and "Traceback" not in log.read_text()


def test_a_missing_device_or_library_is_one_error(tmp_path):
    data = load_rig("franka_sim").model_dump(mode="json", exclude_none=True)
    data["cameras"][0].update(driver="realsense", serial="000000000000")
    rig = tmp_path / "rig.yaml"
    rig.write_text(yaml.safe_dump(data))
    log = tmp_path / "camera.log"
    with (
        graph(NAMESPACE) as test,
        process("vigil.camera.node", "camera", NAMESPACE, log, rig=rig, camera="wrist"),
    ):
        assert not test.configure("camera")
    text = log.read_text()
    assert "libusb-1.0-0" in text or "no RealSense with serial '000000000000'" in text
    assert "Traceback" not in text
