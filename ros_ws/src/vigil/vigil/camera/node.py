"""The camera node: one process per camera, publishing as realsense-ros does.

    <cam>/color/image_raw                     rgb8
    <cam>/color/camera_info                   from the calibration file, stamped as the image
    <cam>/color/image_raw/compressed          JPEG, encoded only while somebody subscribes
    <cam>/aligned_depth_to_color/image_raw    16UC1 [mm], if the driver has depth
    <cam>/extrinsics                          geometry_msgs/TransformStamped, latched
    /tf_static                                the same, where tf2_msgs is installed (a ROS 2 installation has it,
                                              the package index does not)

Parameters: ``camera`` (its name in the rig file), ``rate`` (Hz; 0 takes the rig's), ``depth``.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import cv2
import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vigil_msgs.msg import SimState

from vigil.camera.calibration import Calibration, load_calibration, optical_frame
from vigil.camera.capture import Capture
from vigil.camera.driver import CameraDriver, Frame
from vigil.camera.drivers import make_driver
from vigil.camera.sim_driver import SimulatedDriver
from vigil.camera.wire import WireImage
from vigil.errors import VigilError
from vigil.node import ERROR, LATCHED, OK, SENSOR, WARN, Health, VigilNode, nanoseconds, spin_node, to_stamp
from vigil.policy.telemetry import Window
from vigil.rig import CameraConfig
from vigil.scheduling import stand_back

LONGEST_LEAD = 0.05  # [s] a stamp further in the future is no lead but another clock: published at once
JPEG_DELAY = 0.005  # [s] the policy takes the raw frame first
DEPTH_DRIVERS = ("sim", "realsense")


class CameraNode(VigilNode):
    """Publishes the frames of one camera."""

    def __init__(self) -> None:
        super().__init__("camera")
        self.declare_parameter("camera", "")
        self.declare_parameter("rate", 0.0)
        self.declare_parameter("depth", False)
        self._config: CameraConfig | None = None
        self._calibration: Calibration | None = None
        self._driver: CameraDriver | None = None
        self._capture: Capture | None = None
        self._jpeg: JpegWorker | None = None
        self._created: list = []
        self._delay = Window()
        self._frames = 0
        self._frames_told = 0

    def setup(self) -> None:
        name = self.get_parameter("camera").value
        if not name:
            raise VigilError(f"parameter `camera` is empty: pass one of {[c.name for c in self.rig.cameras]}")
        cv2.setNumThreads(1)
        self._config = self.rig.camera(name)
        self._calibration = load_calibration(self.rig.calibration_path(self._config), self._config)
        self._advertise(name)
        rate = self.get_parameter("rate").value or self._config.rate
        self._driver = make_driver(self._config, rate, depth=self.get_parameter("depth").value, now=self.now)
        self._capture = Capture(self._driver, self._on_frame, lambda event: self.get_logger().warning(event))
        self._capture.open()
        if isinstance(self._driver, SimulatedDriver):
            self.listen(SimState, "sim/frame", self._on_sim_frame, SENSOR)
        self._compare_intrinsics()

    def start(self) -> None:
        self._frames = self._frames_told = 0

    def teardown(self) -> None:
        if self._capture is not None:
            self._capture.close()
        if self._jpeg is not None:
            self._jpeg.close()
        self._capture = self._driver = self._jpeg = None

    def diagnose(self) -> Iterable[Health]:
        frames, self._frames_told = self._frames - self._frames_told, self._frames
        trouble = self._capture.trouble or ("" if frames or self.lockstep else "no frame in the last second")
        values = {
            "driver": self._config.driver,
            "frames": self._frames,
            "frames_last_second": frames,
            "skipped": self._driver.skipped,
            "jpeg_encoded": self._jpeg.encoded,
            "jpeg_skipped": self._jpeg.skipped,
            **self._delay.summary("stamp_to_publish"),
        }
        slow = not self.lockstep and frames < 0.8 * self._config.rate
        level = ERROR if trouble else WARN if slow else OK
        yield Health("frames", level, trouble or (f"{frames} frames a second" if slow else "ok"), values)

    # Topics ---------------------------------------------------------------------------------------------------

    def _advertise(self, name: str) -> None:
        frame = optical_frame(name)
        self._image = _wire_image("rgb8", 3, frame, self._config)
        self._info = _camera_info(self._calibration)
        self._info.header.frame_id = frame
        self._image_topic = self.advertise(Image, f"{name}/color/image_raw", SENSOR)
        self._info_topic = self.advertise(CameraInfo, f"{name}/color/camera_info", SENSOR)
        self._depth_topic = None
        if self.get_parameter("depth").value:
            if self._config.driver not in DEPTH_DRIVERS:
                raise VigilError(
                    f"camera {name}: driver {self._config.driver} has no depth: leave parameter `depth` off"
                )
            self._depth = _wire_image("16UC1", 2, frame, self._config)
            self._depth_topic = self.advertise(Image, f"{name}/aligned_depth_to_color/image_raw", SENSOR)
        self._jpeg_topic = self.advertise(CompressedImage, f"{name}/color/image_raw/compressed", SENSOR)
        self._jpeg = JpegWorker(
            self._jpeg_topic, frame, self._config.jpeg_quality, 0.0 if self.lockstep else JPEG_DELAY
        )
        self._publish_extrinsics(name)

    def _publish_extrinsics(self, name: str) -> None:
        pose = self._calibration.extrinsics
        transform = TransformStamped(child_frame_id=optical_frame(name))
        transform.header.frame_id = pose.parent
        transform.header.stamp = self.get_clock().now().to_msg()
        vector, turn = transform.transform.translation, transform.transform.rotation
        vector.x, vector.y, vector.z = pose.translation
        turn.x, turn.y, turn.z, turn.w = pose.rotation
        self.advertise(TransformStamped, f"{name}/extrinsics", LATCHED).publish(transform)
        if find_spec("tf2_msgs"):
            tf_message = import_module("tf2_msgs.msg").TFMessage
            self.advertise(tf_message, "/tf_static", LATCHED).publish(tf_message(transforms=[transform]))

    def _compare_intrinsics(self) -> None:
        told, used = self._driver.intrinsics, self._calibration.intrinsics
        if told is None:
            return
        difference = max(abs(getattr(told, key) - getattr(used, key)) for key in ("fx", "fy", "cx", "cy"))
        if difference > 2.0:
            self.get_logger().warning(
                f"camera {self._config.name}: its own intrinsics differ from the calibration file by {difference:.1f} px; "
                "the file is used: is it this device's?"
            )

    # Frames ---------------------------------------------------------------------------------------------------

    def _on_sim_frame(self, message: SimState) -> None:
        if self.active:
            qpos = np.frombuffer(message.qpos, np.float64)
            self._driver.offer(nanoseconds(message.header.stamp), qpos, message.appearance)

    def _on_frame(self, frame: Frame) -> None:
        """In the capture thread."""
        message = self._image.message(frame.stamp, frame.rgb)
        self._wait_until(frame.stamp)
        if not self.active:
            return
        self._image_topic.publish(message)
        self._delay.add((self.now() - frame.stamp) / 1e9)
        self._info.header.stamp = to_stamp(frame.stamp)
        self._info_topic.publish(self._info)
        if self._depth_topic is not None and frame.depth is not None:
            self._depth_topic.publish(self._depth.message(frame.stamp, frame.depth))
        self._jpeg.offer(frame)
        self._frames += 1

    def _wait_until(self, stamp: int) -> None:
        """Hold back a frame drawn before its time: the simulation tells cameras ahead what they will see."""
        ahead = 0.0 if self.lockstep else (stamp - self.now()) / 1e9
        if 0.0 < ahead < LONGEST_LEAD:
            time.sleep(ahead)


class JpegWorker:
    """Encodes in its own thread, after the raw frame is out, and only while somebody subscribes."""

    def __init__(self, topic, frame_id: str, quality: int, delay: float) -> None:
        """``delay`` [s]: how long a frame is left to whoever waits for the raw one before it is encoded."""
        self._topic = topic
        self._delay = delay
        self._quality = quality
        self._message = CompressedImage(format="rgb8; jpeg compressed bgr8")
        self._message.header.frame_id = frame_id
        self._wake = threading.Condition()
        self._frame: Frame | None = None
        self._stopping = False
        self.encoded = 0
        self.skipped = 0  # frames overtaken by a newer one before they were encoded
        self._thread = threading.Thread(target=self._work, name="jpeg", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame) -> None:
        if self._topic.get_subscription_count() == 0:
            return
        with self._wake:
            self.skipped += self._frame is not None
            self._frame = frame
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        stand_back()
        options = [cv2.IMWRITE_JPEG_QUALITY, self._quality]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._frame is not None or self._stopping)
                if self._stopping:
                    return
            time.sleep(self._delay)
            with self._wake:
                frame, self._frame = self._frame, None
            _, encoded = cv2.imencode(".jpg", cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR), options)
            self._message.header.stamp = to_stamp(frame.stamp)
            self._message.data = array("B", encoded.tobytes())
            self._topic.publish(self._message)
            self.encoded += 1


def _wire_image(encoding: str, depth: int, frame: str, camera: CameraConfig) -> WireImage:
    """Messages of ``depth`` bytes per pixel."""
    step = depth * camera.width
    message = Image(encoding=encoding, width=camera.width, height=camera.height, step=step)
    message.header.frame_id = frame
    message.data = array("B", bytes(step * camera.height))
    return WireImage(serialize_message(message), step * camera.height)


def _camera_info(calibration: Calibration) -> CameraInfo:
    lens = calibration.intrinsics
    return CameraInfo(
        width=lens.width,
        height=lens.height,
        distortion_model=lens.model,
        d=array("d", lens.distortion),
        k=np.array(lens.k),
        r=np.eye(3).ravel(),
        p=np.array(lens.p),
    )


main = partial(spin_node, CameraNode)

if __name__ == "__main__":
    main()
